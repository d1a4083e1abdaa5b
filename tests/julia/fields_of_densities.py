"""Fields of continuous normalising flows for the zoo: products with a network's Jacobian inside the field."""

from __future__ import annotations

from collections.abc import Callable

import torch
from fields import FIELDS, Draw, Made, field
from torch import Tensor, nn

from pynode.nn import ConcatContext, JacobianFrobenius, KineticEnergy, LogDensity
from pynode.nn.field_costs import OnFlow
from pynode.nn.trace import ExactTrace, HutchinsonTrace
from pynode.running_cost import Costed

__all__ = ["FIELDS"]


class Gated(nn.Module):
    """A layer whose output is scaled and shifted by time, as FFJORD's."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear, self.gate, self.shift = nn.Linear(inputs, outputs), nn.Linear(1, outputs), nn.Linear(1, outputs)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        t = t.reshape(1)
        return self.linear(y) * torch.sigmoid(self.gate(t)) + self.shift(t)


class Perceptron(nn.Module):
    def __init__(self, inputs: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.activation = Gated(inputs, 5), Gated(5, 2), activation

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.last(t, self.activation(self.first(t, y)))


def probes(draw: Draw, z: Tensor, event_ndim: int, samples: int) -> Tensor:
    """Noise that float32 can hold: its root of ``samples`` is a power of two."""
    noise = HutchinsonTrace("gaussian", samples).probes(z.float(), event_ndim, draw.generator)
    return noise.to(draw.dtype)


@field
def density_with_exact_trace(draw: Draw) -> Made:
    z = draw.normal(3, 2)
    return Made(
        draw.module(lambda: LogDensity(Perceptron(2, torch.tanh))), (z, draw.normal(3)), (ExactTrace().probes(z, 1),)
    )


@field
def density_with_one_probe(draw: Draw) -> Made:
    z = draw.normal(3, 2)
    f = draw.module(lambda: LogDensity(Perceptron(2, nn.functional.softplus)))
    return Made(f, (z, draw.normal(3)), (probes(draw, z, 1, 1),))


@field
def conditional_density_with_four_probes(draw: Draw) -> Made:
    z, context = draw.normal(3, 2), draw.normal(3, 4).requires_grad_()
    f = draw.module(lambda: LogDensity(ConcatContext(Perceptron(6, nn.functional.silu))))
    return Made(f, (z, draw.normal(3)), (probes(draw, z, 1, 4), context))


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(y))) * t


@field
def density_of_images(draw: Draw) -> Made:
    z = draw.normal(2, 2, 3, 3)
    return Made(draw.module(lambda: LogDensity(Convolutions(), 3)), (z, draw.normal(2)), (ExactTrace().probes(z, 3),))


@field
def density_with_costs(draw: Draw) -> Made:
    z = draw.normal(3, 2)
    density = draw.module(lambda: LogDensity(Perceptron(2, torch.tanh)))
    kinetic, frobenius = OnFlow(KineticEnergy(density.f)), OnFlow(JacobianFrobenius(density.f))

    def costs(*given: object) -> tuple[Tensor, Tensor]:
        return kinetic(*given), frobenius(*given)

    f = Costed(density, costs)
    return Made(f, ((z, draw.normal(3)), (draw.normal(3), draw.normal(3))), (probes(draw, z, 1, 1),))
