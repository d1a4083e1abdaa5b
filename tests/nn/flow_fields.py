"""Vector fields for the tests of flows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

F64 = torch.float64


class Linear(nn.Module):
    """``dz/dt = A z``."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return z @ self.matrix.T


class Perceptron(nn.Module):
    """A perceptron of state, time and context, of ``size`` outputs, in float64; the weights' seed is fixed."""

    def __init__(self, size: int, context: int = 0, width: int = 8, seed: int = 0, scale: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(size + 1 + context, width), nn.Tanh(), nn.Linear(width, size)).to(F64)
        with torch.no_grad():
            for x in self.parameters():
                drawn = torch.randn(x.shape, generator=generator, dtype=F64)
                x.copy_(scale * drawn / (x.shape[-1] if x.ndim > 1 else 1) ** 0.5)

    def forward(self, t: Tensor, z: Tensor, *context: Tensor) -> Tensor:
        return self.net(torch.cat([z, t.expand(*z.shape[:-1], 1), *context], -1))
