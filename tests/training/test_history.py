"""What History, the cost curve and the solve hooks count is what the solves did."""

from __future__ import annotations

import copy
import json
import math
import pickle

import pytest
import torch
from decaying import SAME_SIDE, Decay, X, decay

import pynode
from pynode import DP5, RK4, Euler
from pynode.errors import InputError
from pynode.nn import NeuralODE
from pynode.training import History, StepAdapter, accuracy_against_evaluations, measure, solving_with


def test_history_counts_training_and_evaluation_apart():
    ode = decay(Euler(steps=3))
    history = History(ode)
    for _ in range(2):
        ode(X).sum().backward()
        with torch.no_grad():
            ode.with_solver(RK4(steps=5))(X)  # a copy: not watched
    with torch.no_grad():
        ode(X)
    record = history.epoch(loss=0.5)
    assert (record["forward"], record["steps"], record["solves"], record["loss"]) == (3.0, 3.0, 2.0, 0.5)
    assert record["backward"] == 3 + 3  # CheckpointedAdjoint evaluates every step again, with its pullback
    assert record["evaluation"] == 3.0
    ode.algorithm = Euler(steps=7)
    ode(X)
    StepAdapter(ode, start="own", interval=1).step(X, SAME_SIDE)
    measure(ode, [(X, SAME_SIDE)], "accuracy")
    record = history.epoch()
    assert (record["forward"], record["evaluations"], record["solves"]) == (7.0, 13.0, 1.0)
    assert math.isnan(record["evaluation"])
    history.detach()
    ode(X)
    assert history.epoch()["solves"] == 0


def test_history_writes_and_draws(tmp_path):
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib.figure import Figure

    ode = decay(Euler(steps=3))
    history = History(ode)
    with pytest.raises(InputError, match="no epoch"):
        history.plot()
    for steps in (2, 4):
        ode.algorithm = Euler(steps=steps)
        ode(X)
        history.epoch(loss=1 / steps)
    axes = history.plot("loss", ax=Figure().add_subplot())
    assert list(axes.get_lines()[0].get_ydata()) == [2.0, 4.0]
    history.to_json(tmp_path / "history.json")
    assert [r["loss"] for r in json.loads((tmp_path / "history.json").read_text())] == [0.5, 0.25]
    assert len(str(history).splitlines()) == 3
    with pytest.raises(InputError, match="accuracy"):
        history.plot("accuracy")
    with pytest.raises(InputError, match="forward"):
        history.epoch(forward=3)


def test_the_cost_curve_is_error_against_evaluations():
    model = decay(DP5())
    exact = X * math.exp(-2)
    curve = accuracy_against_evaluations(
        model, [(X, exact)], "mse", solvers=[Euler(), RK4(), "dopri5"], steps=(1, 4, 16)
    )
    stages = {"Euler": 1, "RK4": 4}
    for point in curve.points:
        if point.solver in stages:
            steps = round(1 / point.resolution)
            assert point.nfe == stages[point.solver] * steps
            growth = {"Euler": 1 - 2 / steps, "RK4": sum((-2 / steps) ** k / math.factorial(k) for k in range(5))}
            error = float((X * growth[point.solver] ** steps - exact).pow(2).mean())
            assert point.metric == pytest.approx(error, rel=1e-9, abs=1e-25)
    adaptive = [p for p in curve.points if p.solver == "DP5"]
    assert [p.nfe for p in adaptive] == sorted(p.nfe for p in adaptive)
    assert adaptive[-1].metric < 1e-8 < adaptive[0].metric
    assert model.rtol == 1e-5


def test_with_solver_shares_parameters_and_leaves_the_original():
    ode = decay(Euler(steps=1), sensealg=pynode.BacksolveAdjoint(), d_discontinuities=(0.3,))
    ode.register_solve_hook(lambda *given: pytest.fail("the copy has no hooks"))
    twin = ode.with_solver(RK4(steps=4), atol=1e-3, backend="torch")
    assert next(twin.parameters()) is next(ode.parameters())
    assert (twin.algorithm, twin.sensealg, twin.atol) == (RK4(steps=4), None, 1e-3)
    assert twin.options == {"d_discontinuities": (0.3,), "backend": "torch"}
    assert (ode.algorithm, ode.atol, ode.options) == (Euler(steps=1), 1e-7, {"d_discontinuities": (0.3,)})
    twin(X)
    twin.f = Decay(5.0)
    assert ode.f.rate.item() == 2.0
    assert [name for name, _ in ode.named_parameters()] == ["f.rate"]


def test_with_tolerance():
    ode = NeuralODE(Decay(), algorithm=DP5(), rtol=1e-3, atol=1e-5)
    tight = ode.with_tolerance(1e-8)
    assert (tight.rtol, tight.atol) == pytest.approx((1e-8, 1e-10))
    exact = X * math.exp(-2)
    assert float((tight(X) - exact).detach().abs().max()) < 1e-7 < float((ode(X) - exact).detach().abs().max())
    tight(X).sum().backward()
    assert ode.f.rate.grad is not None
    with pytest.raises(InputError, match="steps are fixed"):
        decay(Euler()).with_tolerance(1e-3)


def test_hooks_see_every_solve_may_replace_it_and_stay_with_their_object():
    ode = decay(Euler(steps=1))
    seen = []

    def halve(module, inputs, solution):
        seen.append((module is ode, inputs[0] is X, solution.stats.forward.nfe))
        solution.ys = solution.ys / 2
        return solution

    handle = ode.register_solve_hook(halve)
    torch.testing.assert_close(ode(X), -X / 2, rtol=0, atol=0)
    assert seen == [(True, True, 1)]
    for other in (copy.deepcopy(ode), pickle.loads(pickle.dumps(ode)), copy.copy(ode)):
        torch.testing.assert_close(other(X), -X, rtol=0, atol=0)
    assert len(seen) == 1
    handle.remove()
    torch.testing.assert_close(ode(X), -X, rtol=0, atol=0)
    with pytest.raises(InputError, match="hook"):
        ode.register_solve_hook(3)


def test_solving_with_restores_even_after_an_error():
    ode = decay(Euler(steps=1))
    with pytest.raises(RuntimeError, match="inside"), solving_with(ode, "rk4", rtol=1e-2, max_steps=3):
        assert (ode.algorithm.name, ode.rtol, ode.options["max_steps"]) == ("RK4", 1e-2, 3)
        raise RuntimeError("inside")
    assert (ode.algorithm, ode.rtol, ode.options) == (Euler(steps=1), 1e-5, {})
