"""Sums of gradients."""

from __future__ import annotations

import torch
from torch import Tensor


class Accumulator:
    """Sums gradients that may be absent."""

    def __init__(self, count: int) -> None:
        self.sums: list[Tensor | None] = [None] * count

    def add(self, gradients: tuple[Tensor | None, ...] | list[Tensor | None]) -> None:
        """Add one gradient (or None) to each sum."""
        into: list[Tensor] = []
        new: list[Tensor] = []
        for index, gradient in enumerate(gradients):
            if gradient is None:
                continue
            total = self.sums[index]
            if total is None:
                # What autograd returns may be expanded or shared.
                self.sums[index] = gradient.clone()
            else:
                into.append(total)
                new.append(gradient)
        if into:
            torch._foreach_add_(into, new)
