"""How the error of a gradient falls with the tolerance, the step size and the options of the sensitivity algorithm.

A global error is the sum of local ones that are each proportional to the tolerance, or to ``h**(p + 1)`` in ``1 / h``
steps: the slope against the tolerance is 1, against the step size p. A slope of 1 is that of a tolerance that reaches
the gradient: at 0 nothing would control it, at 1/2 an error would enter in first order somewhere.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import pytest
import scipy.integrate
import torch
from torch import Tensor

import pynode
from pynode.sensealg import SensitivityAlgorithm

END = 4.0
CONTINUOUS: dict[str, Callable[..., SensitivityAlgorithm]] = {
    "backsolve": pynode.BacksolveAdjoint,
    "backsolve-full": functools.partial(pynode.BacksolveAdjoint, norm="full"),
    "interpolating": pynode.InterpolatingAdjoint,
    "interpolating-full": functools.partial(pynode.InterpolatingAdjoint, norm="full"),
    "interpolating-checkpointing": functools.partial(pynode.InterpolatingAdjoint, checkpointing=True),
    "quadrature": pynode.QuadratureAdjoint,
    "gauss": pynode.GaussAdjoint,
    "gauss-checkpointing": functools.partial(pynode.GaussAdjoint, checkpointing=True),
}


def _gradients(sensealg: SensitivityAlgorithm | None, **options: object) -> tuple[Tensor, Tensor, Tensor]:
    """Of y0 and of the parameters, of a driven pendulum; and the states."""
    y0 = torch.tensor([0.9, -0.4], dtype=torch.float64, requires_grad=True)
    p = torch.tensor([1.4, 0.2, 0.7], dtype=torch.float64, requires_grad=True)

    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], -p[0] * torch.sin(y[0]) - p[1] * y[1] + p[2] * torch.cos(1.5 * t)])

    t = torch.tensor([0.0, 0.4 * END, END], dtype=torch.float64)
    ys = pynode.solve(field, y0, t, sensealg=sensealg, **options).ys
    loss = (ys[1] ** 2).sum() + torch.sin(ys[2]).sum()
    return (*torch.autograd.grad(loss, [y0, p]), ys.detach())


@functools.cache
def _reference() -> tuple[Tensor, Tensor]:
    tight = _gradients(pynode.DirectAdjoint(), algorithm=pynode.Vern9(), rtol=1e-13, atol=1e-13)
    return tight[0], tight[1]


def _errors(sensealg: SensitivityAlgorithm | None, **options: object) -> list[float]:
    """Relative, of the gradients with respect to y0 and to the parameters."""
    found = _gradients(sensealg, **options)
    return [((x - y).norm() / y.norm()).item() for x, y in zip(found, _reference(), strict=False)]


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the straight line through ``(log x, log y)``, by least squares."""
    a = torch.tensor(x, dtype=torch.float64).log()
    b = torch.tensor(y, dtype=torch.float64).log()
    a, b = a - a.mean(), b - b.mean()
    return (torch.dot(a, b) / torch.dot(a, a)).item()


TOLERANCES = [10.0 ** (-4.0 - k / 2.0) for k in range(9)]


@pytest.mark.parametrize("algorithm", ["tsit5", pytest.param("dp5", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [*CONTINUOUS, "forward", "checkpointed", "direct"])
def test_the_error_is_proportional_to_the_tolerance(name, algorithm, record_property) -> None:
    make = CONTINUOUS | {
        "forward": pynode.ForwardSensitivity,
        "checkpointed": pynode.CheckpointedAdjoint,
        "direct": pynode.DirectAdjoint,
    }
    errors = [_errors(make[name](), algorithm=algorithm, rtol=tol, atol=tol) for tol in TOLERANCES]
    for what, column in zip(("y0", "params"), zip(*errors, strict=True), strict=True):
        record_property(what, slope(TOLERANCES, column))
        assert 0.75 < slope(TOLERANCES, column) < 1.35, what
        # 4 time units of about 60 steps at most, each way, and a growth of exp(0.5 * 4) = 8.
        assert all(error < 500.0 * tol for error, tol in zip(column, TOLERANCES, strict=True)), what


@pytest.mark.parametrize("name", [*CONTINUOUS, "forward", "checkpointed", "direct"])
def test_fixed_steps_converge_with_their_order(name, record_property) -> None:
    make = CONTINUOUS | {
        "forward": pynode.ForwardSensitivity,
        "checkpointed": pynode.CheckpointedAdjoint,
        "direct": pynode.DirectAdjoint,
        # Its integral has a tolerance of its own.
        "quadrature": functools.partial(pynode.QuadratureAdjoint, quadrature_rtol=1e-11, quadrature_atol=1e-12),
    }
    counts = [20, 30, 40, 60, 80]
    errors = [_errors(make[name](), algorithm=pynode.RK4(steps=n)) for n in counts]
    for what, column in zip(("y0", "params"), zip(*errors, strict=True), strict=True):
        found = -slope([float(n) for n in counts], column)
        record_property(what, found)
        # The next term of the error is h = 4 / 40 of the first: a slope is off by some tenth of its order.
        assert 3.6 < found < 4.6, what


# -------------------------------------------------------------------------------------------------- exact for the steps


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-6, 1e-8, 1e-10])
@pytest.mark.parametrize("algorithm", ["tsit5", "vern7"])
def test_checkpointed_gradients_are_those_of_the_tape_at_every_tolerance(algorithm, tolerance) -> None:
    # The elementary controller passes on least of how differently the two round their errors.
    options = {"algorithm": algorithm, "rtol": tolerance, "atol": tolerance, "controller": pynode.IController()}
    tape = _gradients(pynode.DirectAdjoint(), **options)
    for bounds in ({}, {"checkpoints": 2}, {"checkpoints": 5}, {"max_memory": 2**12}):
        if bounds == {"checkpoints": 2} and tolerance < 1e-6:
            continue  # a step is repeated as often as there are others
        found = _gradients(pynode.CheckpointedAdjoint(**bounds), **options)
        # Some 1e3 steps' roundings, and not one digit of the tolerance.
        for x, y in zip(found, tape, strict=True):
            assert (x - y).norm() < 1e-12 * y.norm(), bounds


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("cls", [pynode.ReversibleHeun, pynode.AsynchronousLeapfrog])
def test_reversible_gradients_are_those_of_the_tape_at_every_tolerance(cls, tolerance) -> None:
    options = {"algorithm": cls(adaptive=True), "rtol": tolerance, "atol": tolerance}
    tape = _gradients(pynode.DirectAdjoint(), **options)
    for sensealg in (pynode.ReversibleAdjoint(), pynode.CheckpointedAdjoint(checkpoints=4)):
        # Rounding is amplified by exp(|df/dy| * 4) = exp(1.2 * 4) at most, over a thousand steps: 120 * 1e3 * 1e-16.
        for x, y in zip(_gradients(sensealg, **options), tape, strict=True):
            assert (x - y).norm() < 1e-10 * y.norm()


# ------------------------------------------------------------------------------------ tolerances and nodes of integrals


def test_the_quadrature_tolerance_alone_controls_the_integral() -> None:
    """``y' = -y / 2 + p / (1 + 1e4 (t - 1)**2)``: the adjoint is an exponential, ``df/dp`` a peak of width 1/100."""
    peak = lambda t: 1.0 / (1.0 + 1e4 * (t - 1.0) ** 2)  # noqa: E731
    exact, _ = scipy.integrate.quad(
        lambda t: math.exp(-0.5 * (END - t)) * peak(t), 0.0, END, points=[0.9, 1.0, 1.1], epsrel=1e-12, limit=500
    )
    errors, evaluations = [], []
    tolerances = [10.0, 1e-2, 1e-4, 1e-6, 1e-8]
    for tol in tolerances:
        y0 = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
        p = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        sensealg = pynode.QuadratureAdjoint(quadrature_rtol=tol, quadrature_atol=0.0)
        sol = pynode.solve(
            lambda t, y, p=p: -0.5 * y + p * peak(t), y0, (0.0, END), rtol=1e-10, atol=1e-10, sensealg=sensealg
        )
        sol.ys[-1].sum().backward()
        assert abs(y0.grad.item() - math.exp(-0.5 * END)) < 1e-8  # the adjoint keeps the solve's own tolerance
        assert abs(p.grad.item() / exact - 1.0) < tol + 1e-8
        errors.append(abs(p.grad.item() / exact - 1.0))
        evaluations.append(sol.stats.backward.nfe)
    # Nothing but this tolerance moved: rules of 15 points over many steps are too coarse for the peak, more are not.
    assert errors[0] > 1e-3
    assert evaluations == sorted(evaluations)
    assert evaluations[0] < evaluations[2] < evaluations[4]


def test_a_tight_quadrature_does_not_mend_a_loose_adjoint() -> None:
    sensealg = pynode.QuadratureAdjoint(rtol=1e-3, atol=1e-3, quadrature_rtol=1e-12, quadrature_atol=1e-12)
    of_y0, of_params = _errors(sensealg, algorithm="dp5", rtol=1e-11, atol=1e-11)
    assert 1e-7 < of_y0 < 0.1
    assert 1e-7 < of_params < 0.1


@pytest.mark.parametrize(("nodes", "order"), [(1, 2), (2, 4), (3, 6)])
def test_gauss_quadrature_converges_at_the_order_of_its_nodes(nodes, order, record_property) -> None:
    counts = [10, 14, 20, 28, 40]
    errors = []
    for count in counts:
        # Steps of one size: of an adjoint whose own error, of order 9, is far below that of the quadrature.
        h = END / count
        sensealg = pynode.GaussAdjoint(nodes=nodes, algorithm="vern9", rtol=1.0, atol=1.0, dt0=h, dtmax=h)
        of_y0, of_params = _errors(sensealg, algorithm="vern9", rtol=1e-13, atol=1e-13)
        assert of_y0 < 1e-9
        errors.append(of_params)
    found = -slope([float(n) for n in counts], errors)
    record_property("slope", found)
    assert abs(found - order) < 0.1 * order + 0.2


def test_slope() -> None:
    assert math.isclose(slope([1.0, 10.0, 100.0], [3.0, 300.0, 30000.0]), 2.0)
