"""The fields that are benchmarked, each with its initial state, times and tolerances."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pynode.problems import Perceptron, initialise, spiral_start


@dataclass(frozen=True)
class Case:
    """An initial value problem and the accuracy asked for.

    ``field(t, y)`` is a module; ``t`` holds the start and the end.
    """

    name: str
    title: str
    field: nn.Module
    y0: Tensor
    t: Tensor
    rtol: float
    atol: float

    def exact(self) -> Case:
        """The same problem in float64 at 1e-12: every number of the field is the float32 one."""
        return replace(
            self,
            field=copy.deepcopy(self.field).double(),
            y0=self.y0.double(),
            t=self.t.double(),
            rtol=1e-12,
            atol=1e-12,
        )


class Mild(nn.Module):
    """``dy/dt = tanh(scale * y + shift) / 2``, element by element with two parameters.

    Its state is all the memory it needs, whatever its size, and it can be integrated backward.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(-1.0))
        self.shift = nn.Parameter(torch.tensor(0.1))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.scale * y + self.shift) * 0.5


def spiral(seed: int = 0) -> Case:
    """The network of torchdiffeq's ``ode_demo.py``, 2-50-2 tanh of ``y ** 3``, in torch's default initialisation; 20
    states drawn from the spiral ``dy/dt = y**3 A`` through (2, 0)."""
    field, states = spiral_start(torch.Generator().manual_seed(seed))
    return Case(
        name="spiral",
        title="spiral: 2-50-2 tanh of y**3, batch 20, float32, rtol 1e-7, atol 1e-9, t in [0, 1]",
        field=field,
        y0=states[:, 0].float(),
        t=torch.tensor([0.0, 1.0]),
        rtol=1e-7,
        atol=1e-9,
    )


def mlp(seed: int = 0) -> Case:
    """64-128-128-64 tanh network in torch's default initialisation, 256 states drawn from N(0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    field = Perceptron((64, 128, 128, 64))
    initialise(field, generator)
    return Case(
        name="mlp",
        title="mlp: 64-128-128-64 tanh, batch 256, float32, rtol = atol = 1e-5, t in [0, 1]",
        field=field,
        y0=torch.randn(256, 64, generator=generator),
        t=torch.tensor([0.0, 1.0]),
        rtol=1e-5,
        atol=1e-5,
    )


#: Cases of ``pynode.bench overhead``, by name; each takes a seed.
CASES = {"spiral": spiral, "mlp": mlp}
