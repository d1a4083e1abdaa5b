"""What an independent solve returns: a solution whose rows ended each in its own way."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pynode.errors import InputError, explain
from pynode.events import RowFiring
from pynode.solution import ADVICE, ReturnCode, Solution


@dataclass(frozen=True)
class RowCounts:
    """Work of every row in the forward solve, int64 tensors (B,) on the host: evaluations of ``f`` that the row took
    part in, accepted and rejected steps.

    Examples
    --------
    >>> y0 = torch.tensor([[1.0], [2.0]])
    >>> sol = pynode.solve(lambda t, y: -y, y0, [0.0, 1.0], batching="independent")
    >>> sol.row_stats.nfe.shape, int(sol.row_stats.accepted.sum()) == sol.stats.forward.accepted
    (torch.Size([2]), True)
    """

    nfe: Tensor
    accepted: Tensor
    rejected: Tensor


class BatchSolution(Solution):
    """The solution under ``batching="independent"``.

    Attributes
    ----------
    ts : Tensor
        The save times: (T,) where all rows share them, otherwise (T, B): ``ts[i, b]`` belongs to ``ys[i, b]``. NaN
        where a row's times are padded by NaN.
    ys : tensor or tree of tensors
        Leaves (T, B, ...). NaN where a row has no time, or failed or met a terminal event before it.
    retcode : ReturnCode
        That of the first row that failed; otherwise Terminated where events ended all rows, or Success.
    retcodes : list of ReturnCode
        How each row ended.
    row_stats : RowCounts
        What each row cost. ``stats.forward.nfe`` counts calls of ``f``, whatever rows they were for; its ``accepted``
        and ``rejected`` are sums over the rows.
    span : tuple of Tensor
        Initial time of every row and the time it reached, (B,), float64.
    events : tuple of RowFiring
        Empty without ``events=``; otherwise what fired in each row first, what second, and so on, as many as fired in
        any row, and one at least.

    Examples
    --------
    >>> y0 = torch.tensor([[1.0], [1.0]])
    >>> rates = pynode.PerSample(torch.tensor([[1.0], [100.0]]))
    >>> sol = pynode.solve(lambda t, y, k: -k * (y - 1 - t), y0, [0.0, 1.0], args=(rates,), batching="independent")
    >>> sol.ys.shape, [code.name for code in sol.retcodes]
    (torch.Size([2, 2, 1]), ['Success', 'Success'])
    >>> bool(sol.row_stats.accepted[1] > sol.row_stats.accepted[0])  # each row has its own steps
    True
    """

    events: tuple[RowFiring, ...]  # type: ignore[assignment]

    def __init__(
        self,
        *args: Any,
        retcodes: list[ReturnCode],
        row_stats: RowCounts,
        firings: tuple[RowFiring, ...] = (),
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.events = firings
        self.retcodes = retcodes
        self.row_stats = row_stats

    def __call__(self, t: Tensor | float) -> Any:
        """The states at time(s) ``t``, by the algorithm's own dense output.

        Parameters
        ----------
        t : float, or tensor of shape (), (M,) for all rows, or (B, M) with times of each row

        Returns
        -------
        tensor or tree
            Leaves (B, ...) for a single time, otherwise (M, B, ...); differentiable like ``ys``. NaN behind the
            time reached in rows that failed or met an event.

        Raises
        ------
        InputError
            For a time outside the span that a row was to go.
        UnsupportedError
            When the solve kept no dense output (``SaveAt(dense=False)``).
        """
        return super().__call__(t)

    def _times(self, t: Tensor | float) -> Tensor:
        times = t if isinstance(t, Tensor) else torch.as_tensor(t, dtype=torch.float64)
        batch = len(self.retcodes)
        if times.ndim > 2 or (times.ndim == 2 and len(times) != batch) or not times.is_floating_point():
            raise InputError(
                explain(
                    f"sol(t) got a tensor of shape {tuple(times.shape)} and dtype {times.dtype}",
                    f"a float, or a floating point tensor of shape (M,) or ({batch}, M)",
                    "flatten the times, or give a line of them for each row",
                )
            )
        return times

    def __repr__(self) -> str:
        ended = ", ".join(f"{count} {code.name}" for code, count in Counter(self.retcodes).items())
        forward, backward = self.stats.forward, self.stats.backward
        lines = [
            f"BatchSolution({len(self.retcodes)} rows: {ended or 'none'}; {self.algorithm.name}, "
            f"{self.ts.shape[0]} saved)",
            f"  forward:  {forward.nfe} calls for {int(self.row_stats.nfe.sum())} evaluations of a row, "
            f"{forward.accepted} steps, {forward.rejected} rejected",
        ]
        if self.sensealg is not None:
            lines.append(f"  backward: {backward.nfe} calls, {backward.nvjp} pullbacks ({self.sensealg.name})")
        if self.message:
            lines.append(f"  {self.message}")
        return "\n".join(lines)


def rows_message(failed: list[tuple[int, float, str]], retcodes: list[ReturnCode]) -> str:
    """The message where rows failed: how many and how, the first of them in full.

    Parameters
    ----------
    failed : list of (row, time reached, detail)
        The first few.
    retcodes : list of ReturnCode
        Of all rows.
    """
    codes = Counter(code for code in retcodes if not code.successful)
    kinds = ", ".join(f"{count} {code.name}" for code, count in codes.items())
    first = "; ".join(f"row {row} at t = {t:.9g}: {retcodes[row].value} ({detail})" for row, t, detail in failed)
    more = ", ..." if sum(codes.values()) > len(failed) else ""
    expectation, remedy = ADVICE[next(iter(codes))]
    return explain(
        f"{sum(codes.values())} of {len(retcodes)} rows failed ({kinds}): {first}{more}",
        f"every row {expectation.removeprefix('to ') if expectation.startswith('to ') else 'with ' + expectation}",
        f"{remedy}; throw=False returns the other rows, and NaN in these",
    )
