"""Recurrent networks whose state evolves between observations."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pynode.controls.observations import check_series
from pynode.errors import InputError, explain
from pynode.nn.neural_ode import NeuralODE


class Filtered(NamedTuple):
    """States (batch, T, hidden) of a recurrent network at the rows of a series, ``before`` and ``after`` each.

    Examples
    --------
    >>> rnn = pynode.nn.ODERNN(lambda t, h: -h, torch.nn.GRUCell(2, 8), hidden=8)
    >>> states = rnn(torch.tensor([0.0, 1.0]), torch.randn(1, 2, 1))
    >>> round((states.before[:, 1].norm() / states.after[:, 0].norm()).item(), 3)  # decays by exp(-1) in between
    0.368
    """

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

    Examples
    --------
    >>> rnn = pynode.nn.ODERNN(lambda t, h: -h, torch.nn.GRUCell(2 * 3, 8), hidden=8)  # three channels and their mask
    >>> x = torch.randn(4, 5, 3)
    >>> x[:, 2] = math.nan  # nobody was observed at the third time
    >>> rnn(torch.linspace(0, 1, 5), x).after.shape
    torch.Size([4, 5, 8])
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
        seen, given = self._inputs(ts, x)
        if self.reverse:
            ts, seen, given = ts.flip(0), seen.flip(-1), given.flip(-2)
        states = self._jumps(seen, given, h) if self.flow is None else self._flows(ts, seen, given, h)
        return Filtered(*(x.flip(-2) for x in states)) if self.reverse else states

    def _flows(self, ts: Tensor, seen: Tensor, given: Tensor, h: Tensor) -> Filtered:
        """A solve from row to row."""
        assert self.flow is not None
        before: list[Tensor] = []
        after: list[Tensor] = []
        for row, here in enumerate(seen.unsqueeze(-1).unbind(-2)):
            if row:
                h = self.flow.trajectory(h, ts[row - 1 : row + 1])[-1]
            before.append(h)
            h = torch.where(here, self.cell(given[..., row, :], h), h)
            after.append(h)
        return Filtered(torch.stack(before, -2), torch.stack(after, -2))

    def _jumps(self, seen: Tensor, given: Tensor, h: Tensor) -> Filtered:
        """Without a field nothing happens but at a sample's own rows: these are moved to the front and taken alone."""
        order = seen.logical_not().to(torch.int8).argsort(dim=-1, stable=True)
        front = order[..., : int(seen.sum(-1).max()), None]
        states = [h]
        # Behind its own rows a sample's state is never looked at.
        for row in given.gather(-2, front.expand(*front.shape[:-1], given.shape[-1])).unbind(-2):
            states.append(self.cell(row, states[-1]))
        every = torch.stack(states, -2)
        taken = seen.long().cumsum(-1)
        where = torch.stack([taken - seen.long(), taken]).unsqueeze(-1).expand(-1, *taken.shape, self.hidden)
        return Filtered(every.gather(-2, where[0]), every.gather(-2, where[1]))

    def _inputs(self, ts: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Whether there is a value (batch, T), and the cell's input (batch, T, input), for each row."""
        observed = x.isnan().logical_not()
        seen = observed.any(-1)
        parts = [x.nan_to_num(nan=0.0)]
        if self.mask:
            parts.append(observed.to(x.dtype))
        if self.gap:
            gap = gaps(ts.flip(0), seen.flip(-1)).flip(-1) if self.reverse else gaps(ts, seen)
            parts.append(gap.unsqueeze(-1))
        return seen, torch.cat(parts, -1)

    def extra_repr(self) -> str:
        return f"hidden={self.hidden}, mask={self.mask}, gap={self.gap}, reverse={self.reverse}"


def gaps(ts: Tensor, seen: Tensor) -> Tensor:
    """Time (batch, T) between each row and the row before it that was seen; zero up to the first."""
    rows = torch.arange(len(ts), device=ts.device)
    last = torch.where(seen, rows, -1).cummax(-1).values
    last = torch.cat([torch.full_like(last[..., :1], -1), last[..., :-1]], -1)
    return torch.where(last >= 0, (ts - ts[last.clamp(min=0)]).abs(), 0.0)
