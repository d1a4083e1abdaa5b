"""Symplectic steps over a splitting: kicks and drifts of a pair ``(q, p)``.

Functional operations only, so that the same stepper serves with and without autograd's tape. Nothing is carried from
step to step but the last force, which a step that is repeated alone evaluates again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.native.checkpoints import State
from pynode.native.dense import Piece
from pynode.native.error_norm import ErrorNorm
from pynode.native.halves import Halves
from pynode.native.hermite import between
from pynode.native.splittings import Splitting
from pynode.problem import Field, nudged


def _plus(x: Tensor, weight: float, h: Any, rate: Tensor) -> Tensor:
    return x + weight * h * rate if isinstance(h, Tensor) else torch.add(x, rate, alpha=weight * h)


class Symplectic:
    """See :class:`pynode.native.stepper.Stepper`; steps can also be run backward (:meth:`reverse`).

    Parameters
    ----------
    splitting : Splitting
    field : Field
    interpolation : "hermite" or "linear"
        Dense output: the cubic through both ends with the field's slopes there (an evaluation each), or a straight
        line.
    """

    def __init__(self, splitting: Splitting, field: Field, interpolation: str = "hermite") -> None:
        self.field = field
        self.splitting = splitting
        self.order = self.error_order = splitting.order
        self._halves = Halves(field, splitting.name)
        self._linear = interpolation == "linear"
        #: Times of drifts and of the kicks behind them, in steps; the last kick is at the end.
        self._drift_times = list(itertools.accumulate(splitting.kicks[:-1]))
        self._kick_times = list(itertools.accumulate(splitting.drifts))
        self._slope: Tensor | None = None
        self._end_slope: Tensor | None = None
        self._force: Tensor | None = None
        self._force_end: Tensor | None = None
        self._witness: Tensor | None = None
        self._ahead = 0.0
        self._run_back: tuple[Tensor, Tensor] | None = None

    def begin(self, t: Any, y: Tensor, derivative: Tensor | None = None, jump: float = 0.0) -> None:
        if derivative is None:
            derivative = self.field.check_pure(self._at(t, jump), y)
        self._slope = derivative if derivative.requires_grad else derivative.clone()
        _, self._force, *_ = self._halves.split(self._slope)
        self._ahead = jump

    def check_separable(self, step: Sequence[float], y: Tensor, nudge: bool) -> None:
        """Raise FieldError where the field is seen not to be separable on the first ``step``; see
        :meth:`Halves.check`. ``nudge``: it may jump at the start."""
        t, t1 = step
        self._halves.check(self._at(t, math.copysign(math.inf, t1 - t) if nudge else 0.0), t1 - t, y)

    def resume(self, t: Any, y: Tensor, carried: State) -> None:
        self._slope = self._force = None
        self._ahead = 0.0
        self._need_force(t, y)

    def carried(self, end: bool = False) -> State:
        return ()

    def derivative(self) -> Tensor:
        """f(t, y) where the stepper begins; later the last force, on which every evaluation of the step has a share."""
        known = self._witness if self._slope is None else self._slope
        assert known is not None
        return known

    def attempt(self, t: Any, h: Any, y: Tensor, jump: float = 0.0, end: Any = None) -> Tensor:
        halves, splitting = self._halves, self.splitting
        end = t + h if end is None else end
        q, p, *costs = halves.split(y)
        force, last = self._force, len(splitting.drifts) - 1
        if splitting.kicks[0]:
            assert force is not None
            p = _plus(p, splitting.kicks[0], h, force)
        for i, (drift, kick) in enumerate(zip(splitting.drifts, splitting.kicks[1:], strict=True)):
            time = self._drift_time(i, t, h)
            velocity = halves.velocity(time, q, p)
            self._witness = velocity
            if costs:
                costs = [self._costed(costs[0], i, t, h, _plus(q, 0.5 * drift, h, velocity), p)]
            q = _plus(q, drift, h, velocity)
            if kick:
                force = self._witness = halves.force(
                    self._at(end, jump) if i == last else self._kick_time(i, t, h), q, p
                )
                p = _plus(p, kick, h, force)
        self._force_end = force
        self._end_slope = None
        y1 = torch.cat([q, p, *costs])
        self._step = (t, h, end, jump, y, y1)
        return y1

    def reverse(self, t: float, t1: float, end: State, jump: float = 0.0, jump_end: float = 0.0) -> State:
        """See :class:`pynode.native.stepper.TwoWayStepper`: the substeps backward."""
        halves, splitting, h = self._halves, self.splitting, t1 - t
        (y1,) = end
        q, p, *costs = halves.split(y1)
        self._ahead = jump
        last = len(splitting.drifts) - 1
        # The force that the step behind this one, run backward before, began with.
        known = self._run_back[1] if self._run_back is not None and self._run_back[0] is y1 else None
        for i in range(last, -1, -1):
            drift, kick = splitting.drifts[i], splitting.kicks[i + 1]
            if kick:
                if known is None:
                    known = halves.force(self._at(t1, jump_end) if i == last else self._kick_time(i, t, h), q, p)
                p, known = _plus(p, -kick, h, known), None
            velocity = halves.velocity(self._drift_time(i, t, h), q, p)
            if costs:
                costs = [self._costed(costs[0], i, t, h, _plus(q, -0.5 * drift, h, velocity), p, -1.0)]
            q = _plus(q, -drift, h, velocity)
        force = None
        if splitting.kicks[0]:
            force = halves.force(self._at(t, jump), q, p)
            p = _plus(p, -splitting.kicks[0], h, force)
        y = torch.cat([q, p, *costs])
        self._run_back = (y, force) if force is not None and splitting.first_same_as_last else None
        return (y,)

    def error_ratio(self, measure: ErrorNorm) -> float:
        raise AssertionError("fixed steps have no error estimate")

    def interpolate(self, thetas: Sequence[Any], derivative: bool = False) -> Tensor:
        t, h, end, jump, y, y1 = self._step
        if self._linear:
            return between(thetas, h, y, y1, None, derivative)
        if self._slope is None:
            self._slope = self.field(self._at(t, self._ahead), y)
        if self._end_slope is None:
            self._end_slope = self.field(self._at(end, jump), y1)
        return between(thetas, h, y, y1, (self._slope, self._end_slope), derivative)

    def piece(self) -> Piece:
        t, h, end, jump, y, y1 = self._step
        slope = None if self._slope is None else self._slope.detach()
        ends = (self._at(float(t), self._ahead), self._at(float(end), jump))
        return _HermitePiece(float(t), float(h), (y.detach(), y1.detach()), ends, self._linear, slope)

    def advance(self, t: Any, y: Tensor) -> None:
        self._slope, self._force = self._end_slope, None
        self._ahead = 0.0
        if self.splitting.first_same_as_last:
            self._force = self._force_end
        else:
            self._need_force(t, y)

    def _need_force(self, t: Any, y: Tensor) -> None:
        if self.splitting.kicks[0]:
            q, p, *_ = self._halves.split(y)
            self._force = self._halves.force(self._at(t, 0.0), q, p)

    def _costed(self, cost: Tensor, i: int, t: Any, h: Any, q: Tensor, p: Tensor, sign: float = 1.0) -> Tensor:
        """The running cost behind drift ``i``: its rate amid the drift, which keeps symmetric methods symmetric."""
        drift = self.splitting.drifts[i]
        time = self._at(t + (self._kick_times[i] - 0.5 * drift) * h, 0.0)
        return _plus(cost, sign * drift, h, self._halves.cost(time, q, p))

    def _drift_time(self, i: int, t: Any, h: Any) -> Tensor:
        at = self._drift_times[i]
        return self._at(t + at * h, 0.0) if at else self._at(t, self._ahead)

    def _kick_time(self, i: int, t: Any, h: Any) -> Tensor:
        return self._at(t + self._kick_times[i] * h, 0.0)

    def _at(self, t: Any, jump: float) -> Tensor:
        time = self.field.time(t)
        return nudged(time, jump) if jump else time

    _step: tuple[Any, Any, Any, float, Tensor, Tensor]


class _HermitePiece:
    """Dense output of one step, the slopes of which are evaluated when it is first looked at."""

    def __init__(
        self,
        t: float,
        h: float,
        states: tuple[Tensor, Tensor],
        times: tuple[Tensor, Tensor],
        linear: bool,
        slope: Tensor | None,
    ) -> None:
        self._t, self._h, self._states, self._times = t, h, states, times
        self._linear, self._slope = linear, slope
        self._slopes: tuple[Tensor, Tensor] | None = None

    def __call__(self, times: Sequence[float], field: Field) -> Tensor:
        if not self._linear and self._slopes is None:
            with torch.no_grad():
                (t, t1), (y, y1) = self._times, self._states
                self._slopes = (field(t, y) if self._slope is None else self._slope, field(t1, y1))
        thetas = [min(max((t - self._t) / self._h, 0.0), 1.0) for t in times]
        return between(thetas, self._h, *self._states, self._slopes)
