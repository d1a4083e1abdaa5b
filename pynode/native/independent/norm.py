"""The norm in which every row's error estimate is compared with its tolerance."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pynode.native.error_norm import Tolerance, _operand
from pynode.native.independent.layout import RowLayout

Floats = NDArray[np.float64]


class RowNorm:
    """:class:`pynode.native.error_norm.ErrorNorm`, once for every row.

    Parameters
    ----------
    rtol, atol : float, or Tensor (n,) with one entry per element of a row
    norm : callable, optional
        Of the tree of one row, without the leading dimension; applied to all rows by ``torch.vmap``.
    layout : RowLayout
    """

    def __init__(self, rtol: Tolerance, atol: Tolerance, norm: Callable[[Any], Any] | None, layout: RowLayout) -> None:
        like = torch.empty(0, dtype=layout.dtype, device=layout.device)
        self._rtol, self._atol = _operand(rtol, like), _operand(atol, like)
        tiny = torch.finfo(layout.dtype).tiny
        # Purely relative control of a component that is zero would divide by zero.
        self._floor = tiny if bool((self._atol < tiny).any()) else None
        self._root = math.sqrt(layout.size)
        self._norm: Callable[[Tensor], Any] | None = None
        if norm is not None:
            one, unpack = norm, layout.row.unpack
            self._norm = torch.vmap(torch.vmap(lambda ratio: torch.as_tensor(one(unpack(ratio)))))

    def scale(self, size: Tensor) -> Tensor:
        """What an error may be, elementwise, for states of magnitudes ``size`` (b, n)."""
        scale = torch.addcmul(self._atol, size, self._rtol)
        return scale if self._floor is None else scale.clamp_(min=self._floor)

    def __call__(self, errors: Tensor, scale: Tensor) -> Floats:
        """Norms (e, b) of e errors (e, b, n) of every row, on the host: the one transfer of a round."""
        ratios = errors / scale
        if self._norm is None:
            # In float64, where the squares of large float32 ratios do not overflow.
            norms = torch.linalg.vector_norm(ratios, dim=-1, dtype=torch.float64)
            found: Floats = norms.cpu().numpy()
            found /= self._root
            return found
        own: Tensor = self._norm(ratios)
        return own.to("cpu", torch.float64).numpy()


def blended(norms: Floats) -> Floats:
    """One ratio a row from those of its error estimators: the only one, or DOP853's blend of two (Hairer, Norsett and
    Wanner 1993, section II.10)."""
    if len(norms) == 1:
        one: Floats = norms[0]
        return one
    high, low = norms
    with np.errstate(invalid="ignore", divide="ignore"):
        blend: Floats = np.where(high == 0.0, 0.0, high * high / np.sqrt(high * high + 0.01 * low * low))
    return blend
