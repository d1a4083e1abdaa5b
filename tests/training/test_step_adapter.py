"""StepAdapter: the rules of Ott et al. (2021) on models whose critical step is known."""

from __future__ import annotations

import json
import math

import pytest
import torch
from decaying import SAME_SIDE, X, decay

import pynode
from pynode import DP5, RK4, Euler, Fehlberg2, Heun, Midpoint, SaveAt
from pynode.errors import InputError
from pynode.nn import NeuralODE
from pynode.training import StepAdapter, defect, initial_step
from pynode.training.look import Look, compare
from pynode.training.measure import Measurement
from pynode.training.orders import finer_algorithm, finer_step, order_of


def adapted(adapter: StepAdapter, looks: int) -> list[str]:
    for _ in range(looks * adapter.interval):
        adapter.step(X, SAME_SIDE)
    return [decision.action for decision in adapter.log]


def test_the_test_solver_and_its_step_are_the_papers():
    assert isinstance(finer_algorithm(Euler()), Midpoint)
    assert isinstance(finer_algorithm(Midpoint()), RK4)
    assert isinstance(finer_algorithm(Heun()), RK4)
    assert isinstance(finer_algorithm(RK4()), RK4)
    for h in (1.0, 0.5, 0.1, 0.019, 0.001):
        assert finer_step(h, 1, 2, 50.0) == pytest.approx(h if 1 / h > 50 else (h / 50) ** 0.5)
        assert finer_step(h, 2, 4, 50.0) == pytest.approx(h if 1 / h**2 > 50 else (h**2 / 50) ** 0.25)
        assert finer_step(h, 1, 4, 50.0) == pytest.approx(h if 1 / h**3 > 50 else (h / 50) ** 0.25)
    assert [order_of(a) for a in (Euler(), Midpoint(), RK4(), DP5(), Fehlberg2())] == [1, 2, 4, 5, 2]


def test_the_step_settles_just_below_the_critical_one():
    """Euler keeps the sign of y' = -2 y if and only if h < 1/2; at 1/2 all is 0, which counts as negative."""
    adapter = StepAdapter(decay(Euler(steps=1)), start="own", interval=3)
    actions = adapted(adapter, 20)
    assert actions[:3] == ["shrink", "shrink", "grow"]
    assert actions[-1] == "keep"
    assert 0.5 / 1.1 < adapter.resolution < 0.5
    assert adapter.model.algorithm.dt == adapter.resolution
    assert adapter.log[0].gap == 1.0
    assert adapter.log[0].nfe == 1


def test_growth_ends_at_one_step():
    adapter = StepAdapter(decay(RK4(steps=2), rate=0.1), start="own", interval=1)
    actions = adapted(adapter, 10)
    assert adapter.resolution == 1.0
    assert actions == ["grow"] * 8 + ["keep"] * 2


def test_the_number_of_steps_is_bounded():
    """Where halving would pass the bound, 1/h goes half the way to it; at it, a warning."""
    values = iter([0.0, 1.0] * 100)
    adapter = StepAdapter(decay(Euler(steps=4)), lambda o, t: next(values), start="own", interval=1, max_steps=10)
    adapter.step(X)
    assert adapter.resolution == pytest.approx(1 / 8)
    adapter.step(X)
    assert 1 / adapter.resolution == pytest.approx(9)
    adapter.step(X)
    assert 1 / adapter.resolution == pytest.approx(9.5)  # ten steps, the last one shorter
    with pytest.warns(UserWarning, match="10 steps do not suffice"):
        adapter.step(X)
    assert adapter.log[-1].action == "bound"
    assert 1 / adapter.resolution == pytest.approx(9.5)


def test_the_first_step_is_hairers():
    """y' = -y from |y| = 1: d0 = d1 = d2 = 1, h0 = 0.01, h1 = 0.01^(1/(p+1))."""
    x = torch.ones(3, 1, dtype=torch.float64)
    for algorithm, p in ((Euler(), 1), (Midpoint(), 2), (RK4(), 4)):
        ode = decay(algorithm, rate=1.0)
        assert initial_step(ode, (x,)) == pytest.approx(min(1.0, 0.01 ** (1 / (p + 1))), rel=1e-9)
    long = NeuralODE(decay(Euler(), rate=1.0).f, (2.0, -2.0), algorithm=Euler())
    assert initial_step(long, (x,)) == pytest.approx(0.1 / 4, rel=1e-9)
    adapter = StepAdapter(decay(Euler(), rate=1.0))
    adapter.step(x, x > 0)
    assert adapter.resolution == pytest.approx(0.1)
    assert adapter.log[0].action == "start"


@pytest.mark.parametrize("method", [Euler, Midpoint, RK4])
def test_the_defect_estimates_the_error(method):
    """Its relative error falls like h below order 4; at order 4 Simpson's own error is of the same size."""

    class Pendulum(torch.nn.Module):
        def forward(self, t, y):
            return torch.stack([y[:, 1], -y[:, 0].sin() * (1 + 0.3 * t)], 1)

    x = torch.tensor([[1.0, 0.2], [-0.5, 0.7]], dtype=torch.float64)
    exact = pynode.solve(Pendulum(), x, [0.0, 2.0], algorithm="vern9", rtol=1e-12, atol=1e-12).ys[-1]
    off = []
    for steps in (16, 32, 64):
        ode = NeuralODE(Pendulum(), (0.0, 2.0), algorithm=method(steps=steps), saveat=SaveAt(steps=True))
        solution = ode.solve(x)
        before = solution.stats.forward.nfe
        estimate = defect(ode, (x,), solution)
        assert solution.stats.forward.nfe - before == 3 * steps
        error = solution.ys[-1] - exact
        off.append(float((estimate - error).norm() / error.norm()))
    if method is RK4:
        assert max(off) < 1
    else:
        assert off[1] < 0.6 * off[0]
        assert off[2] < 0.6 * off[1]
        assert off[2] < 0.1


def test_without_a_second_solve_the_step_settles_too():
    adapter = StepAdapter(decay(Euler(steps=1)), test="defect", start=0.9, interval=1)
    actions = adapted(adapter, 20)
    assert actions[:2] == ["start", "shrink"]
    assert 0.5 / 1.1 < adapter.resolution < 0.5
    assert adapter.log[1].tested_with == "defect of the dense output"
    assert adapter.log[1].extra == 2 + 2 + 3 * 2  # two steps of the training's, again, three evaluations each


def test_targets_are_not_needed_as_a_hook():
    """Iterations are the solves under training; the others, and the adapter's own, do not count."""
    ode = decay(Euler(steps=1))
    adapter = StepAdapter(ode, None, start="own", interval=2, threshold=0.2)
    handle = ode.register_solve_hook(adapter)
    for _ in range(12):
        ode(X).sum().backward()
        with torch.no_grad():
            ode(X)
    assert adapter.iteration == 12
    assert len(adapter.log) == 6
    assert adapter.log[0].action == "shrink"
    # One step maps to -y, the flow to exp(-2) y: in units of the deviation they are 1 + exp(-2) apart, up to h_test.
    assert adapter.log[0].gap == pytest.approx(1 + math.exp(-2), rel=0.05)
    h = adapter.resolution
    steps = round(1 / h) if abs(round(1 / h) - 1 / h) < 1e-9 else None
    if steps is not None:
        end = (1 - 2 * h) ** steps
        assert abs(end - math.exp(-2)) / max(end, 1e-9) < 0.5
    handle.remove()
    ode(X).sum().backward()
    assert adapter.iteration == 12


def test_gradients_between_backward_and_step_are_untouched():
    ode = decay(Euler(steps=4))
    ode(X).sum().backward()
    before = ode.f.rate.grad.clone()
    adapter = StepAdapter(ode, interval=1)
    adapter.step(X, SAME_SIDE)
    assert torch.equal(ode.f.rate.grad, before)
    assert ode.training


def test_confidence_intervals_are_those_of_paired_differences():
    ones, own = torch.ones(400, dtype=torch.float64), torch.ones(400, dtype=torch.float64)
    own[:40] = 0.0
    train, test = (Look(Measurement(values, ones, 1.0), None) for values in (own, ones))
    gap, margin = compare(train, test, False, 0.95)
    assert gap == pytest.approx(0.1)
    assert margin == pytest.approx(1.959964 * math.sqrt(0.1 * 0.9 * 400 / 399) / 20, rel=1e-6)
    relative, wide = compare(train, test, True, 0.95)
    assert (relative, wide) == pytest.approx((gap / 0.9, margin / 0.9))
    with pytest.raises(InputError, match="one number in all"):
        one = Look(Measurement(ones[:1], ones[:1], 1.0), None)
        compare(one, one, False, 0.95)


def test_with_confidence_it_neither_shrinks_nor_grows_in_doubt():
    """3 of 22 samples differ: 0.136 +- 0.15 around a threshold of 0.1."""
    few = torch.ones(22)
    few[:3] = 0.0
    looks = iter([few, torch.ones(22), few, torch.ones(22)])
    adapter = StepAdapter(decay(Euler(steps=4)), lambda o, t: next(looks), start="own", interval=1, confidence=0.95)
    adapter.step(X)
    assert adapter.log[0].action == "unsure"
    assert adapter.resolution == 0.25
    adapter.confidence = None
    adapter.step(X)
    assert adapter.log[1].action == "shrink"


def test_tolerances_are_halved_and_bounded():
    values = iter([0.0, 1.0] * 100)
    adapter = StepAdapter(decay(DP5()), lambda o, t: next(values), interval=1, start=1e-3, smallest=3e-4)
    for _ in range(3):
        adapter.step(X)
    assert [d.action for d in adapter.log] == ["start", "shrink", "shrink", "bound"]
    assert adapter.model.rtol == adapter.model.atol == 3e-4


def test_a_looser_tolerance_must_change_the_number_of_evaluations():
    """As long as no training solve took another number of evaluations than the candidate's, it is not kept."""
    ode = decay(Fehlberg2(), rtol=1e-4, atol=1e-4)
    adapter = StepAdapter(ode, interval=1, start=1e-4)
    for _ in range(5):
        ode(X)
        adapter.step(X, SAME_SIDE)
        twin = ode.with_tolerance(adapter.log[-1].before * 1.1, adapter.log[-1].before * 1.1)
        with torch.no_grad():
            candidate = twin.solve(X).stats.forward.nfe
        moved = any(nfe != candidate for nfe in adapter._recent)
        assert adapter.log[-1].action == ("grow" if moved else "keep")
    assert "DP5 at" in adapter.log[-1].tested_with


def test_the_tolerance_of_the_test_is_tightened_until_it_costs_more():
    ode = decay(DP5(), rate=0.01, rtol=1e-3, atol=1e-3)
    adapter = StepAdapter(ode, interval=1, start=1e-3, smallest=1e-9)
    adapter.step(X, SAME_SIDE)
    with torch.no_grad():
        nfe = {t: ode.with_tolerance(t, t).solve(X).stats.forward.nfe for t in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)}
    wanted = next((t for t in (1e-4, 1e-5, 1e-6, 1e-7, 1e-8) if nfe[t] > nfe[1e-3]), None)
    if wanted is not None:
        assert f"DP5 at {wanted:.2g}" == adapter.log[-1].tested_with


def test_a_training_can_be_resumed_and_its_log_written(tmp_path):
    adapter = StepAdapter(decay(Euler(steps=1)), start="own", interval=2)
    adapted(adapter, 4)
    other = StepAdapter(decay(Euler(steps=1)), interval=2)
    other.load_state_dict(adapter.state_dict())
    assert (other.iteration, other.resolution) == (8, adapter.resolution)
    other.step(X, SAME_SIDE)
    other.step(X, SAME_SIDE)
    adapter.step(X, SAME_SIDE)
    adapter.step(X, SAME_SIDE)
    assert str(other.log[-1]) == str(adapter.log[-1])
    adapter.to_json(tmp_path / "log.json")
    content = json.loads((tmp_path / "log.json").read_text())
    assert [d["after"] for d in content] == [d.after for d in adapter.log]
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib.figure import Figure

    line = adapter.plot(Figure().add_subplot()).get_lines()[0]
    assert list(line.get_ydata()) == [d.after for d in adapter.log]


@pytest.mark.parametrize(
    "options", [{"interval": 0}, {"shrink": 1.5}, {"grow": 1.0}, {"test": "other"}, {"confidence": 2.0}, {"start": "x"}]
)
def test_bad_arguments_are_explained(options):
    with pytest.raises(InputError, match=next(iter(options))):
        StepAdapter(decay(Euler(steps=1)), **options)
    with pytest.raises(InputError, match="no batch"):
        StepAdapter(decay(Euler(steps=1))).adapt()
