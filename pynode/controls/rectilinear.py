"""Rectilinear interpolation: time first, then values."""

from __future__ import annotations

import torch
from torch import Tensor

from pynode.controls.channels import with_time
from pynode.controls.control import Control
from pynode.controls.observations import check_series
from pynode.errors import InputError, explain
from pynode.transforms import any_true


class RectilinearControl(Control):
    """The path (time, values) that moves in time with values held, then in values with time held (Morrill et al. 2021).

    Fully causal, with missing values too: when time reaches ``t``, nothing observed after ``t`` has entered. Values
    are those observed last, zero before the first.

    The path is parametrised by the numbers 0, 1, ..., 2T - 2, not by time: from 2i to 2i + 1 time goes from ``t_i`` to
    ``t_i+1``, from 2i + 1 to 2i + 2 the values observed at ``t_i+1`` are taken in. ``observed`` (0, 2, 4...) tells
    where each row has been taken in, ``parameter(t)`` where time is ``t``. The derivative jumps at all knots.

    Parameters
    ----------
    ts : Tensor
        (T,), strictly increasing.
    x : Tensor
        (batch..., T, channels), NaN where missing, without time: the path has 1 + channels channels, the first of
        which is time. It stops at a sample's last row that has a value (see :func:`with_time`).

    Raises
    ------
    InputError
        For shapes or dtypes that do not fit.

    References
    ----------
    Morrill, Kidger, Yang and Lyons (2021), "Neural Controlled Differential Equations for Online Prediction Tasks".
    """

    def __init__(self, ts: Tensor, x: Tensor) -> None:
        check_series(ts, x)
        rows = _held(with_time(ts, x))
        time, values = rows[..., :1], rows[..., 1:]
        turns = torch.cat([time[..., 1:, :], values[..., :-1, :]], -1)
        # Rows and turns alternate, rows first and last.
        corners = torch.stack([rows[..., :-1, :], turns], -2).flatten(-3, -2)
        corners = torch.cat([corners, rows[..., -1:, :]], -2)
        knots = torch.arange(corners.shape[-2], dtype=x.dtype, device=x.device)
        coefficients = torch.stack([corners[..., :-1, :], corners.diff(dim=-2)], -2)
        super().__init__(knots, coefficients, observed=knots[::2])
        self._ts = ts

    def parameter(self, t: Tensor | float) -> Tensor:
        """Where on the path time is ``t`` (any shape), all rows up to ``t`` taken in and none after it.

        Raises
        ------
        InputError
            For times outside the series.
        """
        times = torch.as_tensor(t, dtype=self._ts.dtype, device=self._ts.device)
        if any_true((times < self._ts[0]) | (times > self._ts[-1])):
            raise InputError(
                explain(
                    f"t goes from {float(times.min()):.9g} to {float(times.max()):.9g}",
                    f"times of the series, {float(self._ts[0]):.9g} to {float(self._ts[-1]):.9g}",
                    "append rows of NaN to the series for later times",
                )
            )
        row = torch.searchsorted(self._ts, times, right=True) - 1
        after = self._ts[(row + 1).clamp(max=len(self._ts) - 1)]
        length = torch.where(after > self._ts[row], after - self._ts[row], 1.0)
        return 2 * row + (times - self._ts[row]) / length


def _held(x: Tensor) -> Tensor:
    """Rows (batch..., T, channels) with each NaN replaced by the value before it, or by zero."""
    mask = x.isnan().logical_not()
    rank = torch.arange(x.shape[-2], device=x.device).unsqueeze(-1).expand_as(x)
    last = torch.where(mask, rank, 0).cummax(-2).values
    return x.nan_to_num(nan=0.0).gather(-2, last)
