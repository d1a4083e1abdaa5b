"""Adams methods of growing order for equal steps, with the semantics of torchdiffeq's ``fixed_adams.py``.

Functional operations only, so that the same stepper serves with and without autograd's tape.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pynode.algorithms import ExplicitAdams, ImplicitAdams
from pynode.errors import AccuracyWarning
from pynode.native.adjoints.backward import Backward
from pynode.native.checkpoints import State
from pynode.native.dense import Piece
from pynode.native.error_norm import ErrorNorm
from pynode.native.hermite import between
from pynode.native.runge_kutta import TapedRungeKutta
from pynode.native.tableaus import TABLEAUS
from pynode.problem import Field, nudged
from pynode.strict import warn
from pynode.transforms import number

if TYPE_CHECKING:
    from pynode.backends import Request

#: With fewer evaluations to look back at, a step is one of RK38.
FEWEST = 3


@functools.lru_cache(maxsize=64)
def adams_weights(count: int, ahead: bool) -> tuple[float, ...]:
    """Weights of the integral over a step of the polynomial through ``count`` values at 0, -1, -2, ..; at 1, 0, -1, ..
    where ``ahead`` (Hairer, Norsett and Wanner 1993, III.(1.5) and III.(1.8)), correctly rounded."""
    nodes = [int(ahead) - j for j in range(count)]
    return tuple(float(_integral([x for x in nodes if x != node], node)) for node in nodes)


def _integral(roots: list[int], at: int) -> Fraction:
    """Integral from 0 to 1 of the polynomial with these roots that is 1 at ``at``."""
    polynomial = [Fraction(1)]  # ascending powers
    for root in roots:
        shifted, scaled = [Fraction(0), *polynomial], [*(-root * c for c in polynomial), Fraction(0)]
        polynomial = [(a + b) / (at - root) for a, b in zip(shifted, scaled, strict=True)]
    return sum((c / (i + 1) for i, c in enumerate(polynomial)), Fraction(0))


class FixedAdams:
    """See :class:`pynode.native.stepper.RememberingStepper`.

    Parameters
    ----------
    algorithm : ExplicitAdams
    field : Field
    request : Request
    """

    #: Global, of the first steps as of the later ones, where ``max_order`` allows it.
    highest = 4

    def __init__(self, algorithm: ExplicitAdams | ImplicitAdams, field: Field, request: Request) -> None:
        self.field = field
        self._most = algorithm.max_order - 1
        self.order = self.error_order = 4 if self._most < FEWEST else min(self.highest, self._most + self.highest - 4)
        self._linear = algorithm.interpolation == "linear"
        self._starter = TapedRungeKutta(TABLEAUS["RK38"], field)
        self._rows: tuple[Tensor, ...] = ()
        self._rows_end: tuple[Tensor, ...] = ()
        self._end_slope: Tensor | None = None

    def begin(self, t: Any, y: Tensor, derivative: Tensor | None = None, jump: float = 0.0) -> None:
        self._rows = (_kept(self.field.check_pure(self._at(t, jump), y) if derivative is None else derivative),)

    def resume(self, t: Any, y: Tensor, carried: State, jump: float = 0.0) -> None:
        self._rows = (_kept(self.field(self._at(t, jump), y)), *carried)

    def carried(self, end: bool = False) -> State:
        """The evaluations at the starts of past steps, latest first."""
        return self._rows_end if end else self._rows[1:]

    def derivative(self) -> Tensor:
        return self._rows[0]

    def witness(self) -> Tensor:
        """A tensor with an evaluation of this step in its graph."""
        return self._rows[0]

    def attempt(self, t: Any, h: Any, y: Tensor, jump: float = 0.0, end: Any = None) -> Tensor:
        end = t + h if end is None else end
        inside = self._at(end, jump)
        self._end_slope = None
        kept = self._rows
        if len(kept) < FEWEST:
            self._starter.begin(t, y, kept[0])
            y1 = self._starter.attempt(t, h, y, jump, end)
        else:
            rise, kept = self._rise(h, y, inside)
            y1 = y + rise
        self._rows_end = kept[: max(self._most - 1, 0)]
        self._step = (t, h, inside, y, y1)
        self._jumped = bool(jump)
        return y1

    def error_ratio(self, measure: ErrorNorm) -> float:
        raise AssertionError("fixed steps have no error estimate")

    def interpolate(self, thetas: Sequence[Any], derivative: bool = False) -> Tensor:
        _, h, end, y, y1 = self._step
        if self._linear:
            return between(thetas, h, y, y1, None, derivative)
        if self._end_slope is None:
            self._end_slope = _kept(self.field(end, y1))
        return between(thetas, h, y, y1, (self._rows[0], self._end_slope), derivative)

    def piece(self) -> Piece:
        kept, t, h = copy.copy(self), float(self._step[0]), float(self._step[1])
        return lambda times, field: kept.interpolate([(x - t) / h for x in times]).detach()

    def advance(self, t: Any, y: Tensor, jump: float = 0.0) -> None:
        if self._end_slope is None or self._jumped:
            self._rows = (_kept(self.field(self._at(t, jump), y)), *self._rows_end)
        else:
            self._rows = (self._end_slope, *self._rows_end)

    def _rise(self, h: Any, y: Tensor, end: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What the step adds to the state, and the evaluations that are kept."""
        return h * _weighted(adams_weights(len(self._rows), False), self._rows), self._rows

    def _at(self, t: Any, jump: float = 0.0) -> Tensor:
        time = self.field.time(t)
        return nudged(time, jump) if jump else time

    _step: tuple[Any, Any, Tensor, Tensor, Tensor]
    _jumped: bool


class CorrectedFixedAdams(FixedAdams):
    """See :class:`pynode.native.stepper.ChoosingStepper`: the choice is the number of corrections, and whether they
    converged."""

    highest = 5

    def __init__(self, algorithm: ImplicitAdams, field: Field, request: Request) -> None:
        super().__init__(algorithm, field, request)
        self._iterations = algorithm.max_iters
        problem, sensealg = request.problem, request.sensealg
        backward = isinstance(field, Backward)
        own = (getattr(sensealg, key) if backward else None for key in ("rtol", "atol"))
        given = (
            problem.tolerance(x) if y is None else y for x, y in zip((request.rtol, request.atol), own, strict=True)
        )
        #: Channels that count: of an adjoint all, of the state those that do in error norms, too.
        self._part = slice(0, field.layout.size if backward else problem.norm_layout.size)
        self._rtol, self._atol = (x.min() if backward and isinstance(x, Tensor) else x for x in given)
        self._imposed: tuple[int, bool] | None = None
        self._made = (0, True)

    def choice(self) -> tuple[int, bool]:
        return self._made

    def choose(self, choice: tuple[int, bool]) -> None:
        self._imposed = choice

    def attempt(self, t: Any, h: Any, y: Tensor, jump: float = 0.0, end: Any = None) -> Tensor:
        self._made = (0, True)
        y1 = super().attempt(t, h, y, jump, end)
        self._imposed = None
        return y1

    def _rise(self, h: Any, y: Tensor, end: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        rise, rows = super()._rise(h, y, end)
        first, *others = adams_weights(len(rows) + 1, True)
        past = h * _weighted(others, rows)
        most, converged = (self._iterations, False) if self._imposed is None else self._imposed
        for count in itertools.count(1):
            before, rise = rise, h * (first * self.field(end, y + rise)) + past
            if self._imposed is None and self._converged(before, rise):
                most, converged = count, True
            if count >= most:
                break
        self._made = (most, converged)
        if not converged and self._imposed is None:
            warn(
                f"{most} corrections of an Adams step did not bring it within the tolerances: the solution may be "
                "wrong. Take shorter steps, or an algorithm for stiff problems",
                AccuracyWarning,
            )
        return rise, rows if converged else rows[:-1]

    def _converged(self, before: Tensor, rise: Tensor) -> bool:
        with torch.no_grad():
            a, b = before.detach()[self._part], rise.detach()[self._part]
            allowed = self._atol + self._rtol * torch.maximum(a.abs(), b.abs())
            return number(((a - b).abs() / allowed).max()) < 1.0


def _weighted(weights: Sequence[float], rows: Sequence[Tensor]) -> Tensor:
    return torch.mv(torch.stack(list(rows)).t(), rows[0].new_tensor(weights))


def _kept(derivative: Tensor) -> Tensor:
    """An evaluation that is looked back at, while f may write its next result into the same memory."""
    return derivative if derivative.requires_grad else derivative.clone()


FIXED_ADAMS: dict[str, type[FixedAdams]] = {"ExplicitAdams": FixedAdams, "ImplicitAdams": CorrectedFixedAdams}
