"""Adams methods with a fixed number of steps: Adams-Bashforth, and its correction by Adams-Moulton.

Functional operations only, so that the same stepper serves with and without autograd's tape. Weights follow the steps
that were taken, the lengths of which are carried with the past evaluations: gradients with respect to times go through
them.
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
from pynode.native.hermite import between
from pynode.native.history import integration_weights, lengthened, nodes_of
from pynode.native.runge_kutta import TapedRungeKutta
from pynode.native.tableaus import TABLEAUS
from pynode.problem import Field, nudged

#: Evaluations that a step looks at, that at its start included, and whether it is corrected.
ADAMS: dict[str, tuple[int, bool]] = {
    "AB3": (3, False),
    "AB4": (4, False),
    "AB5": (5, False),
    "ABM32": (3, True),
    "ABM43": (4, True),
    "ABM54": (5, True),
}

#: Of the first steps: its order is the highest here, its dense output costs no evaluation.
STARTER = "Tsit5"


class Adams:
    """See :class:`pynode.native.stepper.Stepper`.

    With ``k`` evaluations ``f_n, .., f_(n-k+1)`` and the polynomial P through them, ``y_P = y + int P``. The correction
    integrates the polynomial through ``f(t1, y_P), f_n, .., f_(n-k+2)`` instead (Hairer, Norsett and Wanner 1993,
    section III.1).

    Parameters
    ----------
    name : str
        Of :data:`ADAMS`.
    field : Field
    interpolation : "hermite" or "linear"
        Dense output: the polynomial that the step integrates, or a straight line.
    """

    def __init__(self, name: str, field: Field, interpolation: str = "hermite") -> None:
        self.field = field
        self._count, self._corrects = ADAMS[name]
        self.order = self.error_order = self._count
        self._linear = interpolation == "linear"
        self._starter = TapedRungeKutta(TABLEAUS[STARTER], field)
        self._starts = False
        self._rows: tuple[Tensor, ...] = ()
        self._gaps = torch.empty(0, dtype=torch.float64)
        self._predicted: Tensor | None = None

    def begin(self, t: Any, y: Tensor, derivative: Tensor | None = None, jump: float = 0.0) -> None:
        if derivative is None:
            derivative = self.field.check_pure(self._at(t, jump), y)
        self._slope = _kept(derivative)
        self._rows, self._gaps = (), torch.empty(0, dtype=torch.float64)

    def resume(self, t: Any, y: Tensor, carried: State) -> None:
        self._gaps, *rows = carried
        self._rows = tuple(rows)
        self._slope = _kept(self.field(self._at(t), y))

    def carried(self, end: bool = False) -> State:
        """Lengths of the past steps, and the evaluations at their starts."""
        if not end:
            return (self._gaps, *self._rows)
        most = self._count - 1
        return (lengthened(self._step[1], self._gaps, most), *(self._slope, *self._rows)[:most])

    def derivative(self) -> Tensor:
        return self._slope

    def witness(self) -> Tensor:
        """A tensor with an evaluation of this step in its graph."""
        return self._slope

    def attempt(self, t: Any, h: Any, y: Tensor, jump: float = 0.0, end: Any = None) -> Tensor:
        end = t + h if end is None else end
        self._starts = len(self._rows) < self._count - 1
        if self._starts:
            self._starter.begin(t, y, self._slope)
            y1 = self._starter.attempt(t, h, y, jump, end)
        else:
            self._predicted = None
            values, nodes = self._polynomial(h)
            y1 = self._moved(y, h, integration_weights(nodes, (1.0,)), values)[0]
            if self._corrects:
                self._predicted = _kept(self.field(self._at(end, jump), y1))
                values, nodes = self._polynomial(h)
                y1 = self._moved(y, h, integration_weights(nodes, (1.0,)), values)[0]
        self._step = (t, h, y, y1)
        return y1

    def error_ratio(self, measure: ErrorNorm) -> float:
        raise AssertionError("fixed steps have no error estimate")

    def interpolate(self, thetas: Sequence[Any], derivative: bool = False) -> Tensor:
        _, h, y, y1 = self._step
        if self._linear:
            return between(thetas, h, y, y1, None, derivative)
        if self._starts:
            return self._starter.interpolate(thetas, derivative)
        values, nodes = self._polynomial(h)
        weights = integration_weights(nodes, thetas, derivative)
        return self._weighted(weights, values) if derivative else self._moved(y, h, weights, values)

    def piece(self) -> Piece:
        if self._starts and not self._linear:
            return self._starter.piece()
        kept, t, h = copy.copy(self), float(self._step[0]), float(self._step[1])
        return lambda times, field: kept.interpolate([(x - t) / h for x in times]).detach()

    def advance(self, t: Any, y: Tensor) -> None:
        self._gaps, *rows = self.carried(end=True)
        self._rows = tuple(rows)
        if self._starts:  # what its dense output may have evaluated already
            self._starter.advance(t, y)
            self._slope = _kept(self._starter.derivative())
        else:
            self._slope = _kept(self.field(self._at(t), y))

    def _polynomial(self, h: Any) -> tuple[tuple[Tensor, ...], Tensor]:
        """The values that the polynomial goes through, and where they lie."""
        if self._predicted is None:
            return (self._slope, *self._rows), nodes_of(h, self._gaps)
        return (self._predicted, self._slope, *self._rows[:-1]), nodes_of(h, self._gaps[:-1], ahead=True)

    def _moved(self, y: Tensor, h: Any, weights: Tensor, values: Sequence[Tensor]) -> Tensor:
        moved: Tensor = y + h * self._weighted(weights, values)
        return moved

    def _weighted(self, weights: Tensor, values: Sequence[Tensor]) -> Tensor:
        return weights.to(values[0]) @ torch.stack(list(values))

    def _at(self, t: Any, jump: float = 0.0) -> Tensor:
        time = self.field.time(t)
        return nudged(time, jump) if jump else time

    _slope: Tensor
    _step: tuple[Any, Any, Tensor, Tensor]


def _kept(derivative: Tensor) -> Tensor:
    """An evaluation that is looked back at, while f may write its next result into the same memory."""
    return derivative if derivative.requires_grad else derivative.clone()
