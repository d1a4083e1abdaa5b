"""Problems whose field is a network: the spiral of torchdiffeq's demo, and a neural controlled equation."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from pynode.algorithms import DP5
from pynode.problems.problem import Problem
from pynode.solve import solve


class Perceptron(nn.Module):
    """``dy/dt = net(y ** power)``, a tanh network of the given widths in torch's default initialisation.

    Examples
    --------
    >>> pynode.problems.Perceptron((2, 8, 2), power=3)(0.0, torch.zeros(5, 2)).shape
    torch.Size([5, 2])
    """

    def __init__(self, widths: tuple[int, ...], power: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inner, outer in itertools.pairwise(widths):
            layers += [nn.Linear(inner, outer), nn.Tanh()]
        self.net = nn.Sequential(*layers[:-1])
        self.power = power

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        derivative: Tensor = self.net(y if self.power == 1 else y**self.power)
        return derivative


class ControlledField(nn.Module):
    """``dy/dt = M(y) dX/dt``, the field of a neural controlled differential equation (Kidger et al. 2020).

    ``M`` is a network of three layers ending in tanh, with values (hidden, channels). The control ``X`` of each sample
    is time itself and, in the other channels, a fixed sum of sines, whose derivative is written down; ``speed`` scales
    them.

    Examples
    --------
    >>> field = pynode.problems.ControlledField(4, 3, 8, 2, torch.Generator().manual_seed(0))
    >>> field(torch.tensor(0.5), torch.zeros(4, 3)).shape
    torch.Size([4, 3])
    """

    frequencies: Tensor
    amplitudes: Tensor
    phases: Tensor

    def __init__(
        self, batch: int, hidden: int, inner: int, channels: int, generator: torch.Generator, speed: float = 1.0
    ) -> None:
        super().__init__()
        self.hidden, self.channels = hidden, channels
        self.net = nn.Sequential(
            *(nn.Linear(hidden, inner), nn.Tanh(), nn.Linear(inner, inner), nn.Tanh()),
            *(nn.Linear(inner, hidden * channels), nn.Tanh()),
        )
        shape = (batch, channels - 1, 3)
        self.register_buffer("frequencies", torch.tensor([1.0, 2.0, 5.0]))
        self.register_buffer("amplitudes", speed * torch.randn(shape, generator=generator) / self.frequencies)
        self.register_buffer("phases", 2 * math.pi * torch.rand(shape, generator=generator))

    def control_derivative(self, t: Tensor) -> Tensor:
        """``dX/dt`` (batch, channels) at time ``t``."""
        sines = self.amplitudes * self.frequencies * torch.cos(self.frequencies * t + self.phases)
        return nn.functional.pad(sines.sum(dim=-1), (1, 0), value=1.0)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        matrix = self.net(y).unflatten(-1, (self.hidden, self.channels))
        derivative: Tensor = (matrix @ self.control_derivative(t).unsqueeze(-1)).squeeze(-1)
        return derivative


def initialise(field: nn.Module, generator: torch.Generator) -> None:
    """What ``nn.Linear`` does by itself, from a generator of its own.

    Examples
    --------
    >>> layers = [torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)]
    >>> for layer in layers:
    ...     pynode.problems.initialise(layer, torch.Generator().manual_seed(3))
    >>> torch.equal(layers[0].weight, layers[1].weight)
    True
    """
    with torch.no_grad():
        for name, parameter in field.named_parameters():
            fan_in = field.get_parameter(name.replace("bias", "weight")).shape[1]
            parameter.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)


def spiral_start(generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    """The network of torchdiffeq's ``ode_demo.py`` in float32, and 20 states (20, 1, 2) in float64 drawn from the
    spiral ``dy/dt = y**3 A`` through (2, 0).

    Examples
    --------
    >>> field, y0 = pynode.problems.spiral_start(torch.Generator().manual_seed(0))
    >>> y0.shape, field(0.0, y0.float()).shape
    (torch.Size([20, 1, 2]), torch.Size([20, 1, 2]))
    """
    field = Perceptron((2, 50, 2), power=3)
    initialise(field, generator)
    with torch.no_grad():
        matrix = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=torch.float64)
        ts = torch.linspace(0.0, 25.0, 1000, dtype=torch.float64)
        start = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
        path = solve(lambda t, y: y**3 @ matrix, start, ts, algorithm=DP5(), rtol=1e-9, atol=1e-9).ys
    chosen = torch.randperm(len(ts) - 10, generator=generator)[:20]
    return field, path[chosen]


def _make_spiral(generator: torch.Generator, size: int) -> tuple[nn.Module, Tensor]:
    field, states = spiral_start(generator)
    return field, states[:, 0].float()


def _make_cde(generator: torch.Generator, size: int) -> tuple[nn.Module, Tensor]:
    field = ControlledField(batch=size, hidden=32, inner=40, channels=8, generator=generator)
    initialise(field, generator)
    return field, 0.5 * torch.randn(size, 32, generator=generator)


SPIRAL = Problem("spiral", "spiral: 2-50-2 tanh of y**3, batch 20", _make_spiral, (0.0, 1.0), size=20)

CDE = Problem(
    name="cde",
    title="neural CDE: 32 samples, 32 hidden, 8 channels, 13 456 parameters",
    make=_make_cde,
    span=(0.0, 1.0),
    size=32,
    scalable=True,
    rtol=1e-5,
    atol=1e-7,
)
