"""Relative distance of what was computed from what is exact."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor


def norm(tensors: Sequence[Tensor]) -> float:
    """Euclidean norm of all elements."""
    return math.sqrt(sum(x.detach().double().pow(2).sum().item() for x in tensors))


def error(value: Tensor | Sequence[Tensor], exact: Tensor | Sequence[Tensor]) -> float:
    """Relative Euclidean distance, over all tensors together."""
    values = [value] if isinstance(value, Tensor) else value
    exacts = [exact] if isinstance(exact, Tensor) else exact
    return norm([v.double() - e for v, e in zip(values, exacts, strict=True)]) / norm(exacts)


def root_mean_square(values: Sequence[float]) -> float:
    """The root of the mean of the squares."""
    return math.sqrt(sum(x * x for x in values) / len(values))
