"""A zoo of models, each with an input: what every model of pynode.nn has to do is asked of all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pynode.nn import (
    RBF,
    AdaptiveDepth,
    Augment,
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
    InputLayer,
    NeuralODE,
    Polynomial,
    Stacked,
    TimeSequential,
    parameters_size,
)


def chain(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


def field(inputs: int, hidden: int, outputs: int) -> TimeSequential:
    """The same as an autonomous field."""
    return TimeSequential(*chain(inputs, hidden, outputs))


class OnTree(nn.Module):
    """A field on dictionaries of leaves (batch, 2) and (batch, 1), each of whose slopes is a half of its features."""

    def __init__(self) -> None:
        super().__init__()
        self.net = chain(6, 4, 3)

    def forward(self, t: Tensor, y: dict[str, Tensor], *args: Any) -> dict[str, Tensor]:
        out = self.net(torch.cat([y["a"], y["b"]], dim=-1))
        return {"a": out[..., :2], "b": out[..., 2:]}


def _vectors() -> Tensor:
    return torch.tensor([[0.5, -0.3], [0.1, 0.8], [-0.7, 0.2]])


def _images() -> Tensor:
    return torch.linspace(-1, 1, 2 * 2 * 3 * 3).reshape(2, 2, 3, 3)


def _tree() -> dict[str, Tensor]:
    return {"a": _vectors(), "b": _vectors()[:, :1]}


def _flat(y: dict[str, Tensor]) -> Tensor:
    return torch.cat([y["a"], y["b"]], dim=-1)


#: name: (how to make the model with further keyword arguments, how to make its input)
MODELS: dict[str, tuple[Callable[..., NeuralODE], Callable[[], Any]]] = {
    "augmented": (lambda **k: NeuralODE(field(3, 4, 3), input=Augment(1), output=nn.Linear(3, 1), **k), _vectors),
    "input layer": (
        lambda **k: NeuralODE(field(3, 4, 3), input=InputLayer(nn.Linear(2, 3)), output=nn.Linear(3, 1), **k),
        _vectors,
    ),
    "second order": (lambda **k: NeuralODE(HigherOrder(field(4, 4, 2)), input=Augment(2), **k), _vectors),
    "selective": (
        lambda **k: NeuralODE(
            HigherOrder(field(3, 4, 2), order=2, first=1), input=InputLayer(nn.Linear(2, 1), keep=True), **k
        ),
        _vectors,
    ),
    "tree": (
        lambda **k: NeuralODE(HigherOrder(OnTree()), input=Augment({"a": 2, "b": 1}), output=_flat, **k),
        _tree,
    ),
    "time": (lambda **k: NeuralODE(ConcatTime(chain(3, 4, 2)), **k), _vectors),
    "time of images": (lambda **k: NeuralODE(ConcatTime(nn.Conv2d(3, 2, 3, padding=1), dim=1), **k), _images),
    "squash": (
        lambda **k: NeuralODE(TimeSequential(ConcatSquash(nn.Linear(2, 3)), nn.Tanh(), nn.Linear(3, 2)), **k),
        _vectors,
    ),
    "squash of images": (lambda **k: NeuralODE(ConcatSquash(nn.Conv2d(2, 2, 3, padding=1)), **k), _images),
    "data control": (lambda **k: NeuralODE(DataControl(field(4, 4, 2)), condition=nn.Identity(), **k), _vectors),
    "Galerkin": (
        lambda **k: NeuralODE(
            TimeSequential(GalerkinLinear(2, 3, Fourier(1)), nn.Tanh(), GalerkinLinear(3, 2, RBF(3))), **k
        ),
        _vectors,
    ),
    "Galerkin of images": (
        lambda **k: NeuralODE(
            TimeSequential(
                GalerkinConv2d(2, 2, 3, Chebyshev(3), padding=1), nn.Tanh(), GalerkinConv2d(2, 2, 1, Polynomial(2))
            ),
            **k,
        ),
        _images,
    ),
    "stacked": (lambda **k: NeuralODE(Stacked([field(2, 3, 2) for _ in range(3)]), **k), _vectors),
    "hypernetwork": (
        lambda **k: NeuralODE(HyperNetwork(field(2, 3, 2), chain(1, 2, parameters_size(field(2, 3, 2)))), **k),
        _vectors,
    ),
    "conditional hypernetwork": (
        lambda **k: NeuralODE(
            ConditionalHyperNetwork(field(2, 3, 2)), condition=nn.Linear(2, parameters_size(field(2, 3, 2))), **k
        ),
        _vectors,
    ),
    "adaptive depth": (
        lambda **k: NeuralODE(AdaptiveDepth(ConcatTime(chain(3, 3, 2))), condition=nn.Linear(2, 1), **k),
        _vectors,
    ),
    "adaptive depth, controlled, second order": (
        lambda **k: NeuralODE(
            AdaptiveDepth(HigherOrder(DataControl(field(6, 3, 2)))),
            input=Augment(2),
            condition=[nn.Linear(2, 1), nn.Identity()],
            **k,
        ),
        _vectors,
    ),
    "learned end": (lambda **k: NeuralODE(field(2, 3, 2), (0.0, nn.Parameter(torch.tensor(0.8))), **k), _vectors),
}


def made(name: str, dtype: torch.dtype = torch.float64, **options: Any) -> tuple[NeuralODE, Any]:
    """A model, the same every time, and its input, which requires a gradient."""
    make, x = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make(**options).to(dtype)

    def ready(leaf: Tensor) -> Tensor:
        return leaf.to(dtype).requires_grad_()

    given = x()
    return model, {key: ready(leaf) for key, leaf in given.items()} if isinstance(given, dict) else ready(given)


def inputs_of(model: NeuralODE, x: Any) -> dict[str, Tensor]:
    """What is differentiated: parameters and input by name."""
    leaves = {f"x[{k!r}]": leaf for k, leaf in x.items()} if isinstance(x, dict) else {"x": x}
    return dict(model.named_parameters()) | leaves
