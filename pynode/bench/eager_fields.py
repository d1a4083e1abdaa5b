"""The problems on which eager solves are measured beside the spiral and the perceptron: a flow, a convolutional block,
Lotka and Volterra's equations, and two partial differential equations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pynode.bench.fields import mlp, spiral
from pynode.layout import leaves_of, rebuild
from pynode.problems import problem_from_name
from pynode.problems.networks import Perceptron, initialise


@dataclass(frozen=True)
class Start:
    """A field, its initial state (a tensor or a tuple of tensors), its times and tolerances."""

    name: str
    title: str
    field: nn.Module
    y0: Any
    t: Tensor
    rtol: float
    atol: float

    @property
    def leaves(self) -> list[Tensor]:
        """The tensors of the initial state."""
        return [leaf for _, leaf in leaves_of(self.y0)]

    def with_leaves(self, leaves: list[Tensor]) -> Any:
        """The initial state with other tensors."""
        return rebuild(self.y0, iter(leaves))


class Flow(nn.Module):
    """A continuous normalising flow in the plane: a point's velocity, and minus its divergence, which is exact."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.velocity = Perceptron((2, 64, 64, 2))
        initialise(self.velocity, generator)

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            z = state[0]
            z = z if keep and z.requires_grad else z.detach().requires_grad_()
            dz = self.velocity(t, z)
            rows = [torch.autograd.grad(dz[:, i].sum(), z, create_graph=keep, retain_graph=True)[0] for i in (0, 1)]
            divergence = rows[0][:, 0] + rows[1][:, 1]
        return dz, -divergence


class ConvolutionalBlock(nn.Module):
    """The block of an ODE-net: twice group norm, ReLU and a 3 x 3 convolution, then a group norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            *(nn.GroupNorm(32, channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)),
            *(nn.GroupNorm(32, channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)),
            nn.GroupNorm(32, channels),
        )

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        derivative: Tensor = self.block(y)
        return derivative


def _from_case(make: Any, points: int = 2) -> Start:
    case = make()
    name = case.name if points == 2 else f"{case.name}, {points} times"
    t = torch.linspace(float(case.t[0]), float(case.t[-1]), points)
    return Start(name, case.title, case.field, case.y0, t, case.rtol, case.atol)


def _cnf() -> Start:
    generator = torch.Generator().manual_seed(0)
    field = Flow(generator)
    y0 = (torch.randn(512, 2, generator=generator), torch.zeros(512))
    title = "cnf: 2-64-64-2 tanh with its exact divergence, batch 512, float32, rtol = atol = 1e-5, t in [0, 1]"
    return Start("cnf", title, field, y0, torch.tensor([0.0, 1.0]), 1e-5, 1e-5)


def _conv() -> Start:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        field = ConvolutionalBlock(64)
    y0 = torch.randn(32, 64, 7, 7, generator=generator)
    title = "conv: ODE-net block, 64 channels of 7 x 7 with group norm, batch 32, float32, rtol = atol = 1e-3, t [0, 1]"
    return Start("conv", title, field, y0, torch.tensor([0.0, 1.0]), 1e-3, 1e-3)


def _problem(name: str, end: float, size: int | None = None) -> Start:
    problem = problem_from_name(name)
    built = problem.build(dtype=torch.float64, size=size)
    t = torch.tensor([0.0, end], dtype=torch.float64)
    return Start(name, f"{problem.title}, size {size}, t in [0, {end}]", built.field, built.y0, t, 1e-6, 1e-6)


#: Makers of the problems, by name.
STARTS: dict[str, Callable[[], Start]] = {
    "spiral": lambda: _from_case(spiral),
    "spiral25": lambda: _from_case(spiral, 25),
    "mlp": lambda: _from_case(mlp),
    "cnf": _cnf,
    "conv": _conv,
    "lotka": lambda: _problem("lotka-volterra", 8.0),
    "heat": lambda: _problem("heat", 0.02, 256),
    "brusselator": lambda: _problem("brusselator-1d", 0.05, 256),
}
