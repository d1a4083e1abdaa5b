"""AutoSwitch: stiffness found and lost again, and steps that repeat whichever method took them."""

from __future__ import annotations

import pytest
import torch

import pynode
from pynode import AutoSwitch, AutoTsit5, AutoVern7, AutoVern9, KenCarp4, Rodas5P, Rosenbrock23, Tsit5
from pynode.errors import InputError, UnsupportedError
from pynode.julia.names import expression_of, known
from pynode.native import auto_switch
from pynode.native.runge_kutta import RungeKutta
from pynode.native.stability import explicit_eigenvalue, stability_interval
from pynode.native.tableaus import TABLEAUS
from pynode.problem import ODEProblem
from pynode.sensealg import CheckpointedAdjoint, DirectAdjoint, ForwardSensitivity, GaussAdjoint
from pynode.solution import Counts

F64 = torch.float64


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


RATE = tensor(1e3)


def passing(t, y, rate=RATE):
    """Stiff for t between 1 and 2 only."""
    stiffness = 1.0 + rate * torch.sigmoid(20 * (t - 1)) * torch.sigmoid(20 * (2 - t))
    return -stiffness * (y - torch.cos(t))


PAIRS = [AutoTsit5(Rosenbrock23()), AutoVern7(Rodas5P()), AutoTsit5(KenCarp4())]


def named(algorithm) -> str:
    return f"{algorithm.nonstiff.name}-{algorithm.stiff.name}"


@pytest.fixture
def taken(monkeypatch) -> list[bool]:
    """Which of the two methods, True for the implicit one, whenever that changes."""
    seen: list[bool] = []
    take = auto_switch.AutoSwitch._take

    def watched(self, stiff, count):
        if not seen or seen[-1] != stiff:
            seen.append(stiff)
        take(self, stiff, count)

    monkeypatch.setattr(auto_switch.AutoSwitch, "_take", watched)
    return seen


# Stiffness


@pytest.mark.parametrize(("name", "interval"), [("Tsit5", 3.5068), ("DP5", 3.3066), ("Vern7", 4.64), ("Vern9", 4.4762)])
def test_stability_intervals_are_those_of_the_literature(name, interval):
    assert stability_interval(TABLEAUS[name]) == pytest.approx(interval, abs=2e-3)


@pytest.mark.parametrize("name", ["Tsit5", "DP5", "Vern7", "Vern9", "DP8"])
def test_the_eigenvalue_of_a_stiff_step(name):
    """Where one eigenvalue dominates and the step is at the limit of stability, the stages know it."""
    matrix = torch.diag(tensor(-1.0, -1000.0))
    y0 = tensor(1.0, 1e-3)
    field = ODEProblem(lambda t, y: matrix @ y, y0, [0.0, 1.0]).field(Counts())
    stepper = RungeKutta(TABLEAUS[name], field)
    stepper.begin(0.0, y0)
    h = stability_interval(TABLEAUS[name]) / 1000.0
    stepper.attempt(0.0, h, y0)
    assert explicit_eigenvalue(stepper, h) == pytest.approx(1000.0, rel=0.02)


@pytest.mark.parametrize(
    "algorithm", [AutoTsit5(Rosenbrock23()), AutoVern7(Rodas5P()), AutoTsit5(KenCarp4())], ids=named
)
def test_it_switches_both_ways(algorithm, taken):
    sol = pynode.solve(passing, tensor(1.0), [0.0, 12.0], algorithm=algorithm, rtol=1e-3, atol=1e-5)
    assert taken == [False, True, False]
    counts = sol.stats.forward
    # Tsit5 would be held to steps of 3.5e-3 for a unit of time, Vern7 to 4.6e-3.
    assert counts.accepted < 150
    assert 0 < counts.njac < counts.accepted
    exact = pynode.solve(passing, tensor(1.0), [0.0, 12.0], algorithm=pynode.Vern9(), rtol=1e-7, atol=1e-9).ys[-1]
    assert (sol.ys[-1] - exact).abs() <= counts.accepted * 2e-3


def test_without_stiffness_it_is_the_explicit_method(taken):
    def f(t, y):
        return torch.stack([1.5 * y[0] - y[0] * y[1], y[0] * y[1] - 3 * y[1]])

    t = torch.linspace(0, 5, 7, dtype=F64)
    same = {"controller": pynode.IController()}
    auto = pynode.solve(f, tensor(1.0, 1.0), t, algorithm=AutoTsit5(Rodas5P()), **same)
    plain = pynode.solve(f, tensor(1.0, 1.0), t, algorithm=Tsit5(), **same)
    assert taken == [False]
    assert torch.equal(auto.ys, plain.ys)
    assert auto.stats.forward == plain.stats.forward


def test_stiff_from_the_start(taken):
    sol = pynode.solve(
        lambda t, y: -1e6 * (y - torch.cos(t)),
        tensor(1.0),
        [0.0, 1.0],
        algorithm=AutoVern9(Rodas5P(), stiffalgfirst=True),
    )
    assert taken == [True]
    assert sol.stats.forward.njac == sol.stats.forward.accepted


def test_fewer_verdicts_switch_sooner():
    early, late = (
        pynode.solve(
            passing, tensor(1.0), [0.0, 1.5], algorithm=AutoTsit5(Rodas5P(), maxstiffstep=n), rtol=1e-4, atol=1e-6
        )
        for n in (2, 40)
    )
    assert early.stats.forward.accepted < late.stats.forward.accepted


def test_a_discontinuity_starts_anew(taken):
    pynode.solve(
        lambda t, y: torch.where(t < 1, -1e5, -1.0) * (y - 1),
        tensor(0.0),
        [0.0, 2.0],
        algorithm=AutoTsit5(Rodas5P()),
        d_discontinuities=[1.0],
    )
    assert taken == [False, True, False]


def test_dense_output_and_the_way_back_in_time():
    """A solve and its mirror image take the same steps; the derivative is that of the dense output."""
    options = {"algorithm": AutoTsit5(Rodas5P()), "rtol": 1e-3, "atol": 1e-5}
    there = pynode.solve(passing, tensor(1.0), [0.0, 3.0], **options)
    back = pynode.solve(lambda t, y: -passing(-t, y), tensor(1.0), [0.0, -3.0], **options)
    assert back.stats.forward.accepted == there.stats.forward.accepted
    torch.testing.assert_close(back.ys, there.ys, rtol=1e-9, atol=0)
    times, h = torch.linspace(0.11, 2.9, 30, dtype=F64), 1e-6
    slopes = (there(times + h) - there(times - h)) / (2 * h)
    torch.testing.assert_close(there.derivative(times), slopes, rtol=1e-4, atol=1e-4)


# Gradients


@pytest.mark.parametrize("checkpoints", [None, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("algorithm", [AutoTsit5(Rosenbrock23()), AutoVern7(KenCarp4())], ids=named)
def test_replayed_steps_are_the_steps_taken(algorithm, checkpoints, taken):
    rate = tensor(1e3).requires_grad_()
    y0 = tensor(0.5).requires_grad_()
    gradients = []
    for sensealg in (DirectAdjoint(), CheckpointedAdjoint(checkpoints)):
        taken.clear()
        sol = pynode.solve(
            lambda t, y, rate: passing(t, y, rate) + 0.1 * torch.sin(y),
            y0,
            [0.0, 1.3, 12.0],
            args=(rate,),
            algorithm=algorithm,
            rtol=1e-3,
            atol=1e-5,
            sensealg=sensealg,
        )
        assert taken == [False, True, False]
        gradients.append(torch.autograd.grad(sol.ys.square().sum(), [y0, rate]))
    # KenCarp4's stages are repeated up to the tolerance of its Newton iteration, a fraction of the solve's, which is
    # 1e-3: per unit of y0, and of the rate, 1e-6.
    atols = (0.0, 0.0) if algorithm.stiff == Rosenbrock23() else (1e-3, 1e-5)
    for a, b, atol in zip(*gradients, atols, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=atol)


@pytest.mark.slow
def test_gradients_against_those_of_another_method():
    rate = tensor(1e3).requires_grad_()

    def gradient(algorithm, sensealg, tolerance):
        sol = pynode.solve(
            lambda t, y, rate: passing(t, y, rate),
            tensor(0.5),
            [0.0, 1.5],
            args=(rate,),
            algorithm=algorithm,
            rtol=tolerance,
            atol=tolerance,
            sensealg=sensealg,
        )
        return torch.autograd.grad(1e4 * sol.ys[-1].sum(), rate)[0]

    expected = gradient(Rodas5P(), CheckpointedAdjoint(), 1e-8)
    for sensealg in (CheckpointedAdjoint(), GaussAdjoint()):
        found = gradient(AutoTsit5(Rodas5P()), sensealg, 1e-6)
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=0)


# Refusals, names


def test_what_is_refused():
    y0 = tensor(1.0).requires_grad_()
    with pytest.raises(InputError, match="implicit"):
        AutoTsit5(Tsit5())
    with pytest.raises(InputError, match="explicit"):
        AutoSwitch(pynode.RK4(), Rodas5P())
    with pytest.raises(InputError, match="implicit"):
        AutoTsit5(Rodas5P(steps=4))
    with pytest.raises(InputError, match="maxstiffstep"):
        AutoTsit5(Rodas5P(), maxstiffstep=0)
    with pytest.raises(UnsupportedError, match="two stages at one time"):
        pynode.solve(passing, y0, [0.0, 1.0], algorithm=AutoSwitch(pynode.BS3(), Rodas5P()))
    with pytest.raises(UnsupportedError, match="ForwardSensitivity"):
        pynode.solve(passing, y0, [0.0, 1.0], algorithm=AutoTsit5(Rodas5P()), sensealg=ForwardSensitivity())
    with pytest.raises(UnsupportedError, match="mass matrix"):
        mass = torch.ones(1, 1, dtype=F64)
        pynode.solve(passing, y0, [0.0, 1.0], algorithm=AutoTsit5(Rodas5P()), mass_matrix=mass)


def test_what_julia_is_told():
    options = "maxstiffstep = 10, maxnonstiffstep = 3, nonstifftol = 0.9, stifftol = 0.9, stiffalgfirst = false"
    assert expression_of(AutoTsit5(Rosenbrock23())) == f"AutoTsit5(Rosenbrock23(); {options})"
    assert expression_of(AutoVern7(Rodas5P())).startswith("AutoVern7(Rodas5P();")
    assert known(AutoTsit5(Rodas5P()))
    with pytest.raises(UnsupportedError, match="DP8"):
        expression_of(AutoSwitch(pynode.DP8(), Rodas5P()))


def test_it_is_a_value():
    assert AutoTsit5(Rodas5P()) == AutoSwitch(Tsit5(), Rodas5P())
    assert hash(AutoTsit5(Rodas5P())) == hash(AutoSwitch(Tsit5(), Rodas5P()))
    assert AutoTsit5(Rodas5P()).name == "AutoSwitch"
