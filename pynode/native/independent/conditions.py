"""The conditions of events, called with some rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode.errors import FieldError, explain
from pynode.events import Event
from pynode.native.independent.layout import RowLayout
from pynode.native.independent.record import Floats, Indices
from pynode.native.root_finding import checked


class Conditions:
    """Root functions of every row: the elements of all conditions, one event after the other.

    Parameters
    ----------
    events : sequence of Event
    layout : RowLayout

    Attributes
    ----------
    owner, component : ndarray (k,)
        Of every root function: its event, and its place there.
    """

    def __init__(self, events: Sequence[Event], layout: RowLayout) -> None:
        self.events, self.layout = tuple(events), layout
        self._widths: list[int] = []
        self.owner: Indices = np.zeros(0, dtype=np.int64)
        self.component: Indices = np.zeros(0, dtype=np.int64)

    def __call__(self, event: int, t: Tensor, y: Tensor, args: tuple[Any, ...]) -> Tensor:
        """Values (b, k_e) of the condition of an event at times (b, 1, ..., 1), as ``f`` gets them, and states (b, n).

        Raises
        ------
        FieldError
            If it returned anything but real numbers for each of the rows, as many as before.
        """
        value = checked(self.events[event].condition(t, self.layout.unpack(y), *args), event)
        rows = y.shape[0]
        if value.ndim == 0 or value.shape[0] != rows:
            raise FieldError(
                explain(
                    f"the condition of events[{event}] returned shape {tuple(value.shape)}, called with {rows} rows "
                    "that are still running",
                    f"one or more values for each of them, ({rows},) or ({rows}, k)",
                    "compute it row by row: y[:, 0] - 1 rather than y[0] - 1",
                )
            )
        value = value.reshape(rows, -1)
        if event < len(self._widths) and value.shape[1] != self._widths[event]:
            raise FieldError(
                explain(
                    f"the condition of events[{event}] returned {value.shape[1]} values a row after "
                    f"{self._widths[event]}",
                    "as many at all times",
                    "return one value per root function, always",
                )
            )
        return value

    def all(self, t: Tensor, y: Tensor, args: tuple[Any, ...]) -> Tensor:
        """Values (b, k) of all root functions, float64."""
        parts = [self(i, t, y.clone(), args) for i in range(len(self.events))]
        if not self._widths:
            self._widths = [part.shape[1] for part in parts]
            self.owner = np.repeat(np.arange(len(parts)), self._widths)
            self.component = np.concatenate([np.arange(width) for width in self._widths])
        return torch.cat([part.double() for part in parts], dim=1)

    def check_numbers(self, values: Floats, times: Floats, ids: Indices, which: Indices | None = None) -> None:
        """Raise FieldError where one of ``values`` (..., b, k) at ``times`` (..., b) of rows ``ids`` (b,) is NaN; where
        ``which`` is given, of root functions ``which`` (b,) alone, (b,)."""
        bad = np.isnan(values)
        if not bad.any():
            return
        place = tuple(int(x[0]) for x in bad.nonzero())
        row, function = (place[-1], which[place[-1]]) if which is not None else (place[-2], place[-1])
        time = times[place] if which is not None else times[place[:-1]]
        raise FieldError(
            explain(
                f"the condition of events[{self.owner[function]}] is nan in row {ids[row]} at t = {time:.9g}",
                "a number wherever the solution goes",
                "keep it from leaving its domain (log, sqrt, division), as by clamping what goes in",
            )
        )
