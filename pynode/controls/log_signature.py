"""Log-signatures of depth 2 over windows: a long path as a short one with more channels."""

from __future__ import annotations

import torch
from torch import Tensor

from pynode.controls.control import Control
from pynode.controls.linear import LinearControl
from pynode.errors import InputError, explain


class LogSignatureControl(Control):
    """Increments and areas of a piecewise linear path over windows of rows (Morrill et al. 2021).

    Over a window from s to t, channel i of X has the increment ``X_i(t) - X_i(s)``, and channels i < j the Levy area
    ``A_ij = 1/2 integral (X_i - X_i(s)) dX_j - (X_j - X_j(s)) dX_i``: together the log-signature of depth 2. The
    control is the path of their running sums, straight within each window: C channels of X, then C (C - 1) / 2 of
    areas in the order (0, 1), (0, 2), ..., (1, 2), ..., which start at zero.

    Driving a field of so many columns (one learned for each area, as Morrill et al. do) or the Lie brackets of one of
    C columns (:class:`pynode.nn.LieBracketField`: the log-ODE method proper) with it is one smooth piece a window in
    place of one for each row. The derivative jumps between windows.

    Parameters
    ----------
    ts : Tensor
        (T,), strictly increasing.
    x : Tensor
        (batch..., T, channels), NaN where missing: filled as by :class:`LinearControl`.
    window : int
        Rows a window goes on for; the last may be shorter.

    Raises
    ------
    InputError
        For shapes or dtypes that do not fit, and a window below 1.

    References
    ----------
    Morrill, Salvi, Kidger, Foster and Lyons (2021), "Neural Rough Differential Equations for Long Time Series".
    """

    def __init__(self, ts: Tensor, x: Tensor, window: int) -> None:
        if isinstance(window, bool) or not isinstance(window, int) or window < 1:
            raise InputError(explain(f"window = {window!r}", "an integer >= 1", "give a number of rows"))
        filled = LinearControl(ts, x).evaluate(ts)
        last = len(ts) - 1
        ends = torch.tensor([*range(0, last, window), last], device=ts.device)
        window_of = torch.arange(last, device=ts.device) // window
        steps = filled.diff(dim=-2)
        since = filled[..., :-1, :] - filled[..., ends[window_of], :]
        first, second = torch.triu_indices(x.shape[-1], x.shape[-1], 1, device=ts.device)
        swept = (since[..., first] * steps[..., second] - since[..., second] * steps[..., first]) / 2
        areas = swept.new_zeros(*swept.shape[:-2], len(ends), swept.shape[-1])
        areas = areas.index_add(-2, window_of + 1, swept).cumsum(-2)
        corners = torch.cat([filled[..., ends, :], areas], -1)
        rates = corners.diff(dim=-2) / ts[ends].diff().unsqueeze(-1)
        super().__init__(ts[ends], torch.stack([corners[..., :-1, :], rates], -2))
