"""Series observed at times of their own, on the union of these times."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pynode.errors import InputError, explain


def on_shared_times(times: Sequence[Tensor], values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """A batch of series with one grid, the union of all their times.

    Parameters
    ----------
    times : sequence of B tensors (T_b,)
        Strictly increasing in each.
    values : sequence of B tensors (T_b, channels)

    Returns
    -------
    ts : Tensor
        (T,), the union, increasing.
    x : Tensor
        (B, T, channels), NaN at the times at which a sample was not observed.

    Raises
    ------
    InputError
        Where lengths do not fit or a time occurs twice in a series.
    """
    if len(times) != len(values) or not times:
        raise InputError(
            explain(f"{len(times)} times and {len(values)} values", "as many, one at least", "give a pair per sample")
        )
    for b, (own, rows) in enumerate(zip(times, values, strict=True)):
        if own.ndim != 1 or rows.ndim != 2 or len(own) != len(rows) or rows.shape[1] != values[0].shape[1]:
            raise InputError(
                explain(
                    f"times[{b}] has shape {tuple(own.shape)} and values[{b}] {tuple(rows.shape)}",
                    f"(T,) and (T, {values[0].shape[-1]})",
                    "check that sample",
                )
            )
        if not bool((own.diff() > 0).all()):
            raise InputError(
                explain(f"times[{b}] does not increase strictly", "increasing times", "sort it and merge repeated ones")
            )
    ts: Tensor = torch.unique(torch.cat(list(times)))
    x = values[0].new_full((len(times), len(ts), values[0].shape[1]), torch.nan)
    rows_of = torch.cat([torch.full_like(own, b, dtype=torch.int64) for b, own in enumerate(times)])
    where = torch.searchsorted(ts, torch.cat(list(times)))
    return ts, x.index_put((rows_of, where), torch.cat(list(values)))
