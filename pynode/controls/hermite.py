"""Cubic Hermite interpolation with backward differences."""

from __future__ import annotations

import torch
from torch import Tensor

from pynode.controls.control import Control
from pynode.controls.observations import Observations


class HermiteControl(Control):
    """Cubics with slopes ``(x_i - x_i-1) / (t_i - t_i-1)`` at the observed times (Morrill et al. 2021).

    Once continuously differentiable, and local: on ``[t_i, t_i+1]`` the path depends on ``x_i-1, x_i, x_i+1`` only.
    It is therefore causal from knot to knot: up to ``t_i`` (i >= 1) nothing depends on what is observed after
    ``t_i``. That holds for channels without missing values; across a gap the path heads for the value after it, as any
    continuous interpolation has to (:class:`RectilinearControl` does not). The first slope is the first forward
    difference, which makes the first piece straight.

    Parameters
    ----------
    ts : Tensor
        (T,), strictly increasing.
    x : Tensor
        (batch..., T, channels), NaN where missing. A channel keeps its first value before it and its last value
        after it, where the derivative jumps (``jumps``), and is zero where it has none.

    Raises
    ------
    InputError
        For shapes or dtypes that do not fit.

    References
    ----------
    Morrill, Kidger, Yang and Lyons (2021), "Neural Controlled Differential Equations for Online Prediction Tasks".
    """

    def __init__(self, ts: Tensor, x: Tensor) -> None:
        observations = Observations(ts, x)
        lengths, slopes = observations.steps()
        before = torch.cat([slopes[:, :1], slopes[:, :-1]], 1)
        bend = slopes - before
        grid = observations.on_grid(before, 2 * bend / lengths, -bend / lengths**2)
        super().__init__(ts, grid, kinks=observations.ends(), bends=True)
