"""Channels that a controlled equation needs beside the data: time, and how much was observed."""

from __future__ import annotations

import torch
from torch import Tensor

from pynode.controls.observations import check_series


def with_time(ts: Tensor, x: Tensor) -> Tensor:
    """``x`` with time as its first channel.

    Without it a controlled equation does not see how fast its path is run through (Kidger et al. 2020). The time
    channel of a sample stops at its last row that has a value: from there on it is NaN, every interpolation holds it,
    and the equation stands still. The state at the end of the grid is then that at the end of each sample, however
    long.

    Parameters
    ----------
    ts : Tensor
        (T,), strictly increasing.
    x : Tensor
        (batch..., T, channels), NaN where missing.

    Returns
    -------
    Tensor
        (batch..., T, 1 + channels).

    Raises
    ------
    InputError
        For shapes or dtypes that do not fit.
    """
    check_series(ts, x)
    some = x.isnan().logical_not().any(-1)
    later = some.flip(-1).long().cumsum(-1).flip(-1) > 0  # a value in this row or behind it
    time = torch.where(later, ts, torch.nan)
    return torch.cat([time.unsqueeze(-1), x], -1)


def with_counts(x: Tensor) -> Tensor:
    """``x`` with, for each channel, the number of its values so far: what was measured may tell as much as the values
    (Kidger et al. 2020: observational intensity).

    Parameters
    ----------
    x : Tensor
        (batch..., T, channels), NaN where missing.

    Returns
    -------
    Tensor
        (batch..., T, 2 * channels): the data, then their counts, which are never missing.
    """
    counts = x.isnan().logical_not().to(x.dtype).cumsum(-2)
    return torch.cat([x, counts], -1)
