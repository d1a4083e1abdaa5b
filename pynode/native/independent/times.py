"""Times of rows: shared by all, or one series for each, padded at its end."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pynode.errors import InputError, explain
from pynode.problem import check_times

Floats = NDArray[np.float64]


class RowTimes:
    """Times of every row of a batch.

    Parameters
    ----------
    name : str
        Of the argument, for messages.
    t : 1-D tensor or sequence of float, 2-D tensor, nested (jagged) tensor, or list of 1-D tensors
        (T,) for all rows, or for each row a strictly monotone series, in a direction of its own. A series shorter than
        T is padded at its end by NaN or by its last time again.
    batch : int

    Attributes
    ----------
    tensor : Tensor
        (T,), or (B, T) with NaN where a nested tensor or list ended; connected to the user's.
    values : ndarray
        (1, T) or (B, T), float64, NaN where padded by NaN.
    shared : bool
        Whether there is one series for all rows.

    Raises
    ------
    InputError
        Naming the row at fault.
    """

    def __init__(self, name: str, t: Any, batch: int) -> None:
        if isinstance(t, Tensor) and t.is_nested:
            t = torch.nested.to_padded_tensor(t, float("nan"))
        elif isinstance(t, list | tuple) and t and all(isinstance(x, Tensor | list | tuple) and _long(x) for x in t):
            rows = [x if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64) for x in t]
            t = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=float("nan"))
        self.shared = not (isinstance(t, Tensor) and t.ndim == 2)
        if self.shared:
            self.tensor, times = check_times(name, t)
            self.values: Floats = np.array([times])
            self.last = np.array([len(times) - 1])
        else:
            self._own(name, t, batch)
        self.count = int(self.values.shape[1])
        rows_ = np.arange(len(self.values))
        self._starts, self._ends = self.values[:, 0], self.values[rows_, self.last]
        #: Place of the first entry that has the last time of its row: what the padding repeats.
        self.end_at = (self.values == self._ends[:, None]).argmax(axis=1)
        self._batch = batch

    @property
    def starts(self) -> Floats:
        """First time of every row, (B,)."""
        return np.ascontiguousarray(np.broadcast_to(self._starts, self._batch))

    @property
    def ends(self) -> Floats:
        """Last time of every row, (B,)."""
        return np.ascontiguousarray(np.broadcast_to(self._ends, self._batch))

    @property
    def full(self) -> Floats:
        """(B, T), a view."""
        return np.broadcast_to(self.values, (self._batch, self.count))

    def time_first(self) -> Tensor:
        """The times as ``Solution.ts`` has them: (T,), or (T, B)."""
        return self.tensor if self.shared else self.tensor.t()

    def span(self, t: Tensor) -> Tensor:
        """First and last time of every row, (2, B) in float64, as a differentiable function of the tensor of times."""
        t = t.double()
        if self.shared:
            return t[[0, -1]][:, None].expand(2, self._batch)
        at = torch.from_numpy(self.end_at).to(t.device)
        return torch.stack([t[:, 0], t.gather(1, at[:, None])[:, 0]])

    def _own(self, name: str, t: Tensor, batch: int) -> None:
        if t.dtype not in (torch.float32, torch.float64):
            raise InputError(explain(f"{name} has dtype {t.dtype}", "float32 or float64", f"use {name}.double()"))
        if t.shape[0] != batch or not t.shape[1]:
            raise InputError(
                explain(
                    f"{name} has shape {tuple(t.shape)} and the state {batch} rows",
                    "a non-empty series of times for each row, (B, T), or one for all, (T,)",
                    f"give {name} one line for every row of the state",
                )
            )
        self.tensor = t
        self.values = values = t.detach().to("cpu", torch.float64).numpy()
        present = ~np.isnan(values)
        self.last = present.sum(axis=1) - 1
        filled = np.where(present, values, values[np.arange(batch), self.last][:, None])
        steps = np.diff(filled, axis=1)
        ahead = steps * np.sign(filled[:, -1] - filled[:, 0])[:, None]
        held = steps == 0.0
        faults = (
            (~np.isfinite(values[:, 0]), "begins with no finite time"),
            ((np.diff(present.astype(np.int8), axis=1) > 0).any(axis=1), "has a NaN between two times"),
            (~np.isfinite(filled).all(axis=1), "holds an infinite time"),
            (((ahead < 0) | (held & ~np.logical_and.accumulate(held[:, ::-1], axis=1)[:, ::-1])).any(axis=1),
             "is not strictly monotone up to its padding"),
        )  # fmt: skip
        for bad, what in faults:
            if bad.any():
                row = int(bad.argmax())
                shown = ", ".join(f"{x:.6g}" for x in values[row, :6]) + (", ..." if values.shape[1] > 6 else "")
                raise InputError(
                    explain(
                        f"{name}[{row}] = [{shown}] {what} ({int(bad.sum())} such row(s))",
                        "finite strictly increasing or decreasing times, padded at the end by NaN or the last time",
                        "sort each row, and pad at its end",
                    )
                )


def _long(x: Any) -> bool:
    return x.ndim == 1 and len(x) > 0 if isinstance(x, Tensor) else len(x) > 0


def check_within(times: RowTimes, span: RowTimes) -> Floats:
    """Save times (1 or B, M) within the span of every row, ends that were rounded to the save times' dtype set right.

    Raises
    ------
    InputError
        For a time outside its row's span, or against its direction.
    """
    starts, ends = span.starts[:, None], span.ends[:, None]
    low, high = np.minimum(starts, ends), np.maximum(starts, ends)
    slack = float(torch.finfo(times.tensor.dtype).eps) * np.maximum(np.abs(low), np.abs(high))
    values = times.full
    inside = np.clip(values, low, high)
    outside = (np.abs(inside - values) > slack).any(axis=1)
    against = ((times.ends - times.starts) * (span.ends - span.starts)) < 0
    for bad, what in ((outside, "leaves the row's span"), (against, "runs against t")):
        if bad.any():
            row = int(bad.argmax())
            raise InputError(
                explain(
                    f"saveat {what} in row {row}, which goes from {span.starts[row]:.9g} to {span.ends[row]:.9g} "
                    f"({int(bad.sum())} such row(s))",
                    "save times within t, in its direction",
                    "give saveat a line for each row, (B, M), or extend t",
                )
            )
    # One series for all stays one where no row has rounded it its own way.
    return times.values if times.shared and (inside == values).all() else np.ascontiguousarray(inside)
