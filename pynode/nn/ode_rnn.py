"""Recurrent networks whose state evolves between observations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pynode.controls.observations import check_series
from pynode.errors import InputError, explain
from pynode.nn.neural_ode import NeuralODE


class Filtered(NamedTuple):
    """States (batch, T, hidden) of a recurrent network at the rows of a series, ``before`` and ``after`` each."""

    before: Tensor
    after: Tensor


class ODERNN(nn.Module):
    """``dh/dt = f(t, h)`` between observations, ``h = cell(x, h)`` at each (Rubanova, Chen and Duvenaud 2019).

    Parameters
    ----------
    f : torch.nn.Module, callable or None
        The field ``f(t, h)``, (batch, hidden) to (batch, hidden). None leaves the state as it is between
        observations: a recurrent network.
    cell : torch.nn.Module
        ``cell(input, h)``, such as ``torch.nn.GRUCell``. Its input holds the values (zero where missing), then, with
        ``mask``, ones where there is a value and zeros elsewhere, then, with ``gap``, the time since the sample's last
        row that had a value (zero at its first).
    hidden : int
        Size of the state.
    mask, gap : bool
        What the cell's input holds beside the values.
    reverse : bool
        Run from the last row to the first, the field backward in time.
    **options
        As for :class:`NeuralODE`: algorithm, sensealg, tolerances, backend...

    Notes
    -----
    A batch shares the grid ``ts`` (the union of its samples' times, :func:`pynode.controls.on_shared_times`); NaN
    marks what is missing. A sample's state jumps at rows in which it has a value and only there, so that rows of NaN
    ask for its state at other times. Every stretch between two rows is one solve: merge nearly equal times.

    References
    ----------
    Rubanova, Chen and Duvenaud (2019), "Latent ODEs for Irregularly-Sampled Time Series".
    """

    def __init__(
        self,
        f: Any,
        cell: nn.Module,
        hidden: int,
        *,
        mask: bool = True,
        gap: bool = False,
        reverse: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if f is None and options:
            raise InputError(
                explain(f"ODERNN(None) got {', '.join(options)}", "a field, or no options of a solve", "drop them")
            )
        self.flow = None if f is None else NeuralODE(f, **options)
        self.cell = cell
        self.hidden = hidden
        self.mask, self.gap, self.reverse = mask, gap, reverse

    def forward(self, ts: Tensor, x: Tensor, h0: Tensor | None = None) -> Filtered:
        """States just before and just after each row.

        Parameters
        ----------
        ts : Tensor
            (T,), strictly increasing.
        x : Tensor
            (batch, T, channels), NaN where missing.
        h0 : Tensor, optional
            (batch, hidden), the state at the first row (the last, if reversed) before it was seen; zero by default.

        Raises
        ------
        InputError
            For shapes or dtypes that do not fit.
        """
        check_series(ts, x)
        h = x.new_zeros(*x.shape[:-2], self.hidden) if h0 is None else h0
        before: list[Tensor] = []
        after: list[Tensor] = []
        rows = range(x.shape[-2])
        last: int | None = None
        for row, (seen, given) in zip(reversed(rows) if self.reverse else rows, self._inputs(ts, x), strict=True):
            if self.flow is not None and last is not None:
                h = self.flow.trajectory(h, torch.stack([ts[last], ts[row]]))[-1]
            before.append(h)
            h = torch.where(seen, self.cell(given, h), h)
            after.append(h)
            last = row
        if self.reverse:
            before, after = before[::-1], after[::-1]
        return Filtered(torch.stack(before, -2), torch.stack(after, -2))

    def _inputs(self, ts: Tensor, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Whether there is a value (batch, 1), and the cell's input, row after row in the order of time taken."""
        if self.reverse:
            ts, x = ts.flip(0), x.flip(-2)
        values = x.nan_to_num(nan=0.0)
        observed = x.isnan().logical_not()
        seen = observed.any(-1, keepdim=True)
        gap = torch.zeros_like(values[..., 0, :1])
        started = torch.zeros_like(seen[..., 0, :])
        for row in range(len(ts)):
            if row:
                gap = torch.where(started, gap + (ts[row] - ts[row - 1]).abs(), 0.0)
            parts = [values[..., row, :]]
            if self.mask:
                parts.append(observed[..., row, :].to(x.dtype))
            if self.gap:
                parts.append(gap)
            here = seen[..., row, :]
            yield here, torch.cat(parts, -1)
            gap = torch.where(here, 0.0, gap)
            started = started | here

    def extra_repr(self) -> str:
        return f"hidden={self.hidden}, mask={self.mask}, gap={self.gap}, reverse={self.reverse}"
