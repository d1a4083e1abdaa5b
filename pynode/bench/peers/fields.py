"""Fields that every library is given, with the same weights; :mod:`pynode.bench.peers.jax_fields` has them in jax."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pynode.bench import fields
from pynode.bench.fields import Case
from pynode.problems import PROBLEMS, Perceptron, initialise


@dataclass(frozen=True)
class Problem:
    """A case to be drawn, and the tolerances of its work-precision line.

    ``draw(seed, quick)`` makes a case, a small one where ``quick``; its own rtol is the one that contestants are
    compared at. ``atol`` follows rtol in the case's proportion. ``compute_bound``: most of the time is the field's.
    """

    name: str
    draw: Callable[[int, bool], Case]
    rtols: tuple[float, ...]
    compute_bound: bool


class TracedField(nn.Module):
    """Field of a continuous normalising flow: a tanh network of the first ``d`` columns, and minus the trace of its
    Jacobian, by its ``d`` columns carried forward through the layers.

    ``y`` (batch, d + 1): the point and the logarithm of its density.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(inner, outer) for inner, outer in itertools.pairwise(widths))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        h, columns = y[:, :-1], None
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Linear)
            weight = layer.weight
            # (d, batch, width): the derivative of h in each coordinate of the point
            columns = weight.T.unsqueeze(1) if columns is None else columns @ weight.T
            h = layer(h)
            if index + 1 < len(self.layers):
                h = torch.tanh(h)
                columns = columns * (1.0 - h * h)
        assert columns is not None
        trace = columns.diagonal(dim1=0, dim2=2).sum(dim=1, keepdim=True)
        return torch.cat((h, -trace), dim=1)


class ConvolutionalBlock(nn.Module):
    """The block of an ODE-net: group normalisation, SiLU and a 3x3 convolution, twice, time as one more channel.

    SiLU in place of ReLU, whose kinks would keep every method from its order and every error from being measured
    (:class:`pynode.demo.models.Block` is the same block). Time may be one for each row, as torchode has it.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv1 = nn.Conv2d(channels + 1, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.conv2 = nn.Conv2d(channels + 1, channels, 3, padding=1)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        time = t.reshape(-1, 1, 1, 1).expand(y.shape[0], 1, *y.shape[2:])
        y = self.conv1(torch.cat((nn.functional.silu(self.norm1(y)), time), dim=1))
        slope: Tensor = self.conv2(torch.cat((nn.functional.silu(self.norm2(y)), time), dim=1))
        return slope


def convolution(seed: int, quick: bool, batch: int = 32, size: int = 7) -> Case:
    """A block of 64 channels in torch's default initialisation on normal states of 7 x 7; 8 and 4 x 4 if ``quick``."""
    channels, batch, size = (8, 4, 4) if quick else (64, batch, size)
    generator = torch.Generator().manual_seed(seed)
    field = ConvolutionalBlock(channels, channels // 4)
    with torch.no_grad():
        for convolution in (field.conv1, field.conv2):
            bound = (9 * (channels + 1)) ** -0.5
            for parameter in (convolution.weight, convolution.bias):
                assert parameter is not None
                parameter.uniform_(-bound, bound, generator=generator)
    return Case(
        name="convolution",
        title=f"ODE-net block: {channels} channels, {size}x{size}, batch {batch}, float32, rtol = atol = 1e-3, "
        "t in [0, 1]",
        field=field,
        y0=torch.randn(batch, channels, size, size, generator=generator),
        t=torch.tensor([0.0, 1.0]),
        rtol=1e-3,
        atol=1e-3,
    )


def flow(seed: int, quick: bool) -> Case:
    """A normalising flow of 512 points in the plane, 2-64-64-2 tanh; 32 points if ``quick``."""
    generator, batch = torch.Generator().manual_seed(seed), 32 if quick else 512
    field = TracedField((2, 64, 64, 2))
    initialise(field, generator)
    return Case(
        name="cnf",
        title=f"CNF: 2-64-64-2 tanh with its exact trace, batch {batch}, float32, rtol = atol = 1e-5, t in [0, 1]",
        field=field,
        y0=torch.cat((torch.randn(batch, 2, generator=generator), torch.zeros(batch, 1)), dim=1),
        t=torch.tensor([0.0, 1.0]),
        rtol=1e-5,
        atol=1e-5,
    )


def lotka_volterra(seed: int, quick: bool) -> Case:
    """One pair of predator and prey, started within a tenth of (1, 1): the cost of a solver without a field."""
    built = PROBLEMS["lotka-volterra"].build(dtype=torch.float64, seed=0)
    generator, end = torch.Generator().manual_seed(seed), 1.0 if quick else 10.0
    start = 1.0 + 0.1 * torch.rand(2, generator=generator, dtype=torch.float64)
    return Case(
        name="lotka-volterra",
        title=f"Lotka-Volterra: two states, float64, rtol 1e-6, atol 1e-8, t in [0, {end:g}]",
        field=built.field,
        y0=start,
        t=torch.tensor([0.0, end], dtype=torch.float64),
        rtol=1e-6,
        atol=1e-8,
    )


def mlp(seed: int, quick: bool) -> Case:
    """64-128-128-64 tanh, batch 256; 16-32-32-16, batch 8 if ``quick``."""
    if not quick:
        return fields.mlp(seed)
    generator = torch.Generator().manual_seed(seed)
    field = Perceptron((16, 32, 32, 16))
    initialise(field, generator)
    return Case(
        name="mlp",
        title="mlp: 16-32-32-16 tanh, batch 8, float32, rtol = atol = 1e-5, t in [0, 1]",
        field=field,
        y0=torch.randn(8, 16, generator=generator),
        t=torch.tensor([0.0, 1.0]),
        rtol=1e-5,
        atol=1e-5,
    )


PROBLEMS_BY_NAME = {
    one.name: one
    for one in (
        Problem("spiral", lambda seed, quick: fields.spiral(seed), (1e-3, 1e-4, 1e-5, 1e-6, 1e-7), False),
        Problem("mlp", mlp, (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7), True),
        Problem("cnf", flow, (1e-3, 1e-4, 1e-5, 1e-6, 1e-7), True),
        Problem("convolution", convolution, (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6), True),
        Problem("lotka-volterra", lotka_volterra, (1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9), False),
    )
}
