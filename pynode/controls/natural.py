"""Natural cubic splines."""

from __future__ import annotations

import torch
from torch import Tensor

from pynode.controls.control import Control
from pynode.controls.observations import Observations


class NaturalCubicControl(Control):
    """The interpolating cubic spline with zero second derivative at both ends (Kidger et al. 2020).

    Twice continuously differentiable. Not causal: every value moves the whole path, if ever less far away. Use it
    where the whole series is known before anything is asked of it.

    Parameters
    ----------
    ts : Tensor
        (T,), strictly increasing.
    x : Tensor
        (batch..., T, channels), NaN where missing: each channel is the spline through its own observed values. A
        channel keeps its first value before it and its last value after it, where the derivative jumps (``jumps``),
        and is zero where it has none.

    Raises
    ------
    InputError
        For shapes or dtypes that do not fit.

    References
    ----------
    Kidger, Morrill, Foster and Lyons (2020), "Neural Controlled Differential Equations for Irregular Time Series".
    """

    def __init__(self, ts: Tensor, x: Tensor) -> None:
        observations = Observations(ts, x)
        lengths, slopes = observations.steps()
        second = _second_derivatives(lengths, slopes, observations.count)
        left, right = second[:, :-1], second[:, 1:]
        grid = observations.on_grid(slopes - lengths * (2 * left + right) / 6, left / 2, (right - left) / (6 * lengths))
        super().__init__(ts, grid, kinks=observations.ends())


def _second_derivatives(lengths: Tensor, slopes: Tensor, count: Tensor) -> Tensor:
    """Second derivatives (S, T) at the observed times, by elimination along them.

    Inner times: ``h_k-1 M_k-1 + 2 (h_k-1 + h_k) M_k + h_k M_k+1 = 6 (slope_k - slope_k-1)``; M is zero elsewhere. The
    system is diagonally dominant, so that elimination needs no pivots.
    """
    none = torch.zeros_like(slopes[:, 0])
    ratios, rights = [none], [none]
    for k in range(1, lengths.shape[1]):
        inner = k < count[:, 0] - 1
        before, after = lengths[:, k - 1], lengths[:, k]
        pivot = 2 * (before + after) - before * ratios[-1]
        right = 6 * (slopes[:, k] - slopes[:, k - 1]) - before * rights[-1]
        ratios.append(torch.where(inner, after / pivot, none))
        rights.append(torch.where(inner, right / pivot, none))
    second = [none]
    for ratio, right in zip(reversed(ratios), reversed(rights), strict=True):
        second.append(right - ratio * second[-1])
    return torch.stack(second[::-1], 1)
