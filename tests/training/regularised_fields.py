"""Fields with known derivatives, and finite differences, for the tests of the regularisers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

F64 = torch.float64
MATRIX = torch.tensor([[0.3, -0.8, 0.1], [0.6, -0.4, 0.2], [0.0, 0.5, 0.2]], dtype=F64)


class Tanh(nn.Module):
    """``W_2 tanh(W_1 y + b t) ``, small and smooth."""

    def __init__(self, features: int = 2) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        draw = lambda *shape: nn.Parameter(torch.randn(shape, generator=generator, dtype=F64))  # noqa: E731
        self.first, self.last, self.bias = draw(4, features), draw(features, 4), draw(4)

    def forward(self, t: Tensor, y: Tensor, *args: Tensor) -> Tensor:
        return torch.tanh(y @ self.first.T + self.bias * t) @ self.last.T


def points(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def check_slope(loss: Callable[[], Tensor], inputs: Sequence[Tensor], h: float = 1e-3, bound: float = 1e-9) -> None:
    """The gradient of a loss along a random direction against central differences of sixth order.

    Their error is h**6 / 140 = 7e-21 times a seventh derivative (below 1e9 for tanh of the moderate weights here), plus
    the rounding of the losses, 1e-15 / h = 1e-12 of their size, some steps of which accumulate: ``bound`` is relative
    to the larger of one and the slope.
    """
    generator = torch.Generator().manual_seed(9)
    directions = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in inputs]
    directions = [d / d.norm() for d in directions]
    gradients = torch.autograd.grad(loss(), list(inputs), allow_unused=True)
    slope = sum((g * d).sum().item() for g, d in zip(gradients, directions, strict=True) if g is not None)
    assert slope != 0.0

    def at(offset: float) -> float:
        with torch.no_grad():
            for x, d in zip(inputs, directions, strict=True):
                x.add_(d, alpha=offset)
            value = loss().item()
            for x, d in zip(inputs, directions, strict=True):
                x.sub_(d, alpha=offset)
        return value

    weights = {1: 45 / 60, 2: -9 / 60, 3: 1 / 60}
    difference = sum(w * (at(k * h) - at(-k * h)) for k, w in weights.items()) / h
    assert abs(slope - difference) < bound * max(1.0, abs(slope)), (slope, difference)
