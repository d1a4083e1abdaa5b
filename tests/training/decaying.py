"""Models whose numerical solution is known: ``y' = -2 y``, of which one Euler step over [0, 1] is ``y -> -y``."""

from __future__ import annotations

import torch

from pynode.nn import NeuralODE


class Decay(torch.nn.Module):
    """``f(t, y) = -rate y``, the rate a parameter."""

    def __init__(self, rate: float = 2.0) -> None:
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor(rate, dtype=torch.float64))

    def forward(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return -self.rate * y


def decay(algorithm, rate: float = 2.0, **options) -> NeuralODE:
    return NeuralODE(Decay(rate), algorithm=algorithm, **options)


#: Eleven points on each side of 0 in float64, one of them nobody's double.
X = torch.cat([torch.linspace(-1, -0.1, 11), torch.linspace(0.15, 1, 11)]).double()[:, None]
SAME_SIDE = (X > 0).double()
