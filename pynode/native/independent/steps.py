"""Explicit Runge-Kutta steps of many rows, each with a step size of its own.

Stages are kept multiplied by the step size of their row, ``h_b k_i``, so that every combination of stages is one
product with a row of the tableau, the same for all rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pynode.errors import FieldError
from pynode.evaluations import changed_input, located
from pynode.native.independent.field import RowField
from pynode.native.runge_kutta import coefficients
from pynode.native.tableaus import Tableau

Floats = NDArray[np.float64]


class RowRungeKutta:
    """Attempts of steps in a preallocated buffer, without autograd.

    Parameters
    ----------
    tableau : Tableau
    field : RowField
        Of any rows: for dtype, device and size.
    rows : int
        Most rows a call will have.
    """

    def __init__(self, tableau: Tableau, field: RowField, rows: int) -> None:
        layout = field.layout
        self.coefficients = k = coefficients(tableau, layout.dtype, layout.device)
        self.fsal, self.error_order = tableau.fsal, tableau.error_order or tableau.order
        self._storage = torch.empty(k.main * rows * layout.size, dtype=layout.dtype, device=layout.device)
        self._errors = torch.stack(k.error)
        self._estimates = len(k.error)
        self._size = layout.size
        self._c = np.array(tableau.c)[:, None]
        self._at_end = [i for i, c in enumerate(tableau.c) if c == 1.0]
        self.resize(rows)

    def resize(self, rows: int) -> None:
        """From now on so many rows."""
        k, n = self.coefficients, self._size
        used = self._storage[: k.main * rows * n]
        self._stages = used.view(k.main, rows, n)
        self._slots = self._stages.unbind()
        flat = used.view(k.main, rows * n)
        self._prefix = [self._storage.as_strided((rows * n, i), (1, rows * n)) for i in range(k.main + 1)]
        self._flat = flat

    def attempt(
        self, field: RowField, t: Floats, t1: Floats, h: Floats, y: Tensor, k1: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One step of every row, from ``t`` to ``t1 = t + h`` (b,) and ``y`` (b, n), ``f`` there being ``k1``.

        Returns
        -------
        y1 : Tensor (b, n)
        last : Tensor (b, n)
            The last stage, ``f(t1, y1)`` of a first-same-as-last method.
        """
        k, prefix, slots = self.coefficients, self._prefix, self._slots
        rows = y.shape[0]
        numbers = np.empty((k.main, rows))
        np.multiply(self._c, h, out=numbers)
        numbers += t
        for i in self._at_end:
            numbers[i] = t1
        numbers[0] = h  # the time of the first stage is not asked for again
        on_device = torch.from_numpy(numbers).to(device=k.device, dtype=k.dtype)
        times = on_device.view(k.main, rows, *field.layout.time_shape).unbind()
        sizes = on_device[0].view(rows, 1)
        flat, shape = y.view(-1), y.shape
        addmv, mul, weights, strided = torch.addmv, torch.mul, k.a, torch.strided
        mul(k1, sizes, out=slots[0])
        state = last = y
        # This loop is most of the cost beside f: one combination, one view and one product per stage.
        layout, f, args = field.layout, field.f, field.args
        plain, dtype, device = layout.plain, layout.dtype, layout.device
        counted = not torch.is_inference_mode_enabled()
        i = 0
        try:
            for i in range(1, k.main):
                state = addmv(flat, prefix[i], weights[i]).view(shape)
                last = f(times[i], state if plain else layout.unpack(state), *args)
                if not (
                    plain
                    and type(last) is Tensor
                    and last.shape == shape
                    and last.dtype is dtype
                    and last.device == device
                    and last.layout is strided
                ):
                    last = layout.pack_derivative(last, rows)
                mul(last, sizes, out=slots[i])
                if counted and state._version:  # the last one may be the end of the step
                    raise changed_input()
        except FieldError as error:
            located(error, times[i])
            raise
        field.counts.nfe += k.main - 1
        return (state if self.fsal else addmv(flat, prefix[k.main], k.b).view(shape)), last

    def errors(self, y1: Tensor) -> Tensor:
        """Error estimates (e, b, n) of the last attempt, which ended in ``y1``."""
        return torch.mm(self._errors, self._flat).view(self._estimates, *y1.shape)

    def stages(self, places: Tensor) -> list[Tensor]:
        """Main stages of the last attempt of some rows, times their step sizes."""
        return list(self._stages.index_select(1, places).unbind())


def step(tableau: Tableau, field: RowField, t: Tensor, t1: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
    """A step of every row in functional operations, for autograd and for what is repeated.

    Parameters
    ----------
    t, t1 : Tensor (b,), float64
    y : Tensor (b, n)

    Returns
    -------
    y1 : Tensor (b, n)
    stages : list of Tensor (b, n)
        As many as ``y1`` needs, times the step sizes.
    first : Tensor (b, n)
        ``f(t, y)``.
    """
    k = coefficients(tableau, y.dtype, y.device)
    h = (t1 - t).to(y)[:, None]
    first = field(field.time(t), y)
    stages = [first * h]
    extend(tableau, field, t, t1, y, stages, k.needed)
    return _combined(y, stages, k.used[-1], k.weights[-1]), stages, first


def extend(
    tableau: Tableau, field: RowField, t: Tensor, t1: Tensor, y: Tensor, stages: list[Tensor], count: int
) -> None:
    """Append stages up to ``count`` to those that there are."""
    k = coefficients(tableau, y.dtype, y.device)
    size = t1 - t
    h = size.to(y)[:, None]
    for i in range(len(stages), count):
        # The last stage of a first-same-as-last method sits at the step's end.
        row = -1 if tableau.fsal and i == k.main - 1 else i
        time = t1 if k.c[i] == 1.0 else t + k.c[i] * size
        stages.append(field(field.time(time), _combined(y, stages, k.used[row], k.weights[row])) * h)


def interpolated(
    tableau: Tableau, stages: Sequence[Tensor], y: Tensor, h: Tensor, places: Tensor, thetas: Tensor, derivative: bool
) -> Tensor:
    """Dense output (m, n) in rows ``places`` at fractions ``thetas`` (m,) of their steps, or its time derivative.

    ``stages``: all of the tableau, those of dense output included, times the step sizes ``h`` (b,), float64.
    """
    k = coefficients(tableau, y.dtype, y.device)
    weights = k.dense_weights(thetas, derivative)
    found = torch.einsum("ms,smn->mn", weights, torch.stack([x.index_select(0, places) for x in stages[: k.all]]))
    if derivative:
        return found / h.index_select(0, places).to(y)[:, None]
    return y.index_select(0, places) + found


def _combined(y: Tensor, stages: Sequence[Tensor], used: Sequence[int], weights: Tensor) -> Tensor:
    stacked = torch.stack([stages[j] for j in used]).view(len(used), -1)
    return torch.addmv(y.reshape(-1), stacked.t(), weights).view(y.shape)
