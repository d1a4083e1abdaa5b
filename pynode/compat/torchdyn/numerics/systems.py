"""Two equations to try things on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Lorenz(torch.nn.Module):
    """Lorenz (1963): ``x' = 10 (y - x)``, ``y' = x (28 - z) - y``, ``z' = x y - 8 z / 3``; states (..., 3)."""

    def forward(self, t: Tensor, x: Tensor, **kwargs: Any) -> Tensor:
        a, b, c = x.unbind(dim=-1)
        return torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], dim=-1)


class VanDerPol(torch.nn.Module):
    """``x'' = alpha (1 - x^2) x' - x`` in the state ``(x, x')``, (..., 2)."""

    def __init__(self, alpha: float = 10) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, t: Tensor, x: Tensor, **kwargs: Any) -> Tensor:
        place, velocity = x.unbind(dim=-1)
        return torch.stack([velocity, self.alpha * (1 - place**2) * velocity - place], dim=-1)
