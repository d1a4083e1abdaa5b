"""What a flow on the line cannot represent, and what each remedy learns: the map x -> -x."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import pynode
from pynode.nn import AdaptiveDepth, Augment, DataControl, HigherOrder, InputLayer, NeuralODE, TimeSequential


def field(inputs: int, outputs: int) -> TimeSequential:
    return TimeSequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, outputs))


def first(y: Tensor) -> Tensor:
    return y[..., :1]


def depth() -> nn.Linear:
    """Depths start at 0: from random ones, training often ends where all is contracted to 0 (a loss of mean(x^2))."""
    g = nn.Linear(1, 1)
    nn.init.zeros_(g.weight)
    nn.init.zeros_(g.bias)
    return g


TWO = torch.tensor([[-1.0], [1.0]])
LINE = torch.linspace(-1, 1, 16)[:, None]

MODELS = {
    "none": lambda: NeuralODE(field(1, 1)),
    "augmented": lambda: NeuralODE(field(2, 2), input=Augment(1), output=first),
    "input layer": lambda: NeuralODE(field(2, 2), input=InputLayer(nn.Linear(1, 2)), output=first),
    "second order": lambda: NeuralODE(HigherOrder(field(2, 1)), input=Augment(1), output=first),
    "data control": lambda: NeuralODE(DataControl(field(2, 1)), condition=nn.Identity()),
    "adaptive depth": lambda: NeuralODE(AdaptiveDepth(field(1, 1)), condition=depth()),
}


def trained(name: str, x: Tensor, iterations: int, seed: int = 0) -> tuple[NeuralODE, list[float]]:
    """The model after Adam on the mean square of ``y + x``, and its losses."""
    torch.manual_seed(seed)
    model = MODELS[name]()
    model.rtol = model.atol = 1e-4
    model.sensealg = pynode.DirectAdjoint()
    if name != "none":
        # Fewer evaluations; the tests look at what an adaptive solve makes of the trained model.
        model.algorithm = pynode.RK4(steps=4)
    optimiser = torch.optim.Adam(model.parameters(), 0.05)
    losses = []
    for _ in range(iterations):
        optimiser.zero_grad()
        loss = (model(x) + x).pow(2).mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    model.algorithm = pynode.Tsit5()
    return model, losses


def loss_of(model: NeuralODE, x: Tensor) -> float:
    with torch.no_grad():
        return (model(x) + x).pow(2).mean().item()


def test_a_flow_on_the_line_stays_at_its_floor() -> None:
    """Flows keep the order of points: with a = y(1) >= b = y(-1) the mean of (a + 1)^2 and (b - 1)^2 is at least 1,
    reached where all is mapped to 0. The solve errs by some 30 tolerances of 1e-4, which count twice."""
    _, losses = trained("none", TWO, 100)
    assert min(losses) > 1 - 2 * 30 * 1e-4
    assert losses[-1] < 1.05


@pytest.mark.parametrize("name", ["augmented", "input layer", "second order", "data control"])
def test_two_points_change_places(name: str) -> None:
    model, losses = trained(name, TWO, 100)
    assert losses[0] > 0.5
    assert loss_of(model, TWO) < 1e-3


@pytest.mark.parametrize("name", ["data control", "adaptive depth"])
def test_reflection_is_learned_without_augmentation(name: str) -> None:
    model, _ = trained(name, LINE, 150)
    assert loss_of(model, LINE) < 1e-3
    between = torch.linspace(-0.95, 0.95, 39)[:, None]  # not trained on, for the most part
    with torch.no_grad():
        assert (model(between) + between).abs().max().item() < 0.15
