"""Steps of stabilised explicit methods: as many stages as the size of the step and the stiffness ask for."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.algorithms.stabilized import Stabilized as Options
from pynode.errors import InputError, explain
from pynode.native.chebyshev import SCHEMES, Chebyshev
from pynode.native.checkpoints import State
from pynode.native.dense import Piece
from pynode.native.error_norm import ErrorNorm
from pynode.native.hermite import between
from pynode.native.spectral_radius import spectral_radius
from pynode.problem import Field, nudged
from pynode.transforms import number

#: On the estimate of the spectral radius, as in RKC and the ROCK codes.
SAFETY = 1.2


def _plus(y: Tensor, weight: float, h: Any, x: Tensor) -> Tensor:
    """``y + weight h x``."""
    return y + (weight * h) * x if isinstance(h, Tensor) else torch.add(y, x, alpha=weight * h)


class Stabilized:
    """A stepper (:class:`pynode.native.stepper.Stepper`) for the methods of :mod:`pynode.native.chebyshev`.

    Carried from step to step: the eigenvector and the spectral radius of the last estimate, from which the one at the
    start of the step, and with it the number of stages, follows. Neither is differentiated: the number of stages is
    constant around any step but those few where it is about to change. Functional operations only, so that the same
    stepper serves with and without autograd's tape.

    Parameters
    ----------
    options : pynode.algorithms.stabilized.Stabilized
    field : Field
    """

    def __init__(self, options: Options, field: Field) -> None:
        self.field = field
        self.options = options
        self.scheme = scheme = SCHEMES[options.name]
        self.order, self.error_order = scheme.order, scheme.error_order
        self._least, self._most = options.stages
        self._before: State = ()
        self._after: State = ()

    def begin(self, t: Any, y: Tensor, derivative: Tensor | None = None, jump: float = 0.0) -> None:
        time = self._at(t, jump)
        self._start_at(time, y, self.field.check_pure(time, y) if derivative is None else derivative, ())

    def resume(self, t: Any, y: Tensor, carried: State) -> None:
        time = self._at(t)
        self._start_at(time, y, self.field(time, y), carried)

    def advance(self, t: Any, y: Tensor) -> None:
        self._start_at(self._at(t), y, self._slope_at_end(), self._after)

    def carried(self, end: bool = False) -> State:
        return self._after if end else self._before

    def derivative(self) -> Tensor:
        return self._slope

    def attempt(self, t: Any, h: Any, y: Tensor, jump: float = 0.0, end: Any = None) -> Tensor:
        self._step = (t, h, t + h if end is None else end, jump, y)
        self._end_slope = None
        self._ks: list[Tensor] = []
        # Without stages no step: also where the estimate is not finite, or where max_stages are too few.
        self._load = abs(number(h)) * self._radius
        self._method = self._chosen()
        self._y1 = torch.full_like(y, math.nan) if self._method is None else self._stages(self._method, t, h, y)
        return self._y1

    @property
    def no_step(self) -> str:
        """Why the last attempt took no step, in a clause; empty where it did."""
        return "" if self._method is not None else "the spectral radius found there allows no step of this size"

    def error_ratio(self, measure: ErrorNorm) -> float:
        if self._method is None:
            # The ratio from which the controller concludes the size that max_stages allow.
            return math.nextafter((self._load / self.scheme.reach(self._most)) ** self.error_order, math.inf) * 1.01
        method, y, h = self._method, self._step[4], number(self._step[1])
        slope = self._slope_at_end()  # outside no_grad: a taped step hands it on
        with torch.no_grad():
            parts = list(zip(method.error_finish, self._ks, strict=True))
            if method.error_start:
                parts.append((method.error_start, self._slope))
            if method.error_end:
                parts.append((method.error_end, slope))
            error = (method.error_rise / h) * (y - self._y1)
            for weight, k in parts:
                error = torch.add(error, k, alpha=weight)
            return measure(error.detach(), h)

    def interpolate(self, thetas: Sequence[Any], derivative: bool = False) -> Tensor:
        h, y = self._step[1], self._step[4]
        return between(thetas, h, y, self._y1, (self._slope, self._slope_at_end()), derivative)

    def piece(self) -> Piece:
        """See :class:`pynode.native.stepper.Stepper`."""
        self._slope_at_end()
        kept, t, h = copy.copy(self), number(self._step[0]), number(self._step[1])
        kept._ks, kept._before, kept._after = [], (), ()
        return lambda times, field: kept.interpolate([(x - t) / h for x in times]).detach()

    def _start_at(self, time: Tensor, y: Tensor, slope: Tensor, carried: State) -> None:
        """Take in the start of a step."""
        self._slope = slope if slope.requires_grad else slope.clone()  # f may write its next result there
        self._before = carried
        self._method = None
        with torch.no_grad():
            y, slope, time = y.detach(), self._slope.detach(), time.detach()
            if self.options.eigen_est is not None:
                self._radius, self._after = self._given(time, y), ()
                return
            known = (carried[0].detach(), float(carried[1])) if carried else None
            z, radius = spectral_radius(lambda state: self.field(time, state), y, slope, known)
            self._radius = SAFETY * radius
            self._after = (z, torch.tensor(radius, dtype=torch.float64))

    def _given(self, time: Tensor, y: Tensor) -> float:
        assert self.options.eigen_est is not None
        found = float(self.options.eigen_est(time, self.field.layout.unpack(y)))
        if not 0.0 <= found < math.inf:
            raise InputError(
                explain(
                    f"eigen_est returned {found!r} at t = {float(time):.6g}",
                    "an upper bound of the spectral radius of df/dy, a number >= 0",
                    "correct eigen_est, or leave it out and have the radius estimated",
                )
            )
        return found

    def _chosen(self) -> Chebyshev | None:
        if not math.isfinite(self._load):
            return None
        needed = max(self.scheme.needed(self._load), self._least)
        return self.scheme.method(needed) if needed <= self._most else None

    def _stages(self, method: Chebyshev, t: Any, h: Any, y: Tensor) -> Tensor:
        slope, field = self._slope, self.field
        before, state = y, _plus(y, method.first, h, slope)
        for (mu, a, b, c, d), time in zip(method.rows, method.times, strict=False):
            k = field(self._at(t + time * h), state)
            new = _plus(torch.add(a * state, before, alpha=b), mu, h, k)
            if c:
                new = torch.add(new, y, alpha=c)
            if d:
                new = _plus(new, d, h, slope)
            before, state = state, new
        time, ks = method.times[-1], self._ks
        for row in method.finish_a:
            k = field(self._at(t + (time + sum(row)) * h), self._sum(state, row, h))
            ks.append(k if k.requires_grad else k.clone())
        return self._sum(state, method.finish_b, h)

    def _sum(self, state: Tensor, weights: Sequence[float], h: Any) -> Tensor:
        for weight, k in zip(weights, self._ks, strict=True):
            state = _plus(state, weight, h, k)
        return state

    def _slope_at_end(self) -> Tensor:
        """f at the end of the last attempt, evaluated when something needs it."""
        if self._end_slope is None:
            slope = self.field(self._at(self._step[2], self._step[3]), self._y1)
            self._end_slope = slope if slope.requires_grad else slope.clone()
        return self._end_slope

    def _at(self, t: Any, jump: float = 0.0) -> Tensor:
        time = self.field.time(t)
        return nudged(time, jump) if jump else time

    _slope: Tensor
    _end_slope: Tensor | None
    _radius: float
    _load: float
    _method: Chebyshev | None
    _step: tuple[Any, Any, Any, float, Tensor]
    _y1: Tensor
