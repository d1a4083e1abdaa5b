"""Ordinary differential equations with analytic solutions, shared by the tests.

``PROBLEMS`` holds each equation in both directions of time: ``BY_NAME["gaussian"]`` runs from its first time to its
last, ``BY_NAME["gaussian:reversed"]`` back again. ``every_problem`` parametrises a test over all of them.

``growth`` bounds how much a perturbation of the solution is amplified over any part of the time span,
``max |dy(t)/dy(s)|`` over ``s`` before ``t``. A solver that keeps every local error below a tolerance keeps the global
error below (number of steps) * growth * tolerance, which is the bound the tests use.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """``y' = f(t, y)`` from time ``start`` to ``end`` with solution ``exact``.

    Attributes
    ----------
    f : callable
        Works in every precision.
    start, end : float
    exact : callable
        ``exact(t)`` with ``t`` of shape (T,) in float64: states (T, *shape), in float64 or complex128.
    growth : float
        See the module's docstring.
    growth_back : float
        The same for the reversed problem.
    """

    name: str
    f: Callable[[Tensor, Tensor], Tensor]
    start: float
    end: float
    exact: Callable[[Tensor], Tensor]
    growth: float
    growth_back: float

    def y0(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Initial state, in ``dtype`` or the complex dtype of the same precision."""
        state = self.exact(torch.tensor([self.start], dtype=torch.float64))[0]
        return state.to(dtype.to_complex() if state.is_complex() else dtype)

    def times(self, count: int = 2) -> Tensor:
        """Equally spaced times over the span, in float64."""
        return torch.linspace(self.start, self.end, count, dtype=torch.float64)

    def reversed(self) -> Problem:
        """The same equation solved from its end to its start."""
        return replace(
            self,
            name=f"{self.name}:reversed",
            start=self.end,
            end=self.start,
            growth=self.growth_back,
            growth_back=self.growth,
        )

    def error(self, times: Tensor, states: Tensor) -> float:
        """Largest deviation of ``states`` at ``times`` from the solution."""
        return (states - self.exact(times.double())).abs().max().item()


_MATRIX = torch.tensor([[-1.0, 3.0], [0.0, -2.0]], dtype=torch.float64)
_START = torch.tensor([1.0, -2.0], dtype=torch.float64)
_PHASES = torch.tensor([[1.0, 1.0j], [0.6 + 0.8j, -1.0]], dtype=torch.complex128)
_SHIFTS = torch.tensor([0.0, 1.0, 2.5], dtype=torch.float64)


def _u_exp_u(u: Tensor) -> Tensor:
    return u * torch.exp(u - 1.0)


def _propagators(matrix: Tensor, span: float) -> float:
    """``max ||exp(s A)||`` over ``s`` in [0, span]."""
    lengths = torch.linspace(0.0, span, 101, dtype=torch.float64)[:, None, None]
    return torch.linalg.matrix_norm(torch.linalg.matrix_exp(lengths * matrix), 2).max().item()


_FORWARD = (
    # dy(t)/dy(s) = exp(-(t - s) / 2).
    Problem(
        "exponential",
        lambda t, y: -0.5 * y,
        0.0,
        2.0,
        lambda t: torch.exp(-0.5 * t)[:, None] * _START,
        1.0,
        math.e,
    ),
    # A matrix that is not normal: perturbations grow before they decay.
    Problem(
        "linear",
        lambda t, y: _MATRIX.to(y) @ y,
        0.0,
        1.5,
        lambda t: torch.linalg.matrix_exp(t[:, None, None] * _MATRIX) @ _START,
        _propagators(_MATRIX, 1.5),
        _propagators(-_MATRIX, 1.5),
    ),
    # A rotation by the angle 2 t.
    Problem(
        "oscillator",
        lambda t, y: torch.stack([2.0 * y[1], -2.0 * y[0]]),
        -1.0,
        2.0,
        lambda t: torch.stack([torch.cos(2.0 * t), -torch.sin(2.0 * t)], dim=1),
        1.0,
        1.0,
    ),
    # dy(t)/dy(s) = y'(t) / y'(s), with y' = y (1 - y) <= 1/4 and y(0) = 1/10, y(4) = 0.858.
    Problem(
        "logistic",
        lambda t, y: y * (1.0 - y),
        0.0,
        4.0,
        lambda t: 1.0 / (1.0 + 9.0 * torch.exp(-t)),
        0.25 / 0.09,
        0.25 / 0.122,
    ),
    # dy(t)/dy(s) = exp(s^2 - t^2).
    Problem(
        "gaussian",
        lambda t, y: -2.0 * t * y,
        -1.0,
        1.5,
        lambda t: torch.exp(-(t**2))[:, None, None] * torch.tensor([[1.0, -0.5, 2.0]], dtype=torch.float64),
        math.e,
        math.exp(2.25),
    ),
    # dy(t)/dy(s) = exp(sin t - sin s).
    Problem(
        "modulated",
        lambda t, y: torch.cos(t) * y,
        0.0,
        5.0,
        lambda t: torch.exp(torch.sin(t))[:, None],
        math.e,
        math.e**2,
    ),
    # Complex: unitary.
    Problem(
        "rotation",
        lambda t, y: 3.0j * y,
        0.0,
        2.0,
        lambda t: torch.exp(3.0j * t)[:, None, None] * _PHASES,
        1.0,
        1.0,
    ),
    # Nonlinear and non-autonomous, at three phases: dy(t)/dy(s) = (y(t) / y(s))^2 with 1/3 <= y <= 1.
    Problem(
        "riccati",
        lambda t, y: torch.cos(t + _SHIFTS.to(y)) * y**2,
        0.0,
        4.0,
        lambda t: 1.0 / (2.0 - torch.sin(t[:, None] + _SHIFTS)),
        9.0,
        9.0,
    ),
    # The same, with an entire solution: dy(t)/dy(s) = exp(2 sin s - 2 sin t) at each phase.
    Problem(
        "tracking",
        lambda t, y: torch.cos(t + _SHIFTS.to(y)) * _u_exp_u(1.0 + torch.sin(t + _SHIFTS.to(y)) - y),
        0.0,
        4.0,
        lambda t: torch.sin(t[:, None] + _SHIFTS),
        math.exp(4.0),
        math.exp(4.0),
    ),
)

PROBLEMS = (*_FORWARD, *(problem.reversed() for problem in _FORWARD))
BY_NAME = {problem.name: problem for problem in PROBLEMS}

every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=BY_NAME)
both_directions = pytest.mark.parametrize("sign", [1.0, -1.0], ids=["forward", "reversed"])


class Counting:
    """A field that counts its calls itself, and remembers the times at which it was called."""

    def __init__(self, f: Callable[..., object]) -> None:
        self.f = f
        self.times: list[float] = []

    def __call__(self, t: Tensor, y: object, *args: object) -> object:
        self.times.append(t.item())
        return self.f(t, y, *args)

    @property
    def calls(self) -> int:
        return len(self.times)
