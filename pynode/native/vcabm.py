"""Adams methods of variable step and variable order in modified divided differences (Krogh 1974; Hairer, Norsett and
Wanner 1993, sections III.5 and III.7).

With ``Phi_j(n) = (t_n - t_(n-1)) .. (t_n - t_(n-j)) f[t_n, .., t_(n-j)]`` and ``Phi*_j = beta_j Phi_j``, where beta_j
turns the factors into those of t1, the polynomial through the last k evaluations is, at the fraction x of the step,
``sum_(j<k) pi_j(x) Phi*_j`` with ``pi_j`` of :func:`pynode.native.history.newton_basis`; and
``Phi_(j+1)(n+1) = Phi_j(n+1) - Phi*_j(n)``. ``Phi*`` and the lengths of past steps are carried.

Functional operations only, so that the same stepper serves with and without autograd's tape.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.native.checkpoints import State
from pynode.native.dense import Piece
from pynode.native.error_norm import ErrorNorm
from pynode.native.history import float64, lengthened, newton_basis
from pynode.native.order_choice import OrderChoice
from pynode.problem import Field, nudged
from pynode.transforms import moves, number

#: Estimates are taken twice as large as they are: errors are then mostly below those of LSODA at the same tolerance, on
#: fewer evaluations.
SCALE = 2.0


class VCABM:
    """See :class:`pynode.native.stepper.SteeringStepper`.

    With a predictor of order k the corrector is of order k + 1, and the solution goes on with that; the error is
    estimated by the difference to the corrector of order k.

    Parameters
    ----------
    most : int
        The highest order of the predictor.
    field : Field
    """

    explicit = True

    def __init__(self, most: int, field: Field) -> None:
        self.field = field
        self._most = most
        #: The highest, which quadratures along the solution ask for.
        self.order = most + 1
        self._choice = OrderChoice(most, weight=lambda k: 1.0)
        #: Of the last attempt; that of the coming one is chosen while the last is still looked at.
        self._order = 1
        self._gaps = torch.empty(0, dtype=torch.float64)
        self._known: dict[int, float] = {}

    @property
    def error_order(self) -> int:
        return self._choice.order + 1

    def begin(self, t: Any, y: Tensor, derivative: Tensor | None = None, jump: float = 0.0) -> None:
        self._choice.restart()
        if derivative is None:
            derivative = self.field.check_pure(self._at(t, jump), y)
        self._differences, self._gaps = _kept(derivative)[None], torch.empty(0, dtype=torch.float64)
        self._before = derivative.new_empty(0, derivative.numel())

    def resume(self, t: Any, y: Tensor, carried: State) -> None:
        self._gaps, self._before = carried
        self._differences = _differences(self.field(self._at(t), y), self._before)

    def carried(self, end: bool = False) -> State:
        """Lengths of the past steps, and the ``Phi*`` of the last one."""
        if not end:
            return (self._gaps, self._before)
        return (lengthened(self._step[1], self._gaps, len(self._stars)), self._stars)

    def derivative(self) -> Tensor:
        return self._differences[0]

    def witness(self) -> Tensor:
        """A tensor in whose graph every evaluation of the step is."""
        return self._step[3]

    def choice(self) -> int:
        return self._order

    def choose(self, choice: int) -> None:
        self._choice.order = choice

    def attempt(self, t: Any, h: Any, y: Tensor, jump: float = 0.0, end: Any = None) -> Tensor:
        self._order = k = self._choice.order
        # One more difference than the order needs, to see whether the next order would do better.
        count = min(len(self._differences), k + 1, self._most)
        length, gaps = self._lengths(h)
        behind = [0.0]
        for gap in gaps[: count - 1]:
            behind.append(behind[-1] + gap)
        beta = [1.0]
        for i in range(1, count):
            beta.append(beta[-1] * (length + behind[i - 1]) / behind[i])
        self._stars = stars = _numbers(beta, y)[:, None] * self._differences[:count]
        self._basis = newton_basis([s / length for s in behind])
        self._weights = [sum(c / (i + 1) for i, c in enumerate(row)) for row in self._basis]
        predicted = y + h * (_numbers(self._weights[:k], y) @ stars[:k])
        rate = self.field(self._at(t + h if end is None else end, jump), predicted)
        self._seen = _differences(rate, stars)
        y1: Tensor = predicted + (h * self._weights[k]) * self._seen[k]
        self._step = (t, h, y, y1)
        return y1

    def error_ratio(self, measure: ErrorNorm) -> float:
        h, weights = number(self._step[1]), [number(w) for w in self._weights]
        with torch.no_grad():
            seen, k = self._seen.detach(), self._order
            self._known = {
                j: measure(seen[j], SCALE * h * (weights[j] - weights[j - 1]))
                for j in range(max(k - 2, 1), min(k + 2, len(seen)))
            }
        return self._known[k]

    def reorder(self, accepted: bool) -> tuple[float, int]:
        known = self._known.__getitem__
        # An order needs as many differences, and one more was kept to compare with it.
        ratio, order = (
            self._choice.accepted(known, len(self._stars) + 1)
            if accepted
            else self._choice.rejected(known, known(self._order))
        )
        return ratio, order + 1

    def steer(self, factor: float, accepted: bool) -> float:
        return self._choice.steer(factor, accepted)

    def interpolate(self, thetas: Sequence[Any], derivative: bool = False) -> Tensor:
        _, h, y, _ = self._step
        k = self._order
        # Row j: coefficients of pi_j, padded.
        rows = torch.stack([_as_tensor([*row, *[0.0] * (k + 1 - len(row))]) for row in self._basis[: k + 1]])
        powers = torch.arange(k + 1, dtype=torch.float64)
        x = torch.stack([float64(theta) for theta in thetas])[:, None]
        values = x**powers if derivative else x ** (powers + 1) / (powers + 1)
        differences = torch.cat([self._stars[:k], self._seen[k][None]])
        slopes: Tensor = (values @ rows.t()).to(y) @ differences
        return slopes if derivative else y + h * slopes

    def piece(self) -> Piece:
        kept, t, h = copy.copy(self), float(self._step[0]), float(self._step[1])
        return lambda times, field: kept.interpolate([(x - t) / h for x in times]).detach()

    def advance(self, t: Any, y: Tensor) -> None:
        self._gaps, self._before = self.carried(end=True)
        self._differences = _differences(self.field(self._at(t), y), self._before)

    def _lengths(self, h: Any) -> tuple[Any, list[Any]]:
        """The step and those behind it, latest first: numbers, or tensors where a gradient goes through them."""
        gaps = self._gaps
        # A leaf is an input of a step repeated alone: where its gradient is wanted, so is that of the step's ends.
        if isinstance(h, torch.Tensor) or (moves(gaps) and not (gaps.requires_grad and gaps.is_leaf)):
            return float64(h), list(gaps.unbind())
        return float(h), gaps.tolist()

    def _at(self, t: Any, jump: float = 0.0) -> Tensor:
        time = self.field.time(t)
        return nudged(time, jump) if jump else time

    _differences: Tensor
    _before: Tensor
    _stars: Tensor
    _seen: Tensor
    _basis: list[list[Any]]
    _weights: list[Any]
    _step: tuple[Any, Any, Tensor, Tensor]


def _differences(rate: Tensor, stars: Tensor) -> Tensor:
    """``Phi_0 .. Phi_m`` at the end of a step from the evaluation there and ``Phi*_0 .. Phi*_(m-1)`` of the step."""
    return torch.cumsum(torch.cat([rate[None], -stars]), 0)


def _as_tensor(values: Sequence[Any]) -> Tensor:
    if any(isinstance(value, Tensor) for value in values):
        return torch.stack([float64(value) for value in values])
    return torch.tensor(values, dtype=torch.float64)


def _numbers(values: Sequence[Any], like: Tensor) -> Tensor:
    return _as_tensor(values).to(like)


def _kept(derivative: Tensor) -> Tensor:
    """An evaluation that is looked back at, while f may write its next result into the same memory."""
    return derivative if derivative.requires_grad else derivative.clone()
