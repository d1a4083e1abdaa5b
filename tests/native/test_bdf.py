"""Backward differentiation formulas of variable order: orders, stiff problems against SciPy's BDF, gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from problems import BY_NAME
from scipy.integrate import solve_ivp
from torch import Tensor

import pynode
from pynode import CheckpointedAdjoint, DirectAdjoint, GaussAdjoint, ReturnCode
from pynode.native.bdf import BDF
from pynode.native.implicit import Settings
from pynode.problem import Field, Layout
from pynode.solution import Counts

F64 = torch.float64


def stepper_of(problem, most: int = 5) -> BDF:
    # As for given steps, Newton's iteration is solved to 1e-11 of the state.
    field = Field(problem.f, (), Layout(problem.y0()), Counts())
    return BDF(most, field, Settings(1e-9, 1e-9, True, "dense", True, False))


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("k", range(1, 6))
def test_the_local_error_of_order_k_falls_like_the_power_k_plus_1(k, dense):
    """From exact states on uneven steps, one step of order k; inside it the interpolant has the same order."""
    problem, errors, sizes = BY_NAME["riccati"], [], (0.1, 0.05)
    for h in sizes:
        stepper, times = stepper_of(problem), [problem.start + 1.0]
        for j in range(k + 2):
            times.append(times[-1] + h * (1.0 + 0.3 * math.sin(j + 1.0)))
        exact = problem.exact(torch.tensor(times, dtype=F64))
        stepper.begin(times[0], exact[0])
        for j in range(k + 1):
            stepper.choose(min(j + 1, k))
            y1 = stepper.attempt(times[j], times[j + 1] - times[j], exact[j])
            if j < k:
                stepper.advance(times[j + 1], exact[j + 1])
        assert not stepper.failure
        if dense:
            middle = problem.exact(torch.tensor([0.6 * times[k] + 0.4 * times[k + 1]], dtype=F64))
            errors.append((stepper.interpolate((0.4,)) - middle).abs().max().item())
        else:
            errors.append((y1 - exact[k + 1]).abs().max().item())
    assert math.log2(errors[0] / errors[1]) > k + 0.5  # a wrong weight leaves the power k at most


def van_der_pol(t, y):
    return [y[1], 1e3 * ((1 - y[0] ** 2) * y[1] - y[0])]


def robertson(t, y):
    a, b, c = 0.04 * y[0], 1e4 * y[1] * y[2], 3e7 * y[1] ** 2
    return [b - a, a - b - c, c]


def hires(t, y):
    a, b, c, d, e, f, g, h = (y[i] for i in range(8))
    fast = 280 * f * h - 1.81 * g
    return [
        -1.71 * a + 0.43 * b + 8.32 * c + 0.0007,
        1.71 * a - 8.75 * b,
        -10.03 * c + 0.43 * d + 0.035 * e,
        8.32 * b + 1.71 * c - 1.12 * d,
        -1.745 * e + 0.43 * f + 0.43 * g,
        -280 * f * h + 0.69 * d + 1.71 * e - 0.43 * f + 0.69 * g,
        fast,
        -fast,
    ]


#: Field, initial state, final time, size of the smallest component that counts.
STIFF = {
    "van der Pol": (van_der_pol, [2.0, 0.0], 2.0, 1e-3),
    "Robertson": (robertson, [1.0, 0.0, 0.0], 1e5, 1e-6),
    "HIRES": (hires, [1.0, 0, 0, 0, 0, 0, 0, 0.0057], 321.8122, 1e-4),
}


@pytest.mark.parametrize("rtol", [1e-3, pytest.param(1e-6, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", STIFF)
def test_stiff_problems_against_scipy(name, rtol):
    """Errors at the end at most three times those of SciPy's BDF, or ten tolerances where that is better; evaluations
    at most three tenths more (SciPy's counted with what its finite-difference Jacobians take)."""
    f, start, end, small = STIFF[name]
    call = {"rtol": rtol, "atol": rtol * small}
    exact = solve_ivp(f, (0.0, end), start, method="Radau", rtol=1e-11, atol=1e-11 * small).y[:, -1]
    theirs = solve_ivp(f, (0.0, end), start, method="BDF", **call)
    y0 = torch.tensor(start, dtype=F64)
    ours = pynode.solve(lambda t, y: torch.stack(f(t, y)), y0, [0.0, end], algorithm=pynode.FBDF(), **call)

    def error(y) -> float:
        return float(np.sqrt(np.mean(((y - exact) / (call["atol"] + rtol * abs(exact))) ** 2)))

    assert error(ours.ys[-1].numpy()) <= max(3.0 * error(theirs.y[:, -1]), 10.0)
    counts = ours.stats.forward
    assert counts.nfe <= 1.3 * theirs.nfev + 20
    assert counts.njac < 0.1 * counts.accepted + 20


def test_robertson_as_a_differential_algebraic_problem():
    def f(t, y):
        a, b, _ = robertson(t, y)
        return torch.stack([a, b, y.sum() - 1.0])

    mass = torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=F64))
    y0 = torch.tensor([1.0, 0.0, 0.0], dtype=F64)
    call = {"algorithm": pynode.FBDF(), "rtol": 1e-7, "atol": 1e-11}
    whole = pynode.solve(lambda t, y: torch.stack(robertson(t, y)), y0, [0.0, 1e4], **call)
    algebraic = pynode.solve(f, y0, [0.0, 1e4], mass_matrix=mass, **call)
    torch.testing.assert_close(algebraic.ys[-1], whole.ys[-1], rtol=1e-5, atol=1e-9)
    assert abs(algebraic.ys[-1].sum().item() - 1.0) < 1e-12


def test_gmres_finds_the_same_solution():
    """Diffusion on 20 points: eigenvalues down to -1760."""

    def f(t, y):
        padded = torch.nn.functional.pad(y, (1, 1))
        return 441.0 * (padded[2:] - 2.0 * y + padded[:-2]) - y**3

    y0 = torch.sin(math.pi * torch.arange(1, 21, dtype=F64) / 21)
    ends = [
        pynode.solve(f, y0, [0.0, 0.5], algorithm=pynode.FBDF(linsolve=way), rtol=1e-4, atol=1e-6)
        for way in ("dense", "gmres")
    ]
    torch.testing.assert_close(ends[0].ys[-1], ends[1].ys[-1], rtol=0, atol=1e-5)
    assert ends[1].stats.forward.nlu == 0


def f(t, y, a):
    return torch.stack([y[1] * a[0], -30.0 * torch.sin(y[0]) * a[1] - 20.0 * y[1] + torch.cos(t)])


def gradients(algorithm, sensealg, tolerance: float, **options) -> list[Tensor]:
    y0, a, t = (torch.tensor(x, dtype=F64).requires_grad_() for x in ([0.3, -0.5], [1.1, 0.8], [0.0, 0.37, 1.0]))
    call = {"rtol": tolerance, "atol": tolerance, "sensealg": sensealg, **options}
    sol = pynode.solve(f, y0, t, args=(a,), algorithm=algorithm, **call)
    return list(torch.autograd.grad((sol.ys * torch.arange(1.0, 7.0, dtype=F64).view(3, 2)).sum(), [y0, a, t]))


def test_checkpointed_gradients_are_those_of_the_tape():
    found = gradients(pynode.FBDF(), CheckpointedAdjoint(), 1e-5)
    for ours, taped in zip(found, gradients(pynode.FBDF(), DirectAdjoint(), 1e-5), strict=True):
        torch.testing.assert_close(ours, taped, rtol=0, atol=1e-11)


def test_few_checkpoints_repeat_the_same_steps():
    """With a bound every step makes its own Jacobian: so the bound itself changes nothing."""
    many = gradients(pynode.FBDF(), CheckpointedAdjoint(checkpoints=10_000), 1e-3)
    for bound in (2, 7):
        for ours, others in zip(gradients(pynode.FBDF(), CheckpointedAdjoint(bound), 1e-3), many, strict=True):
            torch.testing.assert_close(ours, others, rtol=0, atol=1e-11)


@pytest.mark.parametrize("sensealg", [CheckpointedAdjoint(), GaussAdjoint()])
def test_gradients_of_state_arguments_and_times(sensealg):
    """Against an explicit method of order 9; some 300 steps of relative error 1e-8, the sensitivities of size below 5,
    weighed by 21 in all. The first time is left out, whose derivative is that of the first step alone, of order 1."""
    exact = gradients(pynode.Vern9(), CheckpointedAdjoint(), 1e-12)
    found = gradients(pynode.FBDF(), sensealg, 1e-8)
    for ours, reference in zip(found, exact, strict=True):
        torch.testing.assert_close(ours[-2:], reference[-2:], rtol=0, atol=300 * 1e-8 * 5 * 21)


def test_the_gradient_is_that_of_the_steps_taken():
    """Central differences of a solve whose steps are held by tstops, at a tolerance that leaves an error of 1e-2 and
    accepts every step; the derivative is met to the error of Newton's iteration over the difference, 1e-9."""
    mesh = [0.025 * j for j in range(1, 20)]

    def end(y0: Tensor, a: Tensor, t0: Tensor) -> Tensor:
        t = torch.stack([t0, torch.tensor(0.5, dtype=F64)])
        options = {"rtol": 1e-1, "atol": 1e3, "dt0": 1.0, "tstops": mesh}
        sol = pynode.solve(f, y0, t, args=(a,), algorithm=_Tight(), **options)
        assert sol.stats.forward.accepted == 20
        return sol.ys[-1]

    inputs = [torch.tensor(x, dtype=F64).requires_grad_() for x in ([0.3, -0.5], [1.1, 0.8], 0.0)]
    assert torch.autograd.gradcheck(end, inputs, eps=1e-5, atol=1e-6, rtol=1e-5)


class _Tight(pynode.FBDF):
    """Named as its parent is, which the backend knows."""

    @property
    def name(self) -> str:
        return "FBDF"


@pytest.fixture(autouse=True)
def _tight(monkeypatch, request):
    """Newton's iteration to 1e-13 of the state, for differences."""
    if "steps_taken" not in request.node.name:
        return
    from pynode.native import newton

    start = newton.NewtonNorm.start

    def tightly(self, y):
        start(self, y)
        self._scale = 1e-13 * (1.0 + y.abs())
        self.kappa = 1.0

    monkeypatch.setattr(newton.NewtonNorm, "start", tightly)


def test_what_is_refused():
    call = {"algorithm": pynode.FBDF()}
    y0 = torch.ones(2, dtype=F64, requires_grad=True)
    for sensealg in (pynode.ForwardSensitivity(), pynode.BacksolveAdjoint(), pynode.ReversibleAdjoint()):
        with pytest.raises(pynode.UnsupportedError, match="FBDF"):
            pynode.solve(lambda t, y: -y, y0, [0.0, 1.0], sensealg=sensealg, **call)
    with pytest.raises(pynode.InputError, match="from 1 to 5"):
        pynode.FBDF(max_order=6)
    with pytest.raises(pynode.InputError, match="gmres"):
        pynode.FBDF(linsolve="lu")


def test_a_solution_that_blows_up_ends_with_a_message():
    sol = pynode.solve(
        lambda t, y: y**2, torch.ones(1, dtype=F64), [0.0, 2.0], algorithm=pynode.FBDF(), throw=False, max_steps=5000
    )
    assert sol.retcode in (ReturnCode.DtLessThanMin, ReturnCode.Unstable, ReturnCode.ConvergenceFailure)


def test_a_prediction_where_f_is_nan_is_rejected():
    """y' = -sqrt(y) from 1 is (1 - t/2)^2; a first step of 1.5 predicts a negative state, whose root is NaN."""
    y0 = torch.ones(1, dtype=torch.float64)
    sol = pynode.solve(lambda t, y: -y.sqrt(), y0, [0.0, 1.8], algorithm="FBDF", rtol=1e-6, atol=1e-8, dt0=1.5)
    assert sol.stats.forward.rejected >= 1
    assert sol.ys[-1].item() == pytest.approx(0.01, rel=1e-3)
