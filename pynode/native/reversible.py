"""Algebraically reversible steps: explicit methods of order 2 that can be run backward to rounding.

Both carry tensors beside the state from step to step, and evaluate the field once a step. They use functional
operations only, so that the same stepper serves with and without autograd's tape.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from pynode.native.checkpoints import State
from pynode.native.dense import Piece
from pynode.native.hermite import between
from pynode.problem import Field, nudged

Measure = Callable[[Tensor, float], float]


def _plus(y: Tensor, h: Any, x: Tensor) -> Tensor:
    return y + h * x if isinstance(h, Tensor) else torch.add(y, x, alpha=h)


class Reversible(ABC):
    """What the two methods share: :class:`pynode.native.stepper.Stepper` but for the step itself.

    Parameters
    ----------
    field : Field
    interpolation : "hermite" or "linear"
        Dense output: the cubic through both ends with the slopes the method has there, or a straight line.
    """

    order = 2
    #: The estimate is the difference to Euler's step, O(h^2).
    error_order = 2
    #: Number of tensors carried.
    carries: ClassVar[int]

    def __init__(self, field: Field, interpolation: str = "hermite") -> None:
        self.field = field
        self._linear = interpolation == "linear"
        self._carried: State = ()
        self._carried_end: State = ()

    @abstractmethod
    def begin(self, t: Any, y: Tensor, derivative: Tensor | None = None, jump: float = 0.0) -> None:
        """See :class:`pynode.native.stepper.Stepper`."""

    @abstractmethod
    def attempt(self, t: Any, h: Any, y: Tensor, jump: float = 0.0, end: Any = None) -> Tensor:
        """See :class:`pynode.native.stepper.Stepper`."""

    @abstractmethod
    def reverse(self, t: float, t1: float, end: State, jump: float = 0.0, jump_end: float = 0.0) -> State:
        """See :class:`pynode.native.stepper.TwoWayStepper`."""

    @abstractmethod
    def error_ratio(self, measure: Measure) -> float:
        """See :class:`pynode.native.stepper.Stepper`."""

    def derivative(self) -> Tensor:
        return self._carried[-1]

    def resume(self, t: Any, y: Tensor, carried: State) -> None:
        self._carried = carried

    def carried(self, end: bool = False) -> State:
        return self._carried_end if end else self._carried

    def advance(self, t: Any, y: Tensor) -> None:
        self._carried = self._carried_end

    def interpolate(self, thetas: Sequence[Any], derivative: bool = False) -> Tensor:
        h, y, y1 = self._step
        slopes = None if self._linear else (self._carried[-1], self._carried_end[-1])
        return between(thetas, h, y, y1, slopes, derivative)

    def piece(self) -> Piece:
        """See :class:`pynode.native.stepper.Stepper`."""
        kept, t, h = copy.copy(self), float(self._start), float(self._step[0])
        return lambda times, field: kept.interpolate([(x - t) / h for x in times]).detach()

    def _evaluate(self, t: Any, y: Tensor, jump: float = 0.0) -> Tensor:
        time = self.field.time(t)
        derivative = self.field(nudged(time, jump) if jump else time, y)
        # Kept beyond this step, while f may write its next result into the same memory.
        return derivative if derivative.requires_grad else derivative.clone()

    def _first(self, t: Any, y: Tensor, derivative: Tensor | None, jump: float) -> Tensor:
        if derivative is not None:
            return derivative
        time = self.field.time(t)
        derivative = self.field.check_pure(nudged(time, jump) if jump else time, y)
        return derivative if derivative.requires_grad else derivative.clone()

    _start: Any
    _step: tuple[Any, Tensor, Tensor]


class ReversibleHeun(Reversible):
    """Kidger, Foster, Li and Lyons (2021), "Efficient and Accurate Gradients for Neural SDEs".

    Carries a second state ``z`` and ``f(t, z)``:
    ``z1 = 2 y - z + h f(t, z)``, ``y1 = y + h/2 (f(t, z) + f(t1, z1))``.
    """

    carries = 2

    def begin(self, t: Any, y: Tensor, derivative: Tensor | None = None, jump: float = 0.0) -> None:
        self._carried = (y, self._first(t, y, derivative, jump))

    def attempt(self, t: Any, h: Any, y: Tensor, jump: float = 0.0, end: Any = None) -> Tensor:
        z, slope = self._carried
        z1 = _plus(2 * y - z, h, slope)
        slope1 = self._evaluate(t + h if end is None else end, z1, jump)
        y1 = _plus(y, 0.5 * h, slope + slope1)
        self._carried_end = (z1, slope1)
        self._start, self._step = t, (h, y, y1)
        return y1

    def reverse(self, t: float, t1: float, end: State, jump: float = 0.0, jump_end: float = 0.0) -> State:
        y1, z1, slope1 = end
        h = t1 - t
        z = _plus(2 * y1 - z1, -h, slope1)
        slope = self._evaluate(t, z, jump)
        return _plus(y1, -0.5 * h, slope + slope1), z, slope

    def error_ratio(self, measure: Measure) -> float:
        with torch.no_grad():
            return measure(self._carried_end[1] - self._carried[1], 0.5 * float(self._step[0]))


class AsynchronousLeapfrog(Reversible):
    """Mutze (2013), "An asynchronous leapfrog method II"; Zhuang et al. (2021), "MALI".

    Carries the velocity ``v``: with ``u = f(t + h/2, y + h/2 v)``, ``y1 = y + h u`` and ``v1 = 2 u - v``.

    The velocity is the derivative up to O(h^2): with ``v = y'(t) + e``, ``u = y'(t + h/2) + O(h^2)`` and so
    ``v1 = y'(t1) - e + O(h^2)``, whose errors alternate in sign instead of adding up. Euler's step along ``v`` is
    therefore off by ``h^2/2 y''`` to leading order, which the step shows as ``h (u - v)``.
    """

    carries = 1

    def begin(self, t: Any, y: Tensor, derivative: Tensor | None = None, jump: float = 0.0) -> None:
        self._carried = (self._first(t, y, derivative, jump),)

    def attempt(self, t: Any, h: Any, y: Tensor, jump: float = 0.0, end: Any = None) -> Tensor:
        (v,) = self._carried
        u = self._evaluate(t + 0.5 * h, _plus(y, 0.5 * h, v))
        y1 = _plus(y, h, u)
        self._carried_end = (2 * u - v,)
        self._start, self._step = t, (h, y, y1)
        self._excess = u - v
        return y1

    def reverse(self, t: float, t1: float, end: State, jump: float = 0.0, jump_end: float = 0.0) -> State:
        y1, v1 = end
        h = t1 - t
        u = self._evaluate(t + 0.5 * h, _plus(y1, -0.5 * h, v1))
        return _plus(y1, -h, u), 2 * u - v1

    def error_ratio(self, measure: Measure) -> float:
        with torch.no_grad():
            return measure(self._excess.detach(), float(self._step[0]))

    _excess: Tensor


REVERSIBLE: dict[str, type[Reversible]] = {cls.__name__: cls for cls in (ReversibleHeun, AsynchronousLeapfrog)}
