"""Algebraically reversible steps: explicit methods of order 2 that can be run backward to rounding.

Both carry tensors beside the state from step to step, and evaluate the field once a step. They use functional
operations only, so that the same stepper serves with and without autograd's tape.
"""

from __future__ import annotations

import copy
import functools
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
Evaluate = Callable[[Any, Tensor], Tensor]


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
    #: Whether the field is evaluated at the ends of steps, where it may jump, and not between them.
    at_ends: ClassVar[bool]

    def __init__(self, field: Field, interpolation: str = "hermite") -> None:
        self.field = field
        self._linear = interpolation == "linear"
        self._carried: State = ()
        self._carried_end: State = ()

    @staticmethod
    @abstractmethod
    def step(f: Evaluate, t: Any, t1: Any, h: Any, start: State) -> State:
        """State and carried tensors at ``t1`` from those at ``t``, by one evaluation ``f(time, y)``."""

    @staticmethod
    @abstractmethod
    def back(f: Evaluate, t: Any, t1: Any, h: Any, end: State) -> State:
        """Those at ``t`` from those at ``t1``; ``h = t1 - t``."""

    @abstractmethod
    def begin(self, t: Any, y: Tensor, derivative: Tensor | None = None, jump: float = 0.0) -> None:
        """See :class:`pynode.native.stepper.Stepper`."""

    def attempt(self, t: Any, h: Any, y: Tensor, jump: float = 0.0, end: Any = None) -> Tensor:
        """See :class:`pynode.native.stepper.Stepper`."""
        return self._attempted(t, h, y, self.step(self._at(jump), t, t + h if end is None else end, h, self._whole(y)))

    def reverse(self, t: float, t1: float, end: State, jump: float = 0.0, jump_end: float = 0.0) -> State:
        """See :class:`pynode.native.stepper.TwoWayStepper`."""
        return self.back(self._at(jump), t, t1, t1 - t, end)

    def error_ratio(self, measure: Measure) -> float:
        """See :class:`pynode.native.stepper.Stepper`. The last of what is carried is the derivative or near it."""
        with torch.no_grad():
            return measure(self._carried_end[-1] - self._carried[-1], 0.5 * float(self._step[0]))

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

    def _whole(self, y: Tensor) -> State:
        """State and carried tensors at the start of a step."""
        return (y, *self._carried)

    def _attempted(self, t: Any, h: Any, y: Tensor, end: State) -> Tensor:
        """The state of ``end``, which is kept as that of a step."""
        y1, *carried = end
        self._carried_end = tuple(carried)
        self._start, self._step = t, (h, y, y1)
        return y1

    def _at(self, jump: float) -> Evaluate:
        """Evaluations of a step one end of which lies at a jump."""
        return functools.partial(self._evaluate, jump=jump) if jump and self.at_ends else self._evaluate

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
    at_ends = True

    def begin(self, t: Any, y: Tensor, derivative: Tensor | None = None, jump: float = 0.0) -> None:
        self._carried = (y, self._first(t, y, derivative, jump))

    @staticmethod
    def step(f: Evaluate, t: Any, t1: Any, h: Any, start: State) -> State:
        y, z, slope = start
        z1 = _plus(2 * y - z, h, slope)
        slope1 = f(t1, z1)
        return _plus(y, 0.5 * h, slope + slope1), z1, slope1

    @staticmethod
    def back(f: Evaluate, t: Any, t1: Any, h: Any, end: State) -> State:
        y1, z1, slope1 = end
        z = _plus(2 * y1 - z1, -h, slope1)
        slope = f(t, z)
        return _plus(y1, -0.5 * h, slope + slope1), z, slope


class AsynchronousLeapfrog(Reversible):
    """Mutze (2013), "An asynchronous leapfrog method II"; Zhuang et al. (2021), "MALI".

    Carries the velocity ``v``: with ``u = f(t + h/2, y + h/2 v)``, ``y1 = y + h u`` and ``v1 = 2 u - v``.

    The velocity is the derivative up to O(h^2): with ``v = y'(t) + e``, ``u = y'(t + h/2) + O(h^2)`` and so
    ``v1 = y'(t1) - e + O(h^2)``, whose errors alternate in sign instead of adding up. Euler's step along ``v`` is
    therefore off by ``h^2/2 y''`` to leading order, which the step shows as ``h (u - v) = h/2 (v1 - v)``.
    """

    carries = 1
    at_ends = False

    def begin(self, t: Any, y: Tensor, derivative: Tensor | None = None, jump: float = 0.0) -> None:
        self._carried = (self._first(t, y, derivative, jump),)

    @staticmethod
    def step(f: Evaluate, t: Any, t1: Any, h: Any, start: State) -> State:
        y, v = start
        u = f(0.5 * (t + t1), _plus(y, 0.5 * h, v))
        return _plus(y, h, u), 2 * u - v

    @staticmethod
    def back(f: Evaluate, t: Any, t1: Any, h: Any, end: State) -> State:
        y1, v1 = end
        u = f(0.5 * (t + t1), _plus(y1, -0.5 * h, v1))
        return _plus(y1, -h, u), 2 * u - v1


REVERSIBLE: dict[str, type[Reversible]] = {cls.__name__: cls for cls in (ReversibleHeun, AsynchronousLeapfrog)}
