"""The protocol between the loop and a method: the loop does not know the method, the method not the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from pynode.native.error_norm import ErrorNorm
from pynode.problem import Field


class Stepper(Protocol):
    """One method on one field. Times and steps are floats, or tensors where a gradient with respect to them is taped.

    The calls come in the order ``begin (attempt error_ratio?)+ interpolate? advance``.
    """

    field: Field
    order: int
    error_order: int

    def begin(self, t: Any, y: Tensor, derivative: Tensor | None = None, jump: float = 0.0) -> None:
        """Evaluate what the first step needs."""

    def derivative(self) -> Tensor:
        """f(t, y) at the start of the coming step."""
        ...

    def attempt(self, t: Any, h: Any, y: Tensor, jump: float = 0.0, end: Any = None) -> Tensor:
        """The state at ``end``, which ``t + h`` equals only up to rounding (and which is that by default)."""
        ...

    def error_ratio(self, measure: ErrorNorm) -> float:
        """Error of the last attempt over its tolerance; ``measure(error, factor)`` gives the norm of
        ``factor * error``."""
        ...

    def interpolate(self, thetas: Sequence[Any], derivative: bool = False) -> Tensor:
        """States (m, n) at fractions of the last attempted step, or their time derivatives."""
        ...

    def advance(self, t: Any, y: Tensor) -> None:
        """Accept the last attempt, which ended in state ``y`` at time ``t``."""
