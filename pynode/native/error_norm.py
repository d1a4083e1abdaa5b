"""The norm in which an error estimate is compared with its tolerance."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from pynode.transforms import active, number, smallest

Tolerance = float | Tensor

#: Sums of squares below it have lost digits, in float32 and more so in float64.
_TINY = 1e-30
Norm = Callable[[Any], Any]


class ErrorNorm:
    """``norm(error / (atol + rtol * max(|y0|, |y1|)))``, elementwise scale, root mean square by default.

    Parameters
    ----------
    rtol, atol : float or Tensor (n,)
    norm : callable, optional
        Takes the scaled error (flat, or as ``unpack`` gives it) and returns a scalar tensor or a float.
    unpack : callable, optional
        Applied to the flat scaled error before ``norm``.
    part : slice or Tensor of indices, optional
        The channels that count; all by default.
    """

    def __init__(
        self,
        rtol: Tolerance,
        atol: Tolerance,
        norm: Norm | None = None,
        unpack: Callable[[Tensor], Any] | None = None,
        part: slice | Tensor | None = None,
    ) -> None:
        self._rtol, self._atol = rtol, atol
        self._operands: tuple[Tensor, Tolerance] | None = None
        self._norm, self._unpack = norm, unpack
        self._part = part
        # Inside torch.func transforms: the largest norm of all samples. Asked once, as the norm itself is hot.
        self._joint = active()
        self._floor = False
        self._start: Tensor | None = None
        self._end: Tensor | None = None
        self._scale: Tensor | None = None

    def start(self, y: Tensor) -> None:
        """Make ``y`` the state at the start of the coming step."""
        self._start = self._take(y).abs()
        self._scale = self._scaled(self._start)

    def between(self, y1: Tensor) -> None:
        """Scale for a step that ends in ``y1``."""
        assert self._start is not None
        self._end = self._take(y1).abs()
        self._scale = self._scaled(torch.maximum(self._start, self._end))

    def rounding_clause(self) -> str:
        """What to add to the message of a solve that failed at the present step: empty unless some tolerance is
        below the rounding of the state."""
        size = self._start if self._end is None else self._end
        if size is None or self._scale is None or self._joint:
            return ""
        below = torch.finfo(size.dtype).eps * size > self._scale
        if not bool(below.any()):
            return ""
        return (
            f"; the tolerance of a component there, {self._scale[below][0].item():.2g}, is below what {size.dtype} "
            f"holds at its size of {size[below][0].item():.3g}"
        )

    def accept(self) -> None:
        """The step is accepted: its end is the next start."""
        self._start = self._end

    def __call__(self, error: Tensor, factor: float = 1.0) -> float:
        """The norm of ``factor * error`` (n,) in the current scale; NaN where the error is not finite."""
        assert self._scale is not None
        ratio = self._take(error) / self._scale
        if self._norm is None:
            square = torch.dot(ratio, ratio)
            size = number(square) if self._joint else square.item()
            if not _TINY < size < math.inf:
                return abs(factor) * _scaled_rms(ratio)
            return abs(factor) * math.sqrt(size / ratio.numel())
        ratio = ratio * factor
        return number(self._norm(ratio if self._unpack is None else self._unpack(ratio)))

    def blended(self, high: Tensor, low: Tensor, factor: float) -> float:
        """The norm where an algorithm has two error estimators: DOP853's blend (Hairer, Norsett and Wanner 1993,
        section II.10)."""
        if self._joint:
            # Of each sample first: the blend of the largest norms is not the largest blend.
            each, coarse = self._of_samples(high, factor), self._of_samples(low, factor)
            blend = each * each / torch.sqrt(each * each + 0.01 * coarse * coarse)
            return number(torch.where(each == 0.0, 0.0, blend))
        ratio, other = self(high, factor), self(low, factor)
        return 0.0 if ratio == 0.0 else ratio * (ratio / math.hypot(ratio, 0.1 * other))

    def _of_samples(self, error: Tensor, factor: float) -> Tensor:
        assert self._scale is not None
        ratio = self._take(error) / self._scale * factor
        if self._norm is None:
            return torch.sqrt(torch.dot(ratio, ratio) / ratio.numel())
        return torch.as_tensor(self._norm(ratio if self._unpack is None else self._unpack(ratio)))

    def _take(self, x: Tensor) -> Tensor:
        if x.requires_grad or self._joint:
            x = x.detach()
        return x if self._part is None else x[self._part]

    def _scaled(self, size: Tensor) -> Tensor:
        if self._operands is None:  # a tensor operand is much cheaper than a number in a small operation
            atol = _operand(self._atol, size)
            self._operands = atol, self._rtol.to(size) if isinstance(self._rtol, Tensor) else self._rtol
            self._floor = smallest(self._atol) < torch.finfo(size.dtype).tiny
        atol, rtol = self._operands
        # Two operands that are spread over all elements would take four times as long in a large operation.
        scale = torch.addcmul(atol, size, rtol) if isinstance(rtol, Tensor) else torch.add(atol, size, alpha=rtol)
        # Purely relative control of a component that is zero would divide by zero.
        return scale.clamp_(min=torch.finfo(scale.dtype).tiny) if self._floor else scale


def _operand(tolerance: Tolerance, like: Tensor) -> Tensor:
    if isinstance(tolerance, Tensor):
        return tolerance.to(like)
    return _number(tolerance, like.dtype, like.device)


@lru_cache(maxsize=256)
def _number(x: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(x, dtype=dtype, device=device)


def _scaled_rms(ratio: Tensor) -> float:
    """Root mean square of numbers whose squares overflow or underflow."""
    largest = number(ratio.abs().max())
    if math.isnan(largest) or largest == 0.0:
        return largest
    if not math.isfinite(largest):
        return math.inf
    scaled = ratio / largest
    return largest * math.sqrt(number(torch.dot(scaled, scaled)) / ratio.numel())
