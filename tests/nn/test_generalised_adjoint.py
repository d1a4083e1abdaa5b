"""Losses over the whole depth: ``L = l(y(T)) + integral of c(t, y)`` trains the field and the cost's own network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import pynode
from pynode.nn import Augment, ConcatTime, DataControl, NeuralODE, TimeSequential

F64 = torch.float64
X = torch.tensor([[0.7, -0.2], [1.1, 0.4], [-0.3, 0.9]], dtype=F64)
SENSEALGS = (
    pynode.DirectAdjoint(),
    pynode.CheckpointedAdjoint(),
    pynode.BacksolveAdjoint(),
    pynode.InterpolatingAdjoint(),
    pynode.GaussAdjoint(),
    pynode.QuadratureAdjoint(),
)


class Cost(nn.Module):
    """A learned, positive cost of time, state and whatever the field is conditioned on."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.net = ConcatTime(nn.Sequential(nn.Linear(features + 1, 4), nn.Tanh(), nn.Linear(4, 1)))

    def forward(self, t: Tensor, y: Tensor, *conditions: Tensor) -> Tensor:
        return self.net(t, torch.cat([y, *conditions], -1)).exp().mean()


def model(kind: str, **options: object) -> NeuralODE:
    torch.manual_seed(3)
    if kind == "augmented":
        f, state = TimeSequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), 3
        more: dict[str, object] = {"input": Augment(1), "output": nn.Linear(3, 1)}
    else:
        f, state = DataControl(TimeSequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))), 4
        more = {"condition": nn.Identity(), "output": nn.Linear(2, 1)}
    return NeuralODE(f, running_cost=Cost(state), **more, **options).double()


def loss(ode: NeuralODE) -> Tensor:
    sol = ode.solve(X)
    return ode.output(sol.ys[-1]).pow(2).sum() + sol.running_cost


@pytest.mark.parametrize("kind", ["augmented", "controlled"])
@pytest.mark.parametrize("sensealg", SENSEALGS, ids=lambda s: s.name)
def test_the_gradient_is_that_of_finite_differences(kind: str, sensealg) -> None:
    """Of each parameter along a direction. Central differences of fourth order: eps**4 = 1e-12 times a fifth
    derivative, and the 2e-11 of a solve at 1e-12 over eps, 2e-8; the adjoint: 100 tolerances."""
    ode = model(kind, sensealg=sensealg, algorithm=pynode.Vern7(), rtol=1e-10, atol=1e-10)
    named = dict(ode.named_parameters())
    gradients = dict(zip(named, torch.autograd.grad(loss(ode), list(named.values())), strict=True))
    assert {name.split(".")[0] for name in named} == {"f", "output", "running_cost"}
    ode.rtol = ode.atol = 1e-12
    generator = torch.Generator().manual_seed(0)
    size = max(g.abs().max().item() for g in gradients.values())
    eps = 1e-3
    for name, parameter in named.items():
        direction = torch.randn(parameter.shape, generator=generator, dtype=F64)
        direction /= direction.norm()
        differences = 0.0
        with torch.no_grad():
            for step, weight in ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12)):
                parameter += step * eps * direction
                differences += weight / eps * loss(ode).item()
                parameter -= step * eps * direction
        assert gradients[name].abs().max() > 1e-6
        assert abs((gradients[name] * direction).sum().item() - differences) < 1e-7 * max(size, 1.0), name


def test_an_optimiser_of_the_whole_depth_moves_field_and_cost() -> None:
    """A descent step of length 1e-3 along the gradient lowers the loss by its slope, up to second order."""
    ode = model("controlled", rtol=1e-9, atol=1e-9)
    before = loss(ode)
    gradients = torch.autograd.grad(before, list(ode.parameters()))
    norm = torch.stack([g.pow(2).sum() for g in gradients]).sum().sqrt()
    step = 1e-3
    with torch.no_grad():
        for parameter, gradient in zip(ode.parameters(), gradients, strict=True):
            parameter -= step * gradient / norm
        decrease = (before - loss(ode)).item()
    assert decrease == pytest.approx(step * norm.item(), rel=0.02)


def test_a_terminal_loss_and_its_integral_are_the_same_gradient() -> None:
    """``phi(y(T)) = phi(y(0)) + integral of d phi/dt``: the generalised adjoint of the integral against the adjoint of
    the end, for every parameter of the field."""
    torch.manual_seed(0)
    f = TimeSequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    ode = NeuralODE(f, running_cost=lambda t, y: (2 * y * f(t, y)).sum(), rtol=1e-10, atol=1e-10)
    sol = ode.solve(X)
    inner, end = (
        torch.autograd.grad(value, list(f.parameters()), retain_graph=True)
        for value in (sol.running_cost, sol.ys[-1].pow(2).sum())
    )
    for a, b in zip(inner, end, strict=True):
        # The default gradient is exact for the steps taken, each of which integrates the cost to the tolerance.
        assert (a - b).abs().max().item() < 1e-7
