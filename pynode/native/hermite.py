"""Cubic Hermite dense output of a step: states and slopes at its two ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def between(
    thetas: Sequence[Any], h: Any, y: Tensor, y1: Tensor, slopes: tuple[Tensor, Tensor] | None, derivative: bool = False
) -> Tensor:
    """States (m, n) at fractions ``thetas`` of a step of length ``h`` from ``y`` to ``y1``, or their time derivatives.

    ``slopes``: derivatives of the state at both ends; a straight line without them.
    """
    x = torch.stack([torch.as_tensor(theta, dtype=torch.float64, device=y.device) for theta in thetas])
    rise = y1 - y
    if slopes is None:
        weights, vectors = [torch.ones_like(x) if derivative else x], [rise]
    elif derivative:
        weights, vectors = [6 * x * (1 - x), (1 - x) * (1 - 3 * x), x * (3 * x - 2)], [rise, *(h * k for k in slopes)]
    else:
        weights, vectors = [x * x * (3 - 2 * x), x * (1 - x) ** 2, x * x * (x - 1)], [rise, *(h * k for k in slopes)]
    change = torch.stack(weights, dim=1).to(y.dtype) @ torch.stack(vectors)
    return change / h if derivative else y + change
