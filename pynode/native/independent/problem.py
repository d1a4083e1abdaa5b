"""The problem of independent stepping: like any other, with a leading dimension of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode.autocast import Autocast
from pynode.errors import InputError, explain
from pynode.native.independent.field import RowArguments, RowField
from pynode.native.independent.layout import RowLayout
from pynode.native.independent.times import RowTimes
from pynode.per_sample import unwrapped
from pynode.problem import Arguments, ODEProblem, _outside_inference, check_range
from pynode.solution import Counts


class RowProblem(ODEProblem):
    """``dy/dt = f(t, y, *args)`` for every row of a batch, validated.

    What :class:`pynode.problem.ODEProblem` keeps of one problem this one keeps of all rows: ``y0`` is a matrix (B, n),
    ``times`` are two tensors (B,), the first and the last time of each.

    Parameters
    ----------
    f, y0, t, args
        As in :func:`pynode.solve`.

    Attributes
    ----------
    rows : RowLayout
    row_times : RowTimes
    row_arguments : RowArguments
    indices : Tensor (B,)
        0, 1, ..., B - 1 on the state's device.
    """

    def __init__(self, f: Callable[..., Any], y0: Any, t: Any, args: tuple[Any, ...] = ()) -> None:
        if not callable(f):
            raise InputError(
                explain(f"f is a {type(f).__name__}", "a callable f(t, y, *args)", "pass a module or function")
            )
        if not isinstance(args, tuple):
            raise InputError(
                explain(
                    f"args is a {type(args).__name__}", "a tuple of what f takes after (t, y)", "write args=(value,)"
                )
            )
        self.callables = (f,)
        self.rows = RowLayout(y0)
        self.layout = self.state_layout = self.norm_layout = self.rows.row
        self.cost_layout = None
        self.quantities = ()
        self.row_times = RowTimes("t", t, self.rows.batch)
        if self.row_times.shared and self.row_times.count < 2:
            raise InputError(explain("t has 1 element", "at least a start and an end time", "give both"))
        self.t = _outside_inference(self.row_times.tensor)
        plain, per_row = unwrapped(args)
        self.arguments = Arguments(plain)
        self.row_arguments = RowArguments(plain, per_row, self.rows.batch)
        self.autocast = Autocast(self.rows.device.type, self.layout.dtype)
        self.f = self.autocast.around(f)
        self.y0 = _outside_inference(self.rows.pack(y0))
        ends: Any = [torch.from_numpy(np.array(x)) for x in (self.row_times.starts, self.row_times.ends)]
        self.times = ends
        check_range(self.times, self.layout.dtype)
        self.indices = torch.arange(self.rows.batch, device=self.rows.device)

    def field(self, counts: Counts) -> Any:
        """The field on matrices of all rows, counted in ``counts``."""
        return RowField(self.f, self.arguments.args, self.rows, counts)

    def field_of(self, rows: Tensor | None, counts: Counts) -> RowField:
        """The field on matrices of some rows, given by their indices (b,); of all where None."""
        own = self.row_arguments
        return RowField(self.f, own.args if rows is None else own.of(rows), self.rows, counts)
