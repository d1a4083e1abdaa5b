"""Steps of one of two methods, as the stiffness of the problem asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.algorithms.auto_switch import AutoSwitch as Options
from pynode.native.checkpoints import State
from pynode.native.dense import Piece
from pynode.native.error_norm import ErrorNorm
from pynode.native.runge_kutta import RungeKutta, TapedRungeKutta
from pynode.native.spectral_radius import spectral_radius
from pynode.native.stability import explicit_eigenvalue, stability_interval
from pynode.native.stepper import Stepper
from pynode.problem import Field
from pynode.transforms import number


class AutoSwitch:
    """A stepper (:class:`pynode.native.stepper.Stepper`) over two others.

    Carried from step to step, so that a step can be repeated: which method takes it and the count of successive
    verdicts, in one tensor, and behind it what that method itself carries. The verdict on a step is a function of the
    step alone.

    Parameters
    ----------
    options : pynode.algorithms.AutoSwitch
    explicit : RungeKutta or TapedRungeKutta
    implicit : Stepper
    taped : bool
    """

    order: int
    error_order: int

    def __init__(
        self, options: Options, explicit: RungeKutta | TapedRungeKutta, implicit: Stepper, taped: bool
    ) -> None:
        self.field: Field = explicit.field
        self._options, self._taped = options, taped
        self._explicit, self._implicit = explicit, implicit
        self._interval = stability_interval(explicit.coefficients.tableau)
        self._take(options.stiffalgfirst, 0)
        self._next: tuple[bool, int] | None = None
        self._judged = False

    # The method at hand

    @property
    def leaves(self) -> Sequence[Tensor]:
        return getattr(self._method, "leaves", ())

    @property
    def untaped(self) -> int:
        return getattr(self._method, "untaped", 0)

    @property
    def repeats(self) -> float:
        return getattr(self._method, "repeats", 0.0)

    @property
    def failure(self) -> str:
        return getattr(self._method, "failure", "")

    # Steps

    def begin(self, t: Any, y: Tensor, derivative: Tensor | None = None, jump: float = 0.0) -> None:
        self._take(self._options.stiffalgfirst, 0)
        self._method.begin(t, y, derivative, jump)

    def resume(self, t: Any, y: Tensor, carried: State) -> None:
        stiff, count = carried[0].tolist()
        self._take(bool(stiff), int(count))
        if carried[1:]:
            self._method.resume(t, y, carried[1:])
        else:
            self._method.begin(t, y)

    def advance(self, t: Any, y: Tensor) -> None:
        stiff, count = self._verdict()
        if stiff == self._stiff:
            self._method.advance(t, y)
            self._take(stiff, count)
        else:
            self._take(stiff, count)
            self._method.begin(t, y)

    def carried(self, end: bool = False) -> State:
        if not end:
            return (_mode(self._stiff, self._count), *self._method.carried())
        if self._taped and not self._judged:
            # Repeated for its gradient: what follows is known, and the verdict would cost evaluations.
            return (_mode(self._stiff, self._count), *self._method.carried(end=True))
        stiff, count = self._verdict()
        return (_mode(stiff, count), *(self._method.carried(end=True) if stiff == self._stiff else ()))

    def derivative(self) -> Tensor:
        return self._method.derivative()

    def attempt(self, t: Any, h: Any, y: Tensor, jump: float = 0.0, end: Any = None) -> Tensor:
        self._next, self._judged = None, False
        self._step = (t, h, y)
        return self._method.attempt(t, h, y, jump, end)

    def error_ratio(self, measure: ErrorNorm) -> float:
        self._judged = True
        ratio = self._method.error_ratio(measure)
        self.error_order = self._method.error_order  # of methods that change theirs
        return ratio

    def interpolate(self, thetas: Sequence[Any], derivative: bool = False) -> Tensor:
        return self._method.interpolate(thetas, derivative)

    def piece(self) -> Piece:
        """See :class:`pynode.native.stepper.Stepper`."""
        return self._method.piece()

    # Which method

    def _take(self, stiff: bool, count: int) -> None:
        self._stiff, self._count = stiff, count
        self._method: Stepper = self._implicit if stiff else self._explicit
        self.order, self.error_order = self._method.order, self._method.error_order

    def _verdict(self) -> tuple[bool, int]:
        """Which method takes the next step, and the count of successive verdicts: positive of stiff steps, negative of
        others."""
        if self._next is None:
            options, h = self._options, abs(number(self._step[1]))
            tolerance = options.stifftol if self._stiff else options.nonstifftol
            if not h * self._eigenvalue() <= tolerance * self._interval:  # also NaN
                count = max(self._count, 0) + 1
            else:
                count = min(self._count, 0) - 1
            stiff = self._stiff
            if not stiff and count > options.maxstiffstep:
                stiff = True
            elif stiff and count < -options.maxnonstiffstep:
                stiff = False
            self._next = stiff, count
        return self._next

    def _eigenvalue(self) -> float:
        t, h, y = self._step
        if not self._stiff:
            return explicit_eigenvalue(self._explicit, number(h))
        known = getattr(self._implicit, "jacobian_norm", None)
        if known is not None:
            norm: float = known()
            return norm
        with torch.no_grad():
            time, y = self.field.time(t).detach(), y.detach()
            return spectral_radius(lambda state: self.field(time, state), y, self.field(time, y).clone())[1]

    _step: tuple[Any, Any, Tensor]


def _mode(stiff: bool, count: int) -> Tensor:
    return torch.tensor([float(stiff), float(count)], dtype=torch.float64)
