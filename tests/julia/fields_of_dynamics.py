"""Fields that depend on time, differentiate inside, or come from physics; and those of ``pynode.problems``."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from fields import FIELDS, Draw, Made, field
from torch import Tensor, nn

from pynode.nn import (
    Concatenated,
    GradientFlow,
    HamiltonianODE,
    LagrangianODE,
    MechanicalEnergy,
    MechanicalODE,
    PortHamiltonianODE,
    UniversalODE,
)
from pynode.problems import PROBLEMS

# Time


class TimeConcatenated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(torch.cat([y, t.expand(*y.shape[:-1], 1)], dim=-1))


@field
def time_concatenated(draw: Draw) -> Made:
    return Made(draw.module(TimeConcatenated), draw.normal(4, 2))


@field
def time_forced(draw: Draw) -> Made:
    a = draw.parameter(3)
    return Made(lambda t, y: -a * y + torch.sin(2 * math.pi * t) + torch.exp(-t) * a + t**2 / (1 + t), draw.normal(3))


class FourierInTime(nn.Module):
    """A linear layer whose weights are Fourier series in time."""

    def __init__(self) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(torch.zeros(3, 3, 5))
        self.register_buffer("orders", torch.tensor([1.0, 2.0]))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        angles = 2 * math.pi * self.orders * t
        basis = torch.cat([torch.ones(1, dtype=y.dtype), torch.sin(angles), torch.cos(angles)])
        return torch.tanh(y @ (self.coefficients @ basis))


@field
def time_fourier(draw: Draw) -> Made:
    return Made(draw.module(FourierInTime), draw.normal(2, 3))


@field
def time_gated(draw: Draw) -> Made:
    first, second, gate = (draw.module(lambda: nn.Linear(3, 3)) for _ in range(3))

    def f(t: Tensor, y: Tensor) -> Tensor:
        open_ = torch.sigmoid(gate(y) * t)
        return open_ * first(y) + (1 - open_) * torch.where(t < 1.0, second(y), y * t)

    return Made(f, draw.normal(2, 3))


class Hypernetwork(nn.Module):
    """The weights of a small network are another network's output at time t."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 2 * 3 + 3 + 3 * 2))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        w, b, u = self.net(t.reshape(1)).split([6, 3, 6])
        return torch.tanh(y @ w.view(2, 3) + b) @ u.view(3, 2)


@field
def hypernetwork(draw: Draw) -> Made:
    return Made(draw.module(Hypernetwork), draw.normal(4, 2))


@field
def only_time(draw: Draw) -> Made:
    a = draw.parameter(3)
    return Made(lambda t, y: torch.cos(a * t), draw.normal(3))


# Parametrisations, and derivatives inside f


@field
def weight_norm(draw: Draw) -> Made:
    def make() -> nn.Module:
        return torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))

    net = draw.module(make)
    return Made(lambda t, y: torch.tanh(net(y)), draw.normal(2, 3))


class Skew(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu(1) - x.triu(1).mT


@field
def skew_parametrisation(draw: Draw) -> Made:
    def make() -> nn.Module:
        layer = nn.Linear(3, 3)
        torch.nn.utils.parametrize.register_parametrization(layer, "weight", Skew())
        return layer

    net = draw.module(make)
    return Made(lambda t, y: net(y), draw.normal(2, 3))


class Hamiltonian(nn.Module):
    """``dq/dt = dH/dp``, ``dp/dt = -dH/dq``, with the derivatives taken by autograd inside."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1, bias=False))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            y = y if y.requires_grad else y.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.energy(y).sum(), y, create_graph=True)
        dq, dp = gradient.chunk(2, dim=-1)
        return torch.cat([dp, -dq], dim=-1)


@field
def hamiltonian(draw: Draw) -> Made:
    return Made(draw.module(Hamiltonian), draw.normal(3, 4))


class ContinuousFlow(nn.Module):
    """A continuous normalising flow: the state, and minus the trace of its Jacobian, row by row of it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 5), nn.Softplus(), nn.Linear(5, 2))

    def forward(self, t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = y[0] if y[0].requires_grad else y[0].detach().requires_grad_()
            dz = self.net(z) * t
            rows = [torch.autograd.grad(dz[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(2)]
        return dz, -torch.stack(rows).sum(0)


@field
def flow_with_exact_trace(draw: Draw) -> Made:
    return Made(draw.module(ContinuousFlow), (draw.normal(3, 2), draw.normal(3)))


@field
def flow_with_estimated_trace(draw: Draw) -> Made:
    net = draw.module(lambda: nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2)))

    def f(t: Tensor, y: tuple[Tensor, Tensor], noise: Tensor) -> tuple[Tensor, Tensor]:
        dz, pull = torch.func.vjp(net, y[0])
        return dz, -(pull(noise)[0] * noise).sum(-1)

    return Made(f, (draw.normal(3, 2), draw.normal(3)), (draw.normal(3, 2).sign(),))


# Physics


@field
def predators_and_prey(draw: Draw) -> Made:
    def f(t: Tensor, y: Tensor, rates: Tensor) -> Tensor:
        (x, z), (alpha, beta, gamma, delta) = y, rates
        return torch.stack([alpha * x - beta * x * z, delta * x * z - gamma * z])

    return Made(f, draw.positive(2), (draw.positive(4).requires_grad_(),))


@field
def universal_differential_equation(draw: Draw) -> Made:
    """Known terms and a network for the unknown one."""
    net, rates = draw.module(lambda: nn.Sequential(nn.Linear(2, 5), nn.Softplus(), nn.Linear(5, 2))), draw.positive(2)
    known = torch.tensor([1.0, -1.0], dtype=draw.dtype) * rates
    return Made(lambda t, y: known * y + net(y.log()).exp() * y, draw.positive(3, 2))


@field
def reaction_diffusion(draw: Draw) -> Made:
    """A Laplacian by a fixed stencil, periodic, and a learned reaction at every point."""
    stencil = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]], dtype=draw.dtype).expand(2, 1, 3, 3)
    diffusivity = nn.Parameter(draw.positive(2, 1, 1))
    reaction = draw.module(lambda: nn.Conv2d(2, 2, 1))

    def f(t: Tensor, y: Tensor) -> Tensor:
        around = nn.functional.pad(y[None], (1, 1, 1, 1), mode="circular")
        laplacian = nn.functional.conv2d(around, stencil, groups=2)[0]
        return diffusivity * laplacian + reaction(y[None])[0] - y**3

    return Made(f, draw.normal(2, 4, 5))


@field
def particles(draw: Draw) -> Made:
    """Pairs of bodies attracting each other, and their velocities."""
    masses = nn.Parameter(draw.positive(3))

    def f(t: Tensor, y: Tensor) -> Tensor:
        position, velocity = y.unbind(0)
        apart = position[None] - position[:, None]
        cubes = (apart.square().sum(-1) + 0.01) ** 1.5
        return torch.stack([velocity, (masses[None, :, None] * apart / cubes[..., None]).sum(1)])

    return Made(f, draw.normal(2, 3, 2))


# Systems of linear equations


@field
def linear_solves(draw: Draw) -> Made:
    """From either side, with matrices whose first pivot is zero, and right-hand sides of every shape."""
    matrix, other = draw.parameter(3, 3), draw.parameter(4, 3, 3)
    hollow = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 1.0]], dtype=draw.dtype)

    def f(t: Tensor, y: Tensor) -> Tensor:
        one = torch.linalg.solve(hollow + 0.1 * matrix * hollow, y.mT).mT
        each = torch.linalg.solve(2 * hollow + 0.2 * torch.tanh(other), y)
        right = torch.linalg.solve(2 * hollow.mT - 0.1 * matrix, y, left=False)
        return one + each + right * t

    return Made(f, draw.normal(4, 3))


@field
def matrix_inverse(draw: Draw) -> Made:
    net = draw.module(lambda: nn.Linear(2, 4))

    def f(t: Tensor, y: Tensor) -> Tensor:
        square = 3 * torch.eye(2, dtype=y.dtype) + torch.tanh(net(y)).reshape(-1, 2, 2)
        return (torch.linalg.inv(square.mT) @ y.unsqueeze(-1)).squeeze(-1)

    return Made(f, draw.normal(3, 2))


# Models of pynode.nn


def _energy(inputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 5), nn.Softplus(), nn.Linear(5, 1))


@field
def model_hamiltonian(draw: Draw) -> Made:
    net = draw.module(lambda: HamiltonianODE(Concatenated(_energy(4))))
    return Made(net, (draw.normal(3, 2), draw.normal(3, 2)))


@field
def model_separable_hamiltonian(draw: Draw) -> Made:
    net = draw.module(lambda: HamiltonianODE(kinetic=_energy(2), potential=_energy(2)))
    return Made(net, draw.normal(3, 4))


@field
def model_lagrangian(draw: Draw) -> Made:
    net = draw.module(lambda: Concatenated(_energy(4)))
    f = LagrangianODE(lambda q, v: v.square().sum(-1) + net(q, v).squeeze(-1))
    return Made(f, (draw.normal(3, 2), draw.normal(3, 2)))


@field
def model_gradient_flow(draw: Draw) -> Made:
    return Made(draw.module(lambda: GradientFlow(_energy(3))), draw.normal(2, 3))


@field
def model_port_hamiltonian(draw: Draw) -> Made:
    def make() -> nn.Module:
        energy = MechanicalEnergy(nn.Sequential(nn.Linear(2, 4), nn.Tanh()), _energy(2))
        actuation = nn.Sequential(nn.Linear(2, 2), nn.Unflatten(-1, (2, 1)))
        return PortHamiltonianODE(energy, actuation=actuation, dissipation=nn.Parameter(torch.zeros(4, 3)))

    return Made(draw.module(make), (draw.normal(3, 2), draw.normal(3, 2)), (draw.normal(3, 1).requires_grad_(),))


@field
def model_mechanical(draw: Draw) -> Made:
    root = draw.module(lambda: nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Unflatten(-1, (2, 2))))

    def mass(q: Tensor) -> Tensor:
        factor = root(q)
        return factor @ factor.mT + torch.eye(2, dtype=q.dtype)

    force = draw.module(lambda: Concatenated(nn.Linear(4, 2)))
    return Made(MechanicalODE(lambda t, q, v: force(q, v) - t * q, mass), draw.normal(3, 4))


@field
def model_universal(draw: Draw) -> Made:
    net = draw.module(lambda: nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2)))
    rates = draw.positive(2).requires_grad_()
    return Made(UniversalODE(lambda t, y, rates: rates * y, net), draw.positive(3, 2), (rates,))


@field
def graph_diffusion(draw: Draw) -> Made:
    adjacency = (draw.normal(4, 4) > 0).to(draw.dtype)
    net = draw.module(lambda: nn.Linear(3, 3))

    def f(t: Tensor, y: Tensor) -> Tensor:
        scores = torch.where(adjacency > 0, y @ y.T, torch.full_like(adjacency, float("-inf")))
        scores = torch.cat([scores, torch.zeros_like(scores[:, :1])], 1).softmax(-1)[:, :-1]
        return scores @ torch.relu(net(y)) - y

    return Made(f, draw.normal(4, 3))


def _built_in(name: str) -> Callable[[torch.dtype], Made]:
    def make(dtype: torch.dtype) -> Made:
        # Float32 first: both precisions are to hold the same numbers.
        instance = PROBLEMS[name].build(dtype=torch.float32)
        return Made(instance.field.to(dtype), instance.y0.to(dtype))

    return make


FIELDS |= {f"problem_{name.replace('-', '_')}": _built_in(name) for name in PROBLEMS}
