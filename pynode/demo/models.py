"""An ODE-net and a ResNet made of the same block (Chen et al. 2018, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pynode.algorithms import Algorithm
from pynode.nn import NeuralODE
from pynode.sensealg import SensitivityAlgorithm
from pynode.solution import Counts, Stats


class Block(nn.Module):
    """``f(t, y)``: (normalisation - SiLU - 3x3 convolution), twice, with time as one more channel.

    Two departures from the paper's block, both so that ``f`` is a field that an ODE solver can be held to:

    * group instead of batch normalisation, since batch statistics would make ``f`` depend on the other samples and
      on whether the net is being trained;
    * SiLU instead of ReLU, whose kinks break every method's order: trained with ReLU, the same net needs 518 instead
      of 86 evaluations at rtol = 1e-8, and its gradient is then off by 2e-3 instead of 1e-7.

    Parameters
    ----------
    channels : int
        Channels of the state: ``y`` and ``f(t, y)`` have shape (batch, channels, height, width).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = _norm(channels)
        self.conv1 = nn.Conv2d(channels + 1, channels, 3, padding=1)
        self.norm2 = _norm(channels)
        self.conv2 = nn.Conv2d(channels + 1, channels, 3, padding=1)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        time = t.expand(y.shape[0], 1, *y.shape[2:])
        y = self.conv1(torch.cat((nn.functional.silu(self.norm1(y)), time), dim=1))
        slope: Tensor = self.conv2(torch.cat((nn.functional.silu(self.norm2(y)), time), dim=1))
        return slope


class ODEBody(nn.Module):
    """The state at t = 1 of ``dy/dt = Block(t, y)``.

    Attributes
    ----------
    ode : NeuralODE
    stats : Stats
        What the last solve cost; ``stats.backward`` once its gradient has been taken.
    """

    def __init__(self, ode: NeuralODE) -> None:
        super().__init__()
        self.ode = ode
        self.stats = Stats()

    def forward(self, y: Tensor) -> Tensor:
        solution = self.ode.solve(y)
        # The counts only: the solution itself would keep the tape alive until the next batch.
        self.stats = solution.stats
        end: Tensor = solution.ys[-1]
        return end


class ResidualBody(nn.Module):
    """``y + Block(t, y)``, one block with its own parameters after the other, at equidistant times in [0, 1).

    Attributes
    ----------
    blocks : ModuleList of Block
    stats : Stats
        One evaluation and one pullback for each block.
    """

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(channels) for _ in range(blocks))
        self.stats = Stats(forward=Counts(nfe=blocks), backward=Counts(nvjp=blocks))

    def forward(self, y: Tensor) -> Tensor:
        times = torch.arange(len(self.blocks), dtype=y.dtype, device=y.device) / len(self.blocks)
        for t, block in zip(times, self.blocks, strict=True):
            y = y + block(t, y)
        return y


class Classifier(nn.Module):
    """Down-sampling stem, body, and a head of adaptive pooling and one linear layer.

    Maps images (batch, 1, height, width) to logits (batch, classes).

    Parameters
    ----------
    body : ODEBody or ResidualBody
    channels : int
        Channels of the body's state.
    size : int
        Shorter side of the images in pixels; the stem halves it until it is below 8 (at least once).
    classes : int
    """

    def __init__(self, body: ODEBody | ResidualBody, channels: int, size: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, channels, 3, padding=1)]
        while True:
            layers += [_norm(channels), nn.SiLU(), nn.Conv2d(channels, channels, 4, stride=2, padding=1)]
            size //= 2
            if size < 8:
                break
        self.stem = nn.Sequential(*layers)
        self.body = body
        self.head = nn.Sequential(
            _norm(channels), nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(self.stem(images)))
        return logits


def ode_net(
    channels: int,
    size: int,
    classes: int,
    *,
    algorithm: Algorithm,
    sensealg: SensitivityAlgorithm,
    rtol: float,
    atol: float,
) -> Classifier:
    """The classifier whose body is one ODE block over t in [0, 1]."""
    ode = NeuralODE(Block(channels), (0.0, 1.0), algorithm=algorithm, sensealg=sensealg, rtol=rtol, atol=atol)
    return Classifier(ODEBody(ode), channels, size, classes)


def res_net(channels: int, size: int, classes: int, *, blocks: int = 6) -> Classifier:
    """The classifier whose body is ``blocks`` residual blocks."""
    return Classifier(ResidualBody(channels, blocks), channels, size, classes)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(8, channels), channels)
