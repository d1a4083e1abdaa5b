"""Adams methods of variable step and order: errors, orders, dense output, gradients, against LSODA."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from problems import BY_NAME, every_problem
from scipy.integrate import solve_ivp
from torch import Tensor

import pynode
from pynode import CheckpointedAdjoint, DirectAdjoint, ForwardSensitivity, GaussAdjoint
from pynode.controllers import IController
from pynode.native.error_norm import ErrorNorm
from pynode.native.history import newton_basis
from pynode.native.loop import Nothing, Stepping, integrate_adaptive, integrate_fixed
from pynode.native.vcabm import VCABM
from pynode.problem import Field, Layout
from pynode.solution import Counts

F64 = torch.float64


@every_problem
@pytest.mark.parametrize("tolerance", [1e-4, 1e-7, 1e-10])
def test_the_error_is_bounded_by_the_tolerance(problem, tolerance):
    """As for the Runge-Kutta methods in test_solve.py: N steps, each with an error of at most the tolerance."""
    call = {"algorithm": pynode.VCABM(), "rtol": tolerance, "atol": tolerance}
    sol = pynode.solve(problem.f, problem.y0(), problem.times(3), **call)
    size = 1.0 + problem.exact(problem.times(50)).abs().max().item()
    per_step = tolerance * size * problem.y0().numel() ** 0.5
    assert problem.error(sol.ts, sol.ys) <= sol.stats.forward.accepted * problem.growth * per_step


class _AtOrder(VCABM):
    """The method of one order: raised as fast as it can be, and held there."""

    def __init__(self, k: int, field: Field) -> None:
        super().__init__(12, field)
        self.k = k

    def advance(self, t, y):
        super().advance(t, y)
        self.choose(min(self.k, len(self._differences)))


class _Errors:
    def __init__(self, problem, skip: int) -> None:
        self.problem, self.skip, self.times, self.values = problem, skip, [], []

    def accept(self, stepper, t, t1, y, y1):
        if self.skip:
            self.skip -= 1
            return
        self.times += [t + theta * (t1 - t) for theta in (0.3, 0.8)]
        self.values.append(stepper.interpolate((0.3, 0.8)))


@pytest.mark.parametrize("k", range(1, 9))
def test_the_local_error_of_order_k_falls_like_the_power_k_plus_2(k):
    """From exact states and evaluations on uneven steps, one step of order k: the corrector is of order k + 1. A wrong
    weight leaves the power k + 1 at most."""
    problem, errors, sizes = BY_NAME["riccati"], [], (0.1, 0.05)
    for h in sizes:
        field = Field(problem.f, (), Layout(problem.y0()), Counts())
        stepper = _AtOrder(k, field)
        times, t = [], problem.start + 1.0
        for j in range(k + 1):
            times.append(t)
            t += h * (1.0 + 0.3 * math.sin(j + 1.0))
        exact = problem.exact(torch.tensor([*times, t], dtype=F64))
        stepper.begin(times[0], exact[0])
        for j in range(k):
            stepper.attempt(times[j], times[j + 1] - times[j], exact[j])
            stepper.advance(times[j + 1], exact[j + 1])
        y1 = stepper.attempt(times[k], t - times[k], exact[k])
        assert stepper.choice() == k
        errors.append((y1 - exact[k + 1]).abs().max().item())
    assert math.log2(errors[0] / errors[1]) > k + 1.5


@pytest.mark.parametrize("k", range(1, 6))
def test_dense_output_has_the_order_of_the_step(k):
    """Inside steps as at their ends, O(h^(k+1)) behind the steps that raise the order. Those are much shorter here, or
    what they leave would hide it."""
    problem, errors, counts = BY_NAME["riccati"], [], (60, 120)
    for n in counts:
        field = Field(problem.f, (), Layout(problem.y0()), Counts())
        whole = problem.times(n + 1).tolist()
        # A geometric first step: from 2^-40 of it up.
        first = [whole[0] + (whole[1] - whole[0]) * 2.0**-j for j in range(40, 0, -1)]
        recorder = _Errors(problem, 41 + k)
        mesh = [whole[0], *first, *whole[1:]]
        integrate_fixed(_AtOrder(k, field), problem.y0(), mesh, recorder, Counts(), max_steps=1000)
        exact = problem.exact(torch.tensor(recorder.times, dtype=F64))
        errors.append((torch.cat(recorder.values) - exact).square().mean().sqrt().item())
    assert abs(math.log2(errors[0] / errors[1]) - (k + 1)) < 0.5


def test_the_order_follows_the_tolerance():
    """High ones at tight tolerances, lower ones at loose; ``max_order`` bounds them, and few orders need more steps."""
    problem, found = BY_NAME["modulated"], {}
    for tolerance, most in ((1e-3, 12), (1e-12, 12), (1e-12, 4)):
        stepper_orders = []

        class Watched(VCABM):
            def advance(self, t, y, into=stepper_orders):
                into.append(self.choice())
                super().advance(t, y)

        field = Field(problem.f, (), Layout(problem.y0()), Counts())
        stepping = Stepping(lambda tol=tolerance: ErrorNorm(tol, tol), IController(), 10_000)
        start, end = problem.times().tolist()
        integrate_adaptive(Watched(most, field), problem.y0(), start, end, Nothing(), Counts(), stepping)
        found[tolerance, most] = max(stepper_orders), len(stepper_orders)
    assert found[1e-3, 12][0] < found[1e-12, 12][0] - 2
    assert found[1e-12, 4][0] == 4
    assert found[1e-12, 4][1] > 2 * found[1e-12, 12][1]


def kepler(t, y):
    cube = (y[0] ** 2 + y[1] ** 2) ** 1.5
    return [y[2], y[3], -y[0] / cube, -y[1] / cube]


#: Of DETEST (Hull et al. 1972), at (0, 20): name, field, initial state.
DETEST = {
    "A1": (lambda t, y: [-y[0]], [1.0]),
    "A2": (lambda t, y: [-0.5 * y[0] ** 3], [1.0]),
    "A3": (lambda t, y: [y[0] * (torch if isinstance(t, Tensor) else np).cos(t)], [1.0]),
    "A4": (lambda t, y: [0.25 * y[0] * (1.0 - 0.05 * y[0])], [1.0]),
    "B1": (lambda t, y: [2.0 * (y[0] - y[0] * y[1]), y[0] * y[1] - y[1]], [1.0, 3.0]),
    "B2": (lambda t, y: [-y[0] + y[1], y[0] - 2 * y[1] + y[2], y[1] - y[2]], [2.0, 0.0, 1.0]),
    "B3": (lambda t, y: [-y[0], y[0] - y[1] ** 2, y[1] ** 2], [1.0, 0.0, 0.0]),
    "B5": (lambda t, y: [y[1] * y[2], -y[0] * y[2], -0.51 * y[0] * y[1]], [0.0, 1.0, 1.0]),
    "D1": (kepler, [0.9, 0.0, 0.0, math.sqrt(1.1 / 0.9)]),
    "D3": (kepler, [0.5, 0.0, 0.0, math.sqrt(1.5 / 0.5)]),
    "E2": (lambda t, y: [y[1], (1 - y[0] ** 2) * y[1] - y[0]], [2.0, 0.0]),
}


@pytest.mark.parametrize("tolerance", [1e-4, 1e-8])
@pytest.mark.parametrize("name", DETEST)
def test_detest_problems_against_lsoda(name, tolerance):
    """Errors at the end at most four times LSODA's, or ten times the tolerance where LSODA is better than that; no
    more evaluations than LSODA's and a tenth (LSODA's own Jacobians not among them)."""
    f, start = DETEST[name]
    span, call = (0.0, 20.0), {"rtol": tolerance, "atol": tolerance}
    exact = solve_ivp(f, span, start, method="DOP853", rtol=1e-13, atol=1e-14).y[:, -1]
    theirs = solve_ivp(f, span, start, method="LSODA", **call)
    y0 = torch.tensor(start, dtype=F64)
    ours = pynode.solve(lambda t, y: torch.stack(f(t, y)), y0, list(span), algorithm=pynode.VCABM(), **call)

    def error(y) -> float:
        return float(np.sqrt(np.mean(((y - exact) / (tolerance * (1.0 + abs(exact)))) ** 2)))

    assert error(ours.ys[-1].numpy()) <= max(4.0 * error(theirs.y[:, -1]), 10.0)
    assert ours.stats.forward.nfe <= 1.1 * theirs.nfev + 20


def f(t, y, a):
    return torch.stack([y[1] * a[0], -torch.sin(y[0]) * a[1] + torch.cos(t)])


def inputs() -> list[Tensor]:
    return [torch.tensor(x, dtype=F64).requires_grad_() for x in ([0.3, -0.5], [1.1, 0.8], [0.0, 0.37, 1.0])]


def gradients(algorithm, sensealg, tolerance: float, **options) -> list[Tensor]:
    y0, a, t = inputs()
    call = {"rtol": tolerance, "atol": tolerance, "sensealg": sensealg, **options}
    ys = pynode.solve(f, y0, t, args=(a,), algorithm=algorithm, **call).ys
    return list(torch.autograd.grad((ys * torch.arange(1.0, 7.0, dtype=F64).view(3, 2)).sum(), [y0, a, t]))


@pytest.mark.parametrize("checkpoints", [None, 2, 6])
def test_checkpointed_gradients_are_those_of_the_tape(checkpoints):
    """Steps repeated with the orders that were chosen: the same sums in another order."""
    found = gradients(pynode.VCABM(), CheckpointedAdjoint(checkpoints), 1e-8)
    for ours, taped in zip(found, gradients(pynode.VCABM(), DirectAdjoint(), 1e-8), strict=True):
        torch.testing.assert_close(ours, taped, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "sensealg", [CheckpointedAdjoint(), ForwardSensitivity(), GaussAdjoint(), pynode.BacksolveAdjoint()]
)
def test_gradients_of_state_arguments_and_times(sensealg):
    """Against an explicit method of order 9 at a tolerance of 1e-12: 100 steps with errors of 1e-10 in sensitivities of
    size below 10, weighed by 21 in all."""
    exact = gradients(pynode.Vern9(), CheckpointedAdjoint(), 1e-12)
    found = gradients(pynode.VCABM(), sensealg, 1e-10)
    for ours, reference in zip(found, exact, strict=True):
        torch.testing.assert_close(ours, reference, rtol=0, atol=100 * 1e-10 * 10 * 21)


def test_the_gradient_of_the_first_time_goes_through_the_history():
    """The first step's length is what the weights of later ones depend on: by central differences, with the boundaries
    behind the first one held by tstops."""
    mesh = [0.05 * j for j in range(1, 10)]

    def end(t0: Tensor) -> Tensor:
        y0, a, _ = inputs()
        options = {"rtol": 1e-1, "atol": 1e-1, "dt0": 1.0, "tstops": mesh, "controller": pynode.IController(safety=1.0)}
        t = torch.stack([t0, torch.tensor(0.5, dtype=F64)])
        return pynode.solve(f, y0, t, args=(a,), algorithm=pynode.VCABM(), **options).ys[-1].sum()

    t0 = torch.tensor(0.0, dtype=F64, requires_grad=True)
    (found,) = torch.autograd.grad(end(t0), t0)
    with torch.no_grad():
        difference = (end(t0 + 1e-5) - end(t0 - 1e-5)) / 2e-5
    torch.testing.assert_close(found, difference, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
def test_other_precisions(dtype):
    problem = BY_NAME["rotation" if dtype.is_complex else "modulated"]
    y0 = problem.y0(dtype if not dtype.is_complex else F64)
    sol = pynode.solve(problem.f, y0, problem.times(), algorithm="vcabm", rtol=1e-5, atol=1e-5)
    assert sol.ys.dtype == y0.dtype
    assert problem.error(sol.ts, sol.ys) < 1e-3


def test_a_jump_is_stepped_over_anew():
    jump = lambda t, y: torch.where(t < 1.0, 1.0, -2.0) * y  # noqa: E731
    call = {"algorithm": pynode.VCABM(), "rtol": 1e-8, "atol": 1e-8}
    y0 = torch.ones(1, dtype=F64)
    sol = pynode.solve(jump, y0, [0.0, 2.0], d_discontinuities=[1.0], **call)
    assert abs(sol.ys[-1].item() - math.exp(-1.0)) < 1e-6
    blind = pynode.solve(jump, y0, [0.0, 2.0], **call)
    assert blind.stats.forward.rejected > sol.stats.forward.rejected


def test_a_stiff_problem_is_named():
    with pytest.raises(pynode.SolveError, match="stiff"):
        pynode.solve(
            lambda t, y: -1e6 * (y - torch.cos(t)),
            torch.ones(1, dtype=F64),
            [0.0, 10.0],
            algorithm=pynode.VCABM(),
            max_steps=3000,
        )


@pytest.mark.parametrize("order", [0, 13, 2.5, True])
def test_orders_that_make_no_sense_are_refused(order):
    with pytest.raises(pynode.InputError, match="from 1 to 12"):
        pynode.VCABM(max_order=order)


def test_the_basis_vanishes_at_past_steps_and_is_one_at_the_end():
    distances = [0.0, 0.7, 1.9, 2.0]
    for j, row in enumerate(newton_basis(distances)):
        assert abs(sum(row) - 1.0) < 1e-15
        for s in distances[:j]:
            assert abs(sum(c * (-s) ** i for i, c in enumerate(row))) < 1e-14
