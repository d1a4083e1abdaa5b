"""Which event comes first in a step, and when: sign changes on the step's dense output, and their roots."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pynode.errors import FieldError, explain
from pynode.events import Crossing, Watch
from pynode.native.dense import Piece
from pynode.native.stepper import Stepper
from pynode.problem import Field, ODEProblem


@dataclass
class _Bracket:
    """A sign change of function ``which`` between two fractions of a step."""

    which: int
    low: float
    high: float
    at_low: float
    at_high: float


class Search:
    """Looks for the events of ``watch`` in every accepted step: a :class:`pynode.native.loop.Stop`."""

    def __init__(self, watch: Watch, problem: ODEProblem) -> None:
        self._watch, self._problem = watch, problem
        self._layout = problem.state_layout
        points = max(event.interp_points for event in watch.events)
        self._inner = [k / (points + 1) for k in range(1, points + 1)]
        #: Of every element of every condition: its event and its place there.
        self._which: list[tuple[int, int]] = []
        self._shapes: list[torch.Size] = []
        #: The sign that it last had; 0 where it touched zero.
        self._signs: list[int] = []
        self._last: list[float] = []

    def __call__(self, stepper: Stepper, t: float, t1: float, y: Tensor, y1: Tensor) -> float | None:
        self._taped = torch.is_grad_enabled()
        # Stages that a step on torch's tape has not evaluated yet it evaluates now, and keeps: on the tape, as the
        # next step and the state at the event are made of them.
        piece = stepper.piece() if self._taped else None
        with torch.no_grad():
            return self._search(stepper, t, t1, y.detach(), y1.detach(), piece)

    def _search(
        self, stepper: Stepper, t: float, t1: float, y: Tensor, y1: Tensor, piece: Piece | None
    ) -> float | None:
        h = t1 - t
        field = stepper.field
        resolution = 2.0 * math.ulp(max(abs(t), abs(t1)))
        thetas, leaving = self._inner, dict[int, int]()
        if not self._which:
            (self._last,) = self._values(field, [t], y[None])
            self._signs = [_sign(x) for x in self._last]
            zero = self._zeros()
            if zero:
                leaving = self._leaving(zero, stepper, t, y, h)
                # Looked at in ever smaller distances from the start, to see short ways back to zero.
                first = thetas[0] if thetas else 1.0
                count = math.ceil(math.log(first * abs(h) / resolution, 4.0)) if abs(h) > resolution else 0
                thetas = [*(first * 4.0**-k for k in range(count, 0, -1)), *thetas]
        times = [t + theta * h for theta in thetas]
        if times and piece is None:
            piece = stepper.piece()
        rows = y1[None, : self._layout.size]
        if times:
            assert piece is not None
            rows = torch.cat([self._states(piece, times, field), rows])
        values = self._values(field, [*times, t1], rows)
        thetas = [*thetas, 1.0]

        brackets: list[_Bracket] = []
        for which in range(len(self._which)):
            column = [row[which] for row in values]
            bracket = self._bracket(which, thetas, column, leaving.get(which))
            if bracket is not None:
                brackets.append(bracket)
        self._last = values[-1]
        if not brackets:
            return None
        return self._first(brackets, values, (t, t1, h), piece or stepper.piece(), field, resolution)

    def _zeros(self) -> list[int]:
        """The functions that are zero at the start of the solve, as far as one can tell."""
        noise = {(x.event, x.component): x.noise for x in self._watch.fired}
        return [i for i, key in enumerate(self._which) if abs(self._last[i]) <= noise.get(key, 0.0)]

    def _leaving(self, zero: list[int], stepper: Stepper, t: float, y: Tensor, h: float) -> dict[int, int]:
        """The sign that each of the functions ``zero`` takes on by its derivative along the solution; 0 where that
        is zero, too, or unknown."""
        field, size = stepper.field, self._layout.size
        with torch.set_grad_enabled(self._taped):
            rate = stepper.interpolate([0.0], True)[0].detach()[:size]
        found = {}
        with torch.enable_grad():
            time, state = field.time(t).requires_grad_(), y[:size].clone().requires_grad_()
            for event in sorted({self._which[i][0] for i in zero}):
                value = self._value(event, time, state).reshape(-1)
                for i in zero:
                    if self._which[i][0] != event:
                        continue
                    slope = 0.0
                    if value.requires_grad:
                        one = value[self._which[i][1]]
                        by = torch.autograd.grad(one, [time, state], retain_graph=True, allow_unused=True)
                        slope = 0.0 if by[0] is None else by[0].item()
                        slope += 0.0 if by[1] is None else torch.dot(by[1], rate).item()
                    self._signs[i] = 0
                    found[i] = _sign(slope * h)
        return found

    def _bracket(self, which: int, thetas: list[float], values: list[float], leaving: int | None) -> _Bracket | None:
        """The first crossing of function ``which``, of a kind that its event asks for."""
        wanted = self._watch.events[self._which[which][0]].direction
        sign, low, at_low = self._signs[which], 0.0, self._last[which]
        places = list(zip(thetas, values, strict=True))
        if leaving:
            # What comes before its first value on the side it leaves to is noise.
            on_side = next((i for i, x in enumerate(values) if _sign(x) == leaving), None)
            if on_side is None:
                # It was on that side for a shorter time than can be told, and is on the other now.
                other = next((x for x in values if x), 0.0)
                self._signs[which] = _sign(other)
                crossed = other and wanted in (0, -leaving)
                return _Bracket(which, 0.0, 0.0, at_low, at_low) if crossed else None
            sign, (low, at_low), places = leaving, places[on_side], places[on_side + 1 :]
        found = None
        for theta, value in places:
            here = _sign(value)
            if sign and here != sign:
                if wanted in (0, -sign):
                    found = _Bracket(which, low, theta, at_low, value)
                    break
                sign = here
            elif not sign:
                sign = here
            low, at_low = theta, value
        self._signs[which] = sign
        return found

    def _first(
        self,
        brackets: list[_Bracket],
        values: list[list[float]],
        step: tuple[float, float, float],
        piece: Piece,
        field: Field,
        resolution: float,
    ) -> float:
        """The time of the first root; tells ``watch`` about it."""
        t, t1, h = step
        watch = self._watch
        eps = torch.finfo(self._layout.dtype).eps
        found: list[tuple[float, int, float]] = []
        for bracket in sorted(brackets, key=lambda x: (x.low, x.high)):
            if found and bracket.low > min(found)[0]:
                continue
            event, place = self._which[bracket.which]
            one = watch.events[event]

            def value(theta: float, event: int = event, place: int = place) -> float:
                time = t + theta * h
                state = self._states(piece, [time], field)[0]
                at = self._value(event, field.time(time), state).reshape(-1)[place].item()
                self._check_number(event, time, at)
                return float(at)

            width = max(one.root_tol or 0.0, resolution) / abs(h)
            theta, noise = root(value, bracket.low, bracket.high, bracket.at_low, bracket.at_high, width)
            found.append((theta, bracket.which, noise))
        theta = min(found)[0]
        watch.h, watch.tolerance = h, 4.0 * resolution
        for at, which, noise in sorted(found):
            if (at - theta) * abs(h) <= watch.tolerance:
                scale = max(abs(row[which]) for row in values)
                watch.found.append(Crossing(*self._which[which], max(4.0 * noise, 16.0 * eps * scale), scale))
        return t1 if theta == 1.0 else t + theta * h

    def _states(self, piece: Piece, times: Sequence[float], field: Field) -> Tensor:
        return piece(times, field)[:, : self._layout.size]

    def _value(self, event: int, time: Tensor, state: Tensor) -> Tensor:
        """The condition of an event, after checking its form."""
        found = self._watch.events[event].condition(time, self._layout.unpack(state), *self._watch.args)
        return checked(found, event)

    def _values(self, field: Field, times: Sequence[float], rows: Tensor) -> list[list[float]]:
        """Of all functions at states ``rows`` (m, n)."""
        size, found = self._layout.size, []
        for time, row in zip(times, rows, strict=True):
            stamp = field.time(time)
            parts = [self._value(i, stamp, row[:size].clone()) for i in range(len(self._watch.events))]
            shapes = [part.shape for part in parts]
            if not self._which:
                self._shapes = shapes
                self._which = [(i, j) for i, part in enumerate(parts) for j in range(part.numel())]
            for event, (shape, before) in enumerate(zip(shapes, self._shapes, strict=True)):
                if shape != before:
                    raise FieldError(
                        explain(
                            f"the condition of events[{event}] returned shape {tuple(shape)} after {tuple(before)}",
                            "the same shape at all times",
                            "return one value per root function, always",
                        )
                    )
            found.append(torch.cat([part.reshape(-1).double() for part in parts]))
        listed: list[list[float]] = torch.stack(found).tolist()
        for time, values in zip(times, listed, strict=True):
            for (event, _), value in zip(self._which, values, strict=True):
                self._check_number(event, time, value)
        return listed

    @staticmethod
    def _check_number(event: int, time: float, value: float) -> None:
        if math.isnan(value):
            raise FieldError(
                explain(
                    f"the condition of events[{event}] is nan at t = {time:.9g}",
                    "a number wherever the solution goes",
                    "keep it from leaving its domain (log, sqrt, division), as by clamping what goes in",
                )
            )


def checked(value: Any, event: int) -> Tensor:
    """What the condition of an event returned, if it is a real tensor that is not empty."""
    if not isinstance(value, Tensor):
        came = "nothing (None)" if value is None else f"a {type(value).__name__}"
        remedy = "add the return statement" if value is None else "compute it from t and y by torch operations"
    elif value.is_complex() or value.dtype is torch.bool:
        came = f"dtype {value.dtype}"
        remedy = "return what is compared with zero, not the comparison" if value.dtype is torch.bool else "take .real"
    elif value.numel() == 0:
        came, remedy = f"an empty tensor of shape {tuple(value.shape)}", "return at least one value"
    else:
        return value
    raise FieldError(
        explain(
            f"the condition of events[{event}] returned {came}",
            "a real tensor, the sign of which changes at the event",
            remedy,
        )
    )


def _sign(x: float) -> int:
    return (x > 0) - (x < 0)


def root(
    f: Callable[[float], float], a: float, b: float, at_a: float, at_b: float, width: float
) -> tuple[float, float]:
    """A root of ``f`` between ``a`` and ``b``, at which its values ``at_a`` and ``at_b`` have different signs.

    Oliveira and Takahashi (2021), "An enhancement of the bisection method average performance preserving minmax
    optimality" (ITP, with ``kappa_1 = 0.2 / (b - a)``, ``kappa_2 = 2``, ``n_0 = 1``): never more than one evaluation
    beyond those of bisection.

    Returns
    -------
    float
        The end of the last bracket, no wider than ``width``, where ``f`` is smaller.
    float
        The larger of the magnitudes of ``f`` at its ends.
    """
    if at_a == 0.0 or b <= a:
        return a, abs(at_a)
    if at_b == 0.0:
        return b, 0.0
    truncation = 0.2 / (b - a)
    most = max(math.ceil(math.log2((b - a) / width)), 0) + 1
    for done in itertools.count():
        middle = 0.5 * (a + b)
        if b - a <= width or done > most or not a < middle < b:
            break
        # Regula falsi, pulled towards the middle, and no farther from it than bisection would be by now.
        secant = (b * at_a - a * at_b) / (at_a - at_b)
        if not math.isfinite(secant):  # a condition may be infinite
            secant = middle
        side = math.copysign(1.0, middle - secant)
        nudge = truncation * (b - a) ** 2
        point = secant + side * nudge if nudge <= abs(middle - secant) else middle
        radius = max(0.5 * width * 2.0 ** (most - done) - 0.5 * (b - a), 0.0)
        if abs(point - middle) > radius:
            point = middle - side * radius
        if not a < point < b:
            point = middle
        value = f(point)
        if value == 0.0:
            return point, 0.0
        if (value > 0) == (at_a > 0):
            a, at_a = point, value
        else:
            b, at_b = point, value
    return (a if abs(at_a) < abs(at_b) else b), max(abs(at_a), abs(at_b))
