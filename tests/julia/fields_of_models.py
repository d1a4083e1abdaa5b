"""The fields of ``pynode.nn``, as the zoo of ``fields`` holds them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from fields import Draw, Made
from torch import nn

from pynode.nn import (
    RBF,
    AdaptiveDepth,
    Chebyshev,
    ConcatSquash,
    ConcatTime,
    ConditionalHyperNetwork,
    DataControl,
    Fourier,
    GalerkinConv2d,
    GalerkinLinear,
    HigherOrder,
    HyperNetwork,
    Polynomial,
    Stacked,
    TimeSequential,
    parameters_size,
)


def chain(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


def net(inputs: int, hidden: int, outputs: int) -> TimeSequential:
    return TimeSequential(*chain(inputs, hidden, outputs))


#: name: (the field, the state's shape, the shapes of its differentiable arguments)
SHAPES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[tuple[int, ...], ...]]] = {
    "second order": (lambda: HigherOrder(net(4, 3, 2)), (3, 4), ()),
    "partly of third order": (lambda: HigherOrder(net(4, 3, 2), order=3, first=1), (2, 4), ()),
    "concatenated time": (lambda: ConcatTime(chain(3, 4, 2)), (3, 2), ()),
    "squash": (lambda: TimeSequential(ConcatSquash(nn.Linear(2, 3)), nn.Tanh(), nn.Linear(3, 2)), (3, 2), ()),
    "squash of images": (lambda: ConcatSquash(nn.Conv2d(2, 2, 3, padding=1)), (2, 2, 3, 3), ()),
    "control": (lambda: DataControl(net(4, 3, 2)), (3, 2), ((3, 2),)),
    "Galerkin": (
        lambda: TimeSequential(GalerkinLinear(2, 3, Fourier(2)), nn.Tanh(), GalerkinLinear(3, 2, RBF(3))),
        (3, 2),
        (),
    ),
    "Galerkin of images": (lambda: GalerkinConv2d(2, 2, 3, Chebyshev(4), padding=1), (2, 2, 3, 3), ()),
    "stacked": (lambda: Stacked([net(2, 3, 2) for _ in range(3)]), (3, 2), ()),
    "hypernetwork": (lambda: HyperNetwork(net(2, 3, 2), chain(1, 2, parameters_size(net(2, 3, 2)))), (3, 2), ()),
    "conditional hypernetwork": (lambda: ConditionalHyperNetwork(net(2, 3, 2)), (3, 2), ((3, 17),)),
    "adaptive depth": (
        lambda: AdaptiveDepth(TimeSequential(GalerkinLinear(2, 3, Polynomial(3)), ConcatSquash(nn.Linear(3, 2)))),
        (3, 2),
        ((3, 1),),
    ),
    "controlled depth of second order": (
        lambda: AdaptiveDepth(HigherOrder(DataControl(net(6, 3, 2)))),
        (3, 4),
        ((3, 1), (3, 2)),
    ),
}


def _maker(name: str) -> Callable[[torch.dtype], Made]:
    def make(dtype: torch.dtype) -> Made:
        draw = Draw(dtype)
        module, state, arguments = SHAPES[name]
        args = tuple(draw.normal(*shape).requires_grad_() for shape in arguments)
        return Made(draw.module(module), draw.normal(*state), args)

    return make


MODELS: dict[str, Callable[[torch.dtype], Made]] = {name: _maker(name) for name in SHAPES}
