"""Fixed and adaptive stepping. Knows a stepper and a controller, no method by name."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from pynode.controllers import START, PIDController, steady
from pynode.native.error_norm import ErrorNorm
from pynode.native.stepper import RememberingStepper, SearchingStepper, SteeringStepper, Stepper
from pynode.native.stiffness import stiffness_clause
from pynode.solution import Counts, ReturnCode
from pynode.transforms import finite, number

Clock = Callable[[float], Any]


class Recorder(Protocol):
    """What is kept of a solve."""

    def accept(self, stepper: Stepper, t: float, t1: float, y: Tensor, y1: Tensor) -> None:
        """A step from (t, y) to (t1, y1) was accepted; the stepper still holds its stages."""


class Nothing:
    """Keeps nothing."""

    def accept(self, stepper: Stepper, t: float, t1: float, y: Tensor, y1: Tensor) -> None:
        return


class Stop(Protocol):
    """What ends a solve before its end: an event."""

    def __call__(self, stepper: Stepper, t: float, t1: float, y: Tensor, y1: Tensor) -> float | None:
        """The time within the step that was just accepted at which to stop, or None."""
        ...


class Observer(Protocol):
    """Callbacks around steps (torchdiffeq's ``callback_*``). ``y`` is flat."""

    def step(self, t: float, y: Tensor, h: float) -> None: ...
    def accepted(self, t: float, y: Tensor, h: float) -> None: ...
    def rejected(self, t: float, y: Tensor, h: float) -> None: ...


@dataclass
class Outcome:
    """How an integration ended: at time ``t`` in state ``y``; where it was stopped, ``y`` is the state at the end of
    the step that holds ``t``, and the stepper still that step. ``size``: of the step that an adaptive one would have
    tried next; ``first``: of the one that it had better begun with."""

    retcode: ReturnCode
    t: float
    y: Tensor
    detail: str = ""
    size: float | None = None
    first: float | None = None


@dataclass(frozen=True)
class Stepping:
    """Options of the step-size search. Step sizes are magnitudes; times are in the direction of integration."""

    norm: Callable[[], ErrorNorm]
    controller: PIDController
    max_steps: int
    dt0: float | None = None
    dtmin: float = 0.0
    dtmax: float = math.inf
    force_dtmin: bool = False
    stops: Sequence[float] = ()
    jumps: frozenset[float] = field(default_factory=frozenset)


def _h(t: float, t1: float, clock: Clock | None) -> tuple[Any, Any, Any]:
    """Start, length and end of a step; tensors where the clock makes its ends differentiable."""
    if clock is None:
        return t, t1 - t, t1
    start, end = clock(t), clock(t1)
    return start, end - start, end


def integrate_fixed(
    stepper: Stepper,
    y: Tensor,
    mesh: Sequence[float],
    recorder: Recorder,
    counts: Counts,
    *,
    max_steps: int,
    perturb: bool = False,
    remembers: bool = False,
    jumps: frozenset[float] = frozenset(),
    derivative: Tensor | None = None,
    observer: Observer | None = None,
    clock: Clock | None = None,
    stop: Stop | None = None,
) -> Outcome:
    """Step over ``mesh``. ``perturb``: evaluate just inside every step, not only at ``jumps``; ``remembers``: the
    stepper, a :class:`pynode.native.stepper.RememberingStepper`, begins anew at ``jumps`` alone."""
    if len(mesh) - 1 > max_steps:
        detail = f"the mesh has {len(mesh) - 1} steps and max_steps = {max_steps}"
        return Outcome(ReturnCode.MaxIters, mesh[0], y, detail)
    ahead = math.copysign(math.inf, mesh[-1] - mesh[0])

    def edge(t: float, towards: float) -> float:
        return towards if perturb or t in jumps else 0.0

    def enter(n: int, t: Any, y: Tensor) -> None:
        if perturb and remembers and mesh[n] not in jumps:
            cast(RememberingStepper, stepper).advance(t, y, ahead)
        elif edge(mesh[n], ahead):
            stepper.begin(t, y, jump=ahead)
        else:
            stepper.advance(t, y)

    stepper.begin(mesh[0] if clock is None else clock(mesh[0]), y, derivative, edge(mesh[0], ahead))
    if not finite(stepper.derivative()):
        return Outcome(ReturnCode.InitialFailure, mesh[0], y, "f(t0, y0) has a NaN or an infinity")
    last, y0 = len(mesh) - 2, y
    for i in range(last + 1):
        t, t1 = mesh[i], mesh[i + 1]
        start, h, end = _h(t, t1, clock)
        if observer is not None:
            observer.step(t, y, t1 - t)
        y1 = stepper.attempt(start, h, y, edge(t1, -ahead), end)
        failure = getattr(stepper, "failure", "")
        if failure:
            return Outcome(ReturnCode.ConvergenceFailure, t, y, failure)
        counts.accepted += 1
        recorder.accept(stepper, t, t1, y, y1)
        if stop is not None:
            if not finite(y1):
                return Outcome(ReturnCode.Unstable, t, y, f"the step from there to t = {t1:.9g} is not finite")
            at = stop(stepper, t, t1, y, y1)
            if at is not None:
                return Outcome(ReturnCode.Terminated, at, y1)
        y = y1
        if i < last:
            enter(i + 1, t1 if clock is None else clock(t1), y)
    if finite(y):
        return Outcome(ReturnCode.Success, mesh[-1], y)
    return _first_failure(stepper, y0, mesh, edge, enter)


def _first_failure(
    stepper: Stepper,
    y: Tensor,
    mesh: Sequence[float],
    edge: Callable[[float, float], float],
    enter: Callable[[int, Any, Tensor], None],
) -> Outcome:
    """Step again over a mesh whose end is not finite, now looking at every state: only failures pay for that."""
    ahead = math.copysign(math.inf, mesh[-1] - mesh[0])
    with torch.no_grad():
        for i, (t, t1) in enumerate(itertools.pairwise(mesh)):
            if i == 0:
                stepper.begin(t, y, jump=edge(t, ahead))
            else:
                enter(i, t, y)
            y1 = stepper.attempt(t, t1 - t, y, edge(t1, -ahead), t1)
            if not finite(y1):
                reason = getattr(stepper, "failure", None) or f"the step from there to t = {t1:.9g} is not finite"
                return Outcome(ReturnCode.Unstable, t, y, reason)
            y = y1
    return Outcome(ReturnCode.Unstable, mesh[-1], y, "the final state was not finite, but is when computed again")


def integrate_adaptive(
    stepper: Stepper,
    y: Tensor,
    t: float,
    t_end: float,
    recorder: Recorder,
    counts: Counts,
    stepping: Stepping,
    *,
    derivative: Tensor | None = None,
    observer: Observer | None = None,
    clock: Clock | None = None,
    stop: Stop | None = None,
) -> Outcome:
    """Step from ``t`` to ``t_end`` with steps whose error estimate meets the tolerance.

    ``stepping.stops`` and ``jumps`` are met exactly. The step-size search is never recorded by autograd.
    """
    norm = stepping.norm()
    controller = stepping.controller
    # An isinstance of a protocol takes as long as several evaluations.
    steering = cast(SteeringStepper, stepper) if hasattr(stepper, "steer") else None
    searching = cast(SearchingStepper, stepper) if hasattr(stepper, "restrained") else None
    ahead = math.copysign(math.inf, t_end - t)
    sign = math.copysign(1.0, ahead)
    stops = [
        s
        for s in sorted({*stepping.stops, *stepping.jumps}, reverse=sign < 0)
        if 0 < (s - t) * sign < (t_end - t) * sign
    ]
    stops.append(t_end)
    target = stops.pop(0)
    jumps = stepping.jumps
    stepper.begin(t if clock is None else clock(t), y, derivative, ahead if t in jumps else 0.0)
    if not finite(stepper.derivative()):
        return Outcome(ReturnCode.InitialFailure, t, y, "f(t0, y0) has a NaN or an infinity")
    norm.start(y)
    size = stepping.dt0 if stepping.dt0 is not None else initial_step(stepper, norm, t, y, abs(t_end - t) * sign)
    size = max(min(size, stepping.dtmax), stepping.dtmin, 4.0 * math.ulp(t))
    history = START
    ratio = math.nan
    first: float | None = None
    stretch = 1.01
    for _ in range(stepping.max_steps):
        floor = max(stepping.dtmin, 4.0 * math.ulp(t))
        if stepping.force_dtmin:
            size = max(size, stepping.dtmin)
        proposed = size
        # A step that would leave a sliver before the target is stretched over it: not beyond dtmax, and not after a
        # rejection, or the step just rejected would be tried again.
        left = (target - t) * sign
        clipped = size >= left or size * stretch >= left <= stepping.dtmax * (1.0 + 1e-9)
        t1 = target if clipped else t + sign * size
        if not clipped and size < floor:
            return _too_small(stepper, norm, t, y, size, floor, ratio)
        start, h, end = _h(t, t1, clock)
        if observer is not None:
            observer.step(t, y, t1 - t)
        y1 = stepper.attempt(start, h, y, -ahead if t1 in jumps else 0.0, end)
        norm.between(y1)
        ratio = stepper.error_ratio(norm)
        accepted, factor, now = controller.propose(ratio, stepper.error_order, history)
        if stepping.force_dtmin and abs(t1 - t) <= 1.02 * stepping.dtmin and math.isfinite(ratio):
            accepted = True
        if first is None and accepted:
            first = abs(t1 - t) * controller.asked(ratio, stepper.error_order)
        if steering is not None:
            _, factor, now = controller.propose(*steering.reorder(accepted), history)
            factor = steering.steer(factor, accepted)
        if searching is not None:
            allowed = searching.restrained(factor, accepted)
            now, factor = controller.instead(now, allowed / factor), allowed
        history = now
        if not accepted:
            counts.rejected += 1
            if observer is not None:
                observer.rejected(t, y, t1 - t)
            forced = stepping.force_dtmin and abs(t1 - t) <= 1.02 * stepping.dtmin
            # A forced step is accepted unless it is not finite, and would be taken again and again then.
            if (clipped and abs(t1 - t) < floor) or forced:
                return _too_small(stepper, norm, t, y, abs(t1 - t), floor, ratio)
            size = abs(t1 - t) * factor
            stretch = 1.0
            continue
        stretch = 1.01
        counts.accepted += 1
        if observer is not None:
            observer.accepted(t, y, t1 - t)
        recorder.accept(stepper, t, t1, y, y1)
        norm.accept()
        size = abs(t1 - t) * factor
        if clipped:
            # A step cut short by a target says nothing against the size proposed before, but that a method which looks
            # back at it cannot go far beyond it.
            size = max(size, proposed if steering is None else min(proposed, 10.0 * abs(t1 - t)))
        size = min(size, stepping.dtmax)
        at = None if stop is None else stop(stepper, t, t1, y, y1)
        if at is not None:
            return Outcome(ReturnCode.Terminated, at, y1, size=size, first=first)
        t, y = t1, y1
        if t == target:
            if not stops:
                if not finite(y):
                    return Outcome(ReturnCode.Unstable, t, y, "the final state is not finite")
                return Outcome(ReturnCode.Success, t, y, size=size, first=first)
            target = stops.pop(0)
        end = t if clock is None else clock(t)
        if t in jumps:
            stepper.begin(end, y, jump=ahead)
            history = START
        else:
            stepper.advance(end, y)
    detail = f"max_steps = {stepping.max_steps} attempted steps, the last of {size:.3g}"
    detail += norm.rounding_clause() or stiffness_clause(stepper, t, y, size, abs(t_end - t))
    return Outcome(ReturnCode.MaxIters, t, y, detail)


def initial_step(stepper: Stepper, norm: ErrorNorm, t: float, y: Tensor, span: float) -> float:
    """Magnitude of a first step (Hairer, Norsett and Wanner 1993, section II.4); one more evaluation.

    ``norm`` is scaled at ``y``; ``span`` is the signed distance to the end. The estimate ``h1`` from the derivatives
    takes the unit of time for that of the problem, and is far too long where the problem is much quicker; what is left
    then is ``100 h0``, a whole time constant of y, over which error estimates cannot be trusted (that of BS3 is exactly
    zero for ``y' = -y``). So the estimate is made in units of ``100 h0`` where it is longer than that.
    """
    with torch.no_grad():
        f0 = stepper.derivative().detach()
        y = y.detach()
        d0, d1 = norm(y), norm(f0)
        h0 = 1e-6 if d0 < 1e-5 or d1 < 1e-5 else 0.01 * d0 / d1
        h0 = min(h0 if h0 > 0 else 1e-6, abs(span))  # neither 0 nor NaN, whatever a norm overflowed to
        h = math.copysign(h0, span)
        field_ = stepper.field
        f1 = field_.rate(field_.time(t + h), torch.add(y, f0, alpha=h))
        d2 = norm(f1 - f0) / h0
    if max(d1, d2) <= 1e-15:
        h1 = max(1e-06, h0 * 0.001)
    else:
        power, unit = 1.0 / stepper.error_order, 100.0 * h0
        h1 = (0.01 / max(d1, d2)) ** power
        if h1 > unit and (most := max(d1 * unit, d2 * unit * unit)) > 0.0:
            h1 = unit * (0.01 / most) ** power
    size = min(steady(min(100.0 * h0, h1)), abs(span))
    return size if size > 0 else h0  # a non-finite f1 compares false everywhere: start at h0 and let steps shrink


def _too_small(
    stepper: Stepper, norm: ErrorNorm, t: float, y: Tensor, size: float, floor: float, ratio: float
) -> Outcome:
    failure = getattr(stepper, "failure", "")
    if failure:
        return Outcome(ReturnCode.ConvergenceFailure, t, y, f"{failure}, with |dt| down to {size:.3g}")
    if not math.isfinite(ratio):
        where = "f is finite there, but not just ahead" if finite(stepper.derivative()) else "f is not finite there"
        return Outcome(ReturnCode.Unstable, t, y, where)
    limit = f"the spacing of float64 times, {floor:.3g}" if floor <= 4.0 * math.ulp(t) else f"dtmin = {floor:.3g}"
    detail = f"|dt| = {size:.3g} is below {limit}; the error was {ratio:.3g} times the tolerance"
    return Outcome(ReturnCode.DtLessThanMin, t, y, detail + norm.rounding_clause() + _blowing_up(stepper, y, floor))


def _blowing_up(stepper: Stepper, y: Tensor, floor: float) -> str:
    """Empty, or a clause saying that the state grows by its own size within a few of the smallest steps."""
    with torch.no_grad():
        size, speed = number(y.abs().max()), number(stepper.derivative().abs().max())
    if not (0.0 < size < 1e3 * floor * speed):
        return ""
    return f"; the state, of size {size:.2g}, grows by as much within {size / speed:.2g} of time: it blows up there"
