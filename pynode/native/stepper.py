"""The protocol between the loop and a method: the loop does not know the method, the method not the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

from pynode.errors import GradientError, explain
from pynode.native.checkpoints import State
from pynode.native.error_norm import ErrorNorm
from pynode.problem import Field
from pynode.transforms import finite, number

if TYPE_CHECKING:
    from pynode.native.dense import Piece


def check_solved(stepper: Any, t: Any, y1: Tensor) -> None:
    """Raise GradientError where a step from ``t`` to the state ``y1``, an accepted one of a solve, was not taken when
    it was repeated, by an implicit method or one of variable stages: what it returned then has no gradient."""
    if not hasattr(stepper, "failure") and not hasattr(stepper, "no_step"):
        return
    failure = getattr(stepper, "failure", "") or getattr(stepper, "no_step", "")
    failure = failure or ("" if finite(y1) else "f is not finite there")
    if failure:
        raise GradientError(
            explain(
                f"the step from t = {number(t):.6g} of the forward solve could not be taken again: {failure}",
                "the same f as in the solve",
                "check that f is deterministic and finite, and change neither f nor what it uses before the backward "
                "pass",
            )
        )


class Stepper(Protocol):
    """One method on one field. Times and steps are floats, or tensors where a gradient with respect to them is taped.

    The calls come in the order ``begin (attempt error_ratio?)+ interpolate? advance``; ``resume`` may stand for the
    first one. A method may carry tensors beside the state from step to step.

    One that is unstable in long steps may say ``explicit = True``, for the message of a solve that runs out of steps.
    An implicit method may have, beside these, ``untaped``: how many evaluations of its last attempt were in the search
    for the stages, of which autograd records nothing; and ``repeats``: how far, in the largest element of the state,
    a repetition of the last attempt may end from where that did; and ``failure``: why the stages of the last attempt
    were not found, in a clause, empty where they were. One of variable stages may have ``no_step``: why the last
    attempt took none, likewise. ``witness()``: where what is carried on shows no evaluation of ``f`` in its graph, a
    tensor that does.
    """

    field: Field

    @property
    def order(self) -> int:
        """Of the states at the ends of steps; the highest where it varies."""
        ...

    @property
    def error_order(self) -> int:
        """``k``, where the error estimate is O(h^k)."""
        ...

    def begin(self, t: Any, y: Tensor, derivative: Tensor | None = None, jump: float = 0.0) -> None:
        """Evaluate what the first step needs."""

    def resume(self, t: Any, y: Tensor, carried: State) -> None:
        """Go on from the start of a step other than the first, where ``carried`` had been carried."""

    def carried(self, end: bool = False) -> State:
        """What belongs, beside the state, to the start of the coming step, or to the end of the last attempt."""
        ...

    def derivative(self) -> Tensor:
        """dy/dt at the start of the coming step, or what the method takes for it."""
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

    def piece(self) -> Piece:
        """Dense output of the last attempted step, to keep."""
        ...

    def advance(self, t: Any, y: Tensor) -> None:
        """Accept the last attempt, which ended in state ``y`` at time ``t``."""


class RememberingStepper(Stepper, Protocol):
    """A stepper that looks back over the boundaries of steps that are merely perturbed: where ``perturb`` has every
    step evaluate just inside it, others begin anew with each. ``jump``: as for ``begin``."""

    def resume(self, t: Any, y: Tensor, carried: State, jump: float = 0.0) -> None: ...

    def advance(self, t: Any, y: Tensor, jump: float = 0.0) -> None: ...


@runtime_checkable
class ChoosingStepper(Stepper, Protocol):
    """A stepper the steps of which depend on a choice that error estimates or tolerances make: an order, a number of
    iterations. Who repeats a step alone says beforehand what was chosen."""

    def choice(self) -> Any:
        """What was chosen for the last attempt."""
        ...

    def choose(self, choice: Any) -> None:
        """The coming attempt repeats one for which this was chosen."""


@runtime_checkable
class SteeringStepper(ChoosingStepper, Protocol):
    """A stepper that chooses its order from step to step, and with it has a say in the size of the next one.

    Its ``error_order`` changes with its order.
    """

    def reorder(self, accepted: bool) -> tuple[float, int]:
        """Choose the order of the coming attempt, behind ``error_ratio`` and before the last one is looked at.

        Returns the error ratio that the last attempt would have had with it, and the order of that estimate.
        """
        ...

    def steer(self, factor: float, accepted: bool) -> float:
        """The factor between this step and the next one, where the controller proposes ``factor``."""
        ...


@runtime_checkable
class SearchingStepper(Stepper, Protocol):
    """A stepper whose steps are found by an iteration, which converges in short enough ones only."""

    def restrained(self, factor: float, accepted: bool) -> float:
        """The factor between this step and the next one, where error estimates propose ``factor``."""
        ...


@runtime_checkable
class TwoWayStepper(Stepper, Protocol):
    """A stepper whose steps can be run backward to rounding."""

    def reverse(self, t: float, t1: float, end: State, jump: float = 0.0, jump_end: float = 0.0) -> State:
        """State and carried tensors at the start ``t`` of a step from those at its end ``t1``.

        ``jump``: infinity in the direction of the step where the field was evaluated just after ``t``; ``jump_end``:
        against it where it was evaluated just before ``t1``.
        """
        ...
