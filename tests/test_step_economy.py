"""Work that is not done: for save points, and in adjoints that may be less exact than the states."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import pynode
from pynode.native.tableaus import TABLEAUS

F64 = torch.float64
RUNGE_KUTTA = ["BS3", "DP5", "Tsit5", "Vern7", "Vern9", "DP8", "Fehlberg2", "AdaptiveHeun"]
OTHERS = ["VCABM", "FBDF", "ROCK2", "ROCK4", "RKC", "TRBDF2", "KenCarp4", "Kvaerno5", "RadauIIA5"]
ROSENBROCK = ["Rosenbrock23", "Rodas4", "Rodas5P"]


def pendulum(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[1], -torch.sin(y[0]) + 0.1 * torch.cos(t)])


def solved(name: str, **options) -> pynode.Solution:
    y0 = torch.tensor([1.0, 0.0], dtype=F64)
    return pynode.solve(pendulum, y0, [0.0, 5.0], algorithm=name, rtol=1e-4, atol=1e-4, **options)


@pytest.mark.parametrize("name", RUNGE_KUTTA + OTHERS + ROSENBROCK)
def test_save_points_cost_no_step(name: str) -> None:
    """Saved at 40 times between its steps, a solve takes the same steps to the last bit, each from the evaluation
    that the last one ended with; what it evaluates more often are the stages that only a method's dense output has."""
    plain = solved(name, saveat=pynode.SaveAt(steps=True))
    dense = solved(name, saveat=torch.linspace(0.01, 4.99, 40, dtype=F64))
    assert dense.stats.forward.accepted == plain.stats.forward.accepted == len(plain.ts) - 1
    assert dense.stats.forward.rejected == plain.stats.forward.rejected
    more = dense.stats.forward.nfe - plain.stats.forward.nfe
    extra = len(TABLEAUS[name].dense_c) if name in TABLEAUS else 0
    assert 0 <= more <= extra * plain.stats.forward.accepted
    assert (more == 0) == (extra == 0)
    both = solved(name, saveat=[0.01, 5.0])
    assert torch.equal(both.ys[-1], plain.ys[-1])


@pytest.mark.parametrize("name", [name for name in RUNGE_KUTTA if TABLEAUS[name].fsal])
def test_steps_share_the_evaluation_where_they_meet(name: str) -> None:
    """One evaluation at the start, one for the first step's length, and then a stage less than there are a step."""
    count = solved(name, saveat=torch.linspace(0.0, 5.0, 9, dtype=F64)).stats.forward
    tableau = TABLEAUS[name]
    dense = len(tableau.dense_c) * 8
    steps = (len(tableau.c) - 1) * (count.accepted + count.rejected)
    assert steps + 2 <= count.nfe <= steps + 2 + dense


@pytest.mark.parametrize("name", ["Tsit5", "RadauIIA5", "VCABM"])
def test_only_tstops_are_stopped_at(name: str) -> None:
    stops = [0.7, 1.3, 2.9]
    saved = solved(name, saveat=stops)
    stopped = solved(name, saveat=pynode.SaveAt(steps=True), tstops=stops)
    assert set(stops) <= set(stopped.ts.tolist())
    assert not set(stops) & set(solved(name, saveat=pynode.SaveAt(steps=True)).ts.tolist())
    torch.testing.assert_close(saved.ys, stopped(torch.tensor(stops, dtype=F64)), rtol=1e-2, atol=1e-2)


CONTINUOUS = [
    pynode.BacksolveAdjoint,
    pynode.InterpolatingAdjoint,
    pynode.QuadratureAdjoint,
    pynode.GaussAdjoint,
]


@pytest.mark.parametrize("sensealg", CONTINUOUS)
def test_adjoints_have_tolerances_and_a_controller_of_their_own(sensealg) -> None:
    """Looser than the states': fewer backward evaluations, the same forward ones, an error by the looser tolerance."""
    w = torch.tensor(0.7, dtype=F64, requires_grad=True)

    def gradient(**options) -> tuple[float, pynode.Stats]:
        y0 = torch.ones(1, dtype=F64)
        sol = pynode.solve(
            lambda t, y: -w * y, y0, [0.0, 3.0], algorithm="DP5", rtol=1e-8, atol=1e-10, sensealg=sensealg(**options)
        )
        (found,) = torch.autograd.grad(sol.ys[-1].sum(), w)
        return found.item(), sol.stats

    exact = -3.0 * math.exp(-2.1)
    tight, tight_stats = gradient()
    loose, loose_stats = gradient(rtol=1e-4, atol=1e-6)
    _, controlled = gradient(controller=pynode.IController(safety=0.5))
    assert tight_stats.forward == loose_stats.forward == controlled.forward
    assert loose_stats.backward.nfe < 0.6 * tight_stats.backward.nfe
    assert controlled.backward.nfe > tight_stats.backward.nfe
    assert abs(tight - exact) < 1e-6
    assert abs(loose - exact) < 1e-2


def test_a_default_controller_follows_the_adjoints_algorithm() -> None:
    """Forward and adjoint algorithm have each the default controller of its own kind."""
    predictive = pynode.PredictiveController()
    y0 = torch.ones(2, dtype=F64)
    w = torch.tensor(0.7, dtype=F64, requires_grad=True)

    def backward(sensealg, **options) -> pynode.Counts:
        sol = pynode.solve(lambda t, y: torch.sin(w * y), y0, [0.0, 3.0], sensealg=sensealg, **options)
        sol.ys[-1].sum().backward()
        return sol.stats.backward

    inherited = backward(pynode.GaussAdjoint(algorithm="tsit5"), algorithm="VCABM")
    named = backward(pynode.GaussAdjoint(algorithm="tsit5", controller=predictive), algorithm="VCABM")
    assert inherited == named
    given = pynode.IController(safety=0.5)
    theirs = backward(pynode.GaussAdjoint(algorithm="tsit5"), algorithm="VCABM", controller=given)
    assert theirs == backward(
        pynode.GaussAdjoint(algorithm="tsit5", controller=given), algorithm="VCABM", controller=given
    )


def test_every_continuous_adjoint_says_so() -> None:
    for sensealg in CONTINUOUS:
        for name in ("rtol", "atol", "controller", "dt0"):
            assert name in sensealg.__dataclass_fields__
            assert name in sensealg.__doc__
