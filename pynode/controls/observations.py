"""A series with missing values, each channel of each sample by its own observed values."""

from __future__ import annotations

import torch
from torch import Tensor

from pynode.errors import InputError, explain
from pynode.problem import check_times


class Observations:
    """Every series of a batch with its observed values moved to the front.

    What is interpolated is one scalar series at a time through what was observed of it, and nothing else: a missing
    value leaves no trace. Here they lie side by side, so that an interpolation is a few operations on tensors.

    Parameters
    ----------
    ts : Tensor
        (T,), strictly increasing, T >= 2.
    x : Tensor
        (batch..., T, channels), NaN where missing. A series without one value is taken as zero throughout.

    Attributes
    ----------
    mask : Tensor
        (S, T), S = batch * channels: where there is a value.
    count : Tensor
        (S, 1), values in each series; 1 where there was none.
    times, values : Tensor
        (S, T): the first ``count`` are those observed. Behind them times go on in steps of 1, values repeat the last.

    Raises
    ------
    InputError
        For shapes or dtypes that do not fit, infinite values, and times that require a gradient.
    """

    def __init__(self, ts: Tensor, x: Tensor) -> None:
        check_series(ts, x)
        self.ts = ts
        self._batch = x.shape[:-2]
        self._channels = x.shape[-1]
        rows = x.movedim(-2, -1).reshape(-1, x.shape[-2])
        mask = rows.isnan().logical_not()
        mask = torch.cat([mask[:, :1] | mask.any(1, keepdim=True).logical_not(), mask[:, 1:]], 1)
        self.mask = mask
        self.count = mask.sum(1, keepdim=True)
        order = mask.logical_not().to(torch.int8).argsort(dim=1, stable=True)
        rank = torch.arange(x.shape[-2], device=x.device).expand_as(order)
        last = self.count - 1
        order = order.gather(1, torch.minimum(rank, last))
        self.times = ts[order] + (rank - last).clamp(min=0).to(ts.dtype)
        # NaN replaced before anything is computed from it: 0 * NaN would poison gradients.
        self.values = rows.nan_to_num(nan=0.0).gather(1, order)

    def steps(self) -> tuple[Tensor, Tensor]:
        """Lengths of the intervals between observed times, and slopes of the values over them; each (S, T - 1)."""
        lengths = self.times.diff(dim=1)
        return lengths, self.values.diff(dim=1) / lengths

    def ends(self) -> Tensor:
        """(T,), at which times some series begins or ends to change."""
        moving = self.mask & (self.count > 1)
        rank = moving.long().cumsum(1)
        return (moving & ((rank == 1) | (rank == self.count))).any(0)

    def on_grid(self, *powers: Tensor) -> Tensor:
        """Polynomials (S, T - 1) between observed times, as polynomials between all times.

        Parameters
        ----------
        *powers : Tensor
            Coefficients behind that of power 0, which is the observed value: of power 1, 2...

        Returns
        -------
        Tensor
            (batch..., T - 1, powers, channels); constant before a series' first observation and after its last.
        """
        before = self.mask.long().cumsum(1)[:, :-1] - 1  # the observed interval that a grid interval lies in
        inside = (before >= 0) & (before < self.count - 1)
        index = before.clamp(min=0)
        shift = torch.where(inside, self.ts[:-1] - self.times.gather(1, index), 0.0)
        piece = [self.values.gather(1, index), *(_within(p, index, inside) for p in powers)]
        # The same polynomial about another point: synthetic division, once for each power.
        for lowest in range(len(piece) - 1):
            for power in reversed(range(lowest, len(piece) - 1)):
                piece[power] = piece[power] + shift * piece[power + 1]
        stacked = torch.stack(piece, -1)
        grid = stacked.reshape(*self._batch, self._channels, *stacked.shape[1:])
        return grid.movedim(-3, -1)


def _within(coefficient: Tensor, index: Tensor, inside: Tensor) -> Tensor:
    last = coefficient.shape[1] - 1
    return torch.where(inside, coefficient.gather(1, index.clamp(max=last)), 0.0)


def check_series(ts: Tensor, x: Tensor) -> None:
    """Raise InputError unless ``ts`` (T,) and ``x`` (batch..., T, channels) are a series."""
    for name, value in (("ts", ts), ("x", x)):
        if not isinstance(value, Tensor) or value.dtype not in (torch.float32, torch.float64):
            what = f"dtype {value.dtype}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
            raise InputError(explain(f"{name} has {what}", "a tensor of float32 or float64", f"convert {name}"))
    if ts.requires_grad:
        raise InputError(
            explain(
                "ts requires a gradient",
                "fixed observation times: where the derivative jumps, steps end at them and do not move",
                "pass ts.detach(), or make the times a channel of x",
            )
        )
    if ts.dtype != x.dtype or ts.device != x.device:
        raise InputError(
            explain(
                f"ts is {ts.dtype} on {ts.device}, x is {x.dtype} on {x.device}",
                "one precision and device",
                "write ts.to(x)",
            )
        )
    _, times = check_times("ts", ts)
    if x.ndim < 2 or x.shape[-2] != len(times) or len(times) < 2 or x.shape[-1] == 0:
        raise InputError(
            explain(
                f"ts has shape {tuple(ts.shape)} and x {tuple(x.shape)}",
                "ts (T,) and x (batch..., T, channels) with T >= 2",
                "put the times of x in its second last dimension",
            )
        )
    if times[1] < times[0]:
        raise InputError(explain("ts decreases", "increasing times", "flip ts and x"))
    if bool(x.isinf().any()):
        raise InputError(explain("x has infinite values", "finite values, NaN where missing", "set them to NaN"))
