"""What implicit Runge-Kutta steppers share: when to make a Jacobian, when Newton has failed, and the tape.

The stages are found off the tape. What autograd records is one more Newton correction from the stages found, with the
Jacobian at these stages, of which the value is discarded and the derivative kept: by the implicit function theorem that
is the derivative of the stages. So gradients are those of the step taken, and the cost of recording is one evaluation,
one Jacobian and one factored matrix for every stage, however long the search was.

A Jacobian is kept over several steps while Newton converges fast with it. A step then depends on where its Jacobian was
made. For that reason the stages found belong to what the steppers carry (``carried()`` after an attempt), and a step
that is repeated for its gradient takes them from there. Where not all of that is kept (``CheckpointedAdjoint`` with
bounded memory) every step makes its own Jacobian and starts its search from the same rate: so it repeats bit for bit.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pynode.native.checkpoints import State
from pynode.native.error_norm import ErrorNorm
from pynode.native.linear_operator import Linearisation, linearise
from pynode.native.newton import Found, NewtonNorm, newton
from pynode.native.once import once
from pynode.problem import Field, nudged
from pynode.transforms import number

#: The rate of convergence that steps are kept at: a rate in proportion to the step makes the iterations for a unit of
#: time, 1 / (h log(1 / rate)), the fewest at 1/e (Gustafsson and Soederlind 1997).
BEST_RATE = math.exp(-1.0)
#: A step that the rate would let grow by less than this is followed by an equal one, whose matrices are there.
DEADBAND = 1.2
#: Steps that differ by less have the same matrix.
ALIKE = 1e-4
#: A Jacobian serves steps of one order of magnitude. What it has wrong counts in proportion to the step, and does not
#: always show: one much too large, as from inside a transition for the long steps behind it, makes corrections so small
#: that they pass for converged.
MAGNITUDE = 10.0


@dataclass(frozen=True)
class Settings:
    """Of an implicit stepper.

    Parameters
    ----------
    rtol, atol : float or Tensor (n,)
    fixed : bool
        The steps are given.
    linsolve : str
    reuse : bool
        Jacobians and rates of convergence are kept from step to step.
    taped : bool
        Autograd is to record the steps.
    linear : bool
        Dense output by straight lines.
    """

    rtol: float | Tensor
    atol: float | Tensor
    fixed: bool
    linsolve: str
    reuse: bool
    taped: bool
    linear: bool = False


class ImplicitStepper(ABC):
    """See :class:`pynode.native.stepper.Stepper`; subclasses say what the stages are.

    Attributes
    ----------
    failure : str
        Why Newton did not find the stages of the last attempt, in a clause; empty where it did.
    untaped : int
        Evaluations of the last attempt in that search.
    repeats : float
        How far, in the largest element, a repetition of the last attempt may end from where it did.
    """

    order: int
    error_order: int
    #: Rows of the stages.
    stages: int
    #: Most iterations of one search in adaptive steps.
    limit: int
    #: A rate of convergence above which the Jacobian is not kept for the next step.
    slow: float

    def __init__(self, field: Field, settings: Settings) -> None:
        self.field, self.settings = field, settings
        self.failure, self.untaped, self.repeats = "", 0, 0.0
        self._norm = NewtonNorm(settings.rtol, settings.atol, settings.fixed)
        self._jacobian: Linearisation | None = None
        #: Whether that is the Jacobian at the start of this step; whether the next step needs its own.
        self._current, self._outdated = False, False
        #: The step it was made for.
        self._length = 0.0
        self._solvers: dict[str, tuple[float, Any]] = {}
        self._eta = 1.0
        #: The slowest rate of convergence of the last search.
        self._rate = 0.0
        self._full = False
        self._jump = 0.0
        self._given: Tensor | None = None
        self._found: Tensor | None = None
        #: By how much the corrections on the tape would have moved the end of the step.
        self._moved: Tensor | None = None

    # What a method is.

    @abstractmethod
    def _search(self, t: float, h: float, y: Tensor, jump: float, end: float) -> Tensor | None:
        """The stages of a step, off the tape; None where an iteration did not converge (:meth:`_converged`)."""

    def _lost(self, y: Tensor) -> Tensor:
        """Stages of a step from ``y`` whose search met what is not finite: NaN."""
        return y.new_full((self.stages, y.numel()), torch.nan)

    @abstractmethod
    def _finish(self, t: Any, h: Any, y: Tensor, jump: float, end: Any, stages: Tensor) -> Tensor:
        """The state at the end of the step with these stages, on the tape where the settings say so."""

    @abstractmethod
    def _error(self, measure: ErrorNorm) -> float:
        """The error of the last attempt, whose stages were found, over its tolerance."""

    # The protocol.

    def attempt(self, t: Any, h: Any, y: Tensor, jump: float = 0.0, end: Any = None) -> Tensor:
        """See :class:`pynode.native.stepper.Stepper`."""
        end = t + h if end is None else end
        before = self.field.counts.nfe
        self.failure = ""
        start = y.detach()
        self._norm.start(start)
        self.repeats = self._norm.reach()
        stages, self._given = self._given, None
        known, self._moved = stages is not None, None
        if stages is None:
            with torch.no_grad():
                stages = self._stages(number(t), number(h), start, jump, number(end))
        self.untaped = self.field.counts.nfe - before
        self._found = stages
        if stages is None:
            # What did not converge the loop is told; what is not finite it finds out.
            with torch.no_grad():
                lost = self._finish(t, h, start, jump, end, self._lost(start))
            return y if self.failure else lost
        y1 = self._finish(t, h, y, jump, end, stages)
        # Of stages that were taken from the solve, not searched for, the correction tells whether f is still the same:
        # its value, which the derivative goes without, shows in the state that a repeated step is judged by.
        return y1 + self._moved if known and self._moved is not None else y1

    def error_ratio(self, measure: ErrorNorm) -> float:
        """See :class:`pynode.native.stepper.Stepper`; infinite where the stages were not found."""
        if self._found is None:
            return float("inf")
        with torch.no_grad():
            return self._error(measure)

    def restrained(self, factor: float, accepted: bool) -> float:
        """The factor between this step and the next, where the error asks for ``factor``: no more than lets the
        iteration converge.

        Error estimates say nothing about that. Where smooth solutions let steps grow until the iteration fails, a step
        that knows of the error alone fails, is cut short, grows again and fails.
        """
        if accepted:
            if not (self._current and self._rate):
                return factor
            most = BEST_RATE / self._rate
            return factor if factor <= most else 1.0 if 1.0 <= most < DEADBAND else most
        if self._found is None and self.failure:
            # Not by the factor of an error that is not known: by half, or as far as the rate tells.
            return max(factor, min(0.5, BEST_RATE / self._rate)) if self._rate else max(factor, 0.5)
        return factor

    def _anew(self, jump: float, given: State = ()) -> None:
        """At the start of another step, just after ``t`` where ``jump``; ``given``: its stages, if they are known."""
        self._jump = jump
        self._current = False
        self._given = given[0].detach() if given else None

    # The search.

    def _stages(self, t: float, h: float, y: Tensor, jump: float, end: float) -> Tensor | None:
        grown = abs(h) > MAGNITUDE * self._length
        keep = self.settings.reuse and self._jacobian is not None and not self._outdated and not grown
        if not self._current and not keep:
            self._linearise(t, y)
        if self._current:
            self._length = abs(h)
        if not self.settings.reuse:
            self._eta = 1.0
        self._rate = 0.0
        found = self._search(t, h, y, jump, end)
        if found is None and not self._current:
            self._linearise(t, y)
            self._rate, self._length = 0.0, abs(h)
            found = self._search(t, h, y, jump, end)
        if found is None and self.settings.fixed:
            # A given step cannot be made smaller: Newton's own iteration, with a Jacobian for every iterate.
            why, self._full = self.failure, True
            found = self._search(t, h, y, jump, end)
            self._full = False
            if found is None:
                self.failure = why or self.failure
        return found

    def _linearise(self, t: float, y: Tensor) -> None:
        self._jacobian = linearise(self.field, self._time(t, self._jump), y, self.settings.linsolve)
        self._current, self._outdated = True, False
        self._solvers.clear()

    def _solver(self, kind: str, h: float, make: Callable[[Linearisation], Any]) -> Any:
        """What ``make`` makes of the Jacobian for steps of ``h``: the last one of each ``kind`` is kept.

        Two equal steps differ by the rounding of times. A matrix for one that differs by the fraction ``ALIKE`` adds no
        more than that to the rate of convergence. With a new one no rate is known: that seen with
        another lets bad guesses pass, and whole transitions where steps have just grown."""
        assert self._jacobian is not None
        known = self._solvers.get(kind)
        if known is None or abs(h - known[0]) > ALIKE * abs(h):
            known = self._solvers[kind] = h, make(self._jacobian)
            self._eta = 1.0
        return known[1]

    def _converged(self, found: Found) -> bool:
        """Take note of how an iteration went."""
        self._rate = max(self._rate, found.rate)
        if not found.converged:
            self._eta = 1.0
            self.failure = (
                f"Newton's iteration did not converge in {found.iterations} iterations (rate {found.rate:.2g})"
                if found.finite
                else ""
            )
            return False
        self.failure = ""
        # Hairer and Wanner's exponent: a rate seen once counts a little less each time it is relied upon.
        self._eta = max(found.eta, 1e-16) ** 0.8
        self._outdated = self._outdated or (found.iterations > 2 and found.rate > self.slow)
        return True

    def _newton(self, correction: Callable[[Tensor], Tensor], guess: Tensor) -> Found:
        if self._full:
            return newton(correction, guess, self._norm, 1.0, 50, math.inf)
        if self.settings.fixed:
            return newton(correction, guess, self._norm, self._eta, 25, 2.0)
        return newton(correction, guess, self._norm, self._eta, self.limit, 1.0)

    # The tape.

    def _time(self, t: Any, jump: float = 0.0) -> Tensor:
        time = self.field.time(t)
        return nudged(time, jump) if jump else time

    def _mass_times(self, z: Tensor) -> Tensor:
        """``M z`` for z (..., n)."""
        mass = self.field.mass_matrix
        return z if mass is None else z @ mass.t()


def with_derivative(value: Tensor, correction: Tensor) -> Tensor:
    """``value`` with the derivative of ``correction``."""
    if not correction.requires_grad:
        return value
    return once(value + (correction - correction.detach()))


def fractions(thetas: Sequence[Any], device: torch.device) -> Tensor:
    """Fractions of a step as a tensor (m,) in float64, connected to those that are tensors."""
    return torch.stack([torch.as_tensor(theta, dtype=torch.float64, device=device) for theta in thetas])
