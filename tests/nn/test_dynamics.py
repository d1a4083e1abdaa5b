"""Fields of mechanics and physics: each by the equation or the law that defines it."""

from __future__ import annotations

import collections
import math

import pytest
import torch
from torch import Tensor, nn

import pynode
from pynode import (
    BacksolveAdjoint,
    CheckpointedAdjoint,
    DirectAdjoint,
    FieldError,
    GaussAdjoint,
    InputError,
    InterpolatingAdjoint,
    VelocityVerlet,
    Vern9,
    Yoshida6,
    julia,
)
from pynode.nn import (
    Concatenated,
    GradientFlow,
    HamiltonianODE,
    LagrangianODE,
    MechanicalEnergy,
    MechanicalODE,
    NeuralODE,
    PortHamiltonianODE,
    UniversalODE,
)

EPS = 2.0**-53
DOUBLE = {"dtype": torch.float64}
TIGHT = {"algorithm": Vern9(), "rtol": 1e-11, "atol": 1e-11}
Pair = collections.namedtuple("Pair", "q p")


def mlp(inputs: int, outputs: int = 1, width: int = 8) -> nn.Module:
    torch.manual_seed(inputs + outputs)
    return nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, outputs)).double()


def points(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), **DOUBLE)


def rows(pair: tuple[Tensor, Tensor]) -> Tensor:
    return torch.cat(list(pair), dim=-1)


TIME = torch.tensor(0.25, **DOUBLE)
PAIR = (points(5, 2), points(2, 5, 2)[1])


def regular(net: nn.Module):
    """A Lagrangian with a Hessian near 2 whatever the network."""
    return lambda q, v: v.square().sum(-1) + 0.1 * net(q, v).squeeze(-1)


class Lagrangian(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Concatenated(mlp(4))

    def forward(self, q: Tensor, v: Tensor) -> Tensor:
        return regular(self.net)(q, v)


def port_hamiltonian() -> PortHamiltonianODE:
    energy = MechanicalEnergy(mlp(2, 4), mlp(2))
    actuation = nn.Sequential(mlp(2, 2), nn.Unflatten(-1, (2, 1)))
    return PortHamiltonianODE(energy, actuation=actuation, dissipation=nn.Parameter(0.3 * points(4, 3)))


class Lumped(nn.Module):
    """A mass matrix (2, 2) from a network, at least 1."""

    def __init__(self) -> None:
        super().__init__()
        self.root = mlp(2, 4)

    def forward(self, q: Tensor) -> Tensor:
        root = self.root(q).unflatten(-1, (2, 2))
        return root @ root.mT + torch.eye(2, **DOUBLE)


class Forces(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Concatenated(mlp(4, 2))

    def forward(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        return self.net(q, v) - q * torch.cos(t)


def growth(t: Tensor, y: Tensor) -> Tensor:
    return y * torch.tensor([0.5, -0.5], **DOUBLE)


MODELS = {
    "hamiltonian": lambda: (HamiltonianODE(Concatenated(mlp(4))), PAIR),
    "separable": lambda: (HamiltonianODE(kinetic=mlp(2), potential=mlp(2)), PAIR),
    "lagrangian": lambda: (LagrangianODE(Lagrangian(), forces=Forces()), PAIR),
    "gradient flow": lambda: (GradientFlow(mlp(3)), points(5, 3)),
    "port-hamiltonian": lambda: (port_hamiltonian(), PAIR),
    "mechanical": lambda: (MechanicalODE(Forces(), Lumped()), PAIR),
    "universal": lambda: (UniversalODE(growth, mlp(2, 2)), points(5, 2)),
}
each_model = pytest.mark.parametrize("name", MODELS)


def loss_of(ys) -> Tensor:
    parts = ys if isinstance(ys, tuple) else (ys,)
    return sum((part[-1].sin() * (1 + i)).sum() for i, part in enumerate(parts))


# Every model


@each_model
def test_gradients_of_all_sensitivity_algorithms_agree(name) -> None:
    """Local errors of 1e-9 a step, some 10 steps there and back, growing by less than 30 together."""
    model, y0 = MODELS[name]()
    found = {}
    sensealgs = (DirectAdjoint(), CheckpointedAdjoint(), BacksolveAdjoint(), InterpolatingAdjoint(), GaussAdjoint())
    for sensealg in sensealgs:
        ode = NeuralODE(model, (0.0, 0.5), sensealg=sensealg, algorithm="vern7", rtol=1e-9, atol=1e-9)
        # No derivative of an energy depends on the bias of its last layer.
        found[sensealg.name] = torch.autograd.grad(
            loss_of(ode.solve(y0).ys), list(model.parameters()), materialize_grads=True
        )
    expected = found.pop("DirectAdjoint")
    assert any(x.abs().max() > 0.01 for x in expected)
    for other, gradients in found.items():
        bound = 4 * EPS * 1000 * 30 if other == "CheckpointedAdjoint" else 2 * 10 * 30 * 1e-9
        for a, b in zip(gradients, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=bound)


@each_model
def test_state_dict_round_trip(name) -> None:
    model, y0 = MODELS[name]()
    other, _ = MODELS[name]()
    with torch.no_grad():
        for x in other.parameters():
            x.add_(1.0)
    before = rows(other(TIME, y0)) if isinstance(y0, tuple) else other(TIME, y0)
    other.load_state_dict(model.state_dict())
    expected, found = model(TIME, y0), other(TIME, y0)
    if isinstance(y0, tuple):
        expected, found = rows(expected), rows(found)
    assert not torch.equal(before, expected)
    assert torch.equal(found, expected)


@each_model
def test_captured_for_julia_without_the_callback(name) -> None:
    model, y0 = MODELS[name]()
    assert "function f!" in julia.source(model, 0.25, y0)


@each_model
def test_rows_do_not_see_one_another(name) -> None:
    model, y0 = MODELS[name]()
    single = tuple(x[2] for x in y0) if isinstance(y0, tuple) else y0[2]
    whole, one = model(TIME, y0), model(TIME, single)
    if isinstance(y0, tuple):
        whole, one = rows(whole), rows(one)
    torch.testing.assert_close(one, whole[2], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["hamiltonian", "separable", "lagrangian", "port-hamiltonian", "mechanical"])
def test_one_tensor_a_pair_and_a_named_pair_are_the_same_state(name) -> None:
    model, y0 = MODELS[name]()
    expected = rows(model(TIME, y0))
    assert torch.equal(model(TIME, rows(y0)), expected)
    named = model(TIME, Pair(*y0))
    assert isinstance(named, Pair)
    assert torch.equal(rows(named), expected)
    for wrong in (points(5, 3), points(3, 2, 2).unbind(), {"q": y0[0]}):
        with pytest.raises(InputError):
            model(TIME, wrong)


# Hamiltonian


def pendulum(q: Tensor, p: Tensor) -> Tensor:
    return (p**2 / 2 + 1 - torch.cos(q)).sum(-1)


def test_hamilton_s_equations_of_a_known_energy() -> None:
    q, p = PAIR
    dq, dp = HamiltonianODE(pendulum)(TIME, PAIR)
    torch.testing.assert_close(dq, p, rtol=1e-15, atol=0)
    torch.testing.assert_close(dp, -torch.sin(q), rtol=1e-15, atol=0)


@pytest.mark.parametrize("name", ["hamiltonian", "separable"])
def test_energy_is_conserved(name) -> None:
    """At the tolerance 1e-11 times a few dozen steps, for networks whose gradients are below 3."""
    model, y0 = MODELS[name]()
    y0 = rows(y0)
    with torch.no_grad():
        ys = pynode.solve(model, y0, [0.0, 5.0], **TIGHT).ys
    assert (ys[-1] - y0).abs().max() > 0.1
    torch.testing.assert_close(model.energy(ys[-1]), model.energy(y0), rtol=0, atol=50 * 3 * 1e-11 * 10)


def test_separable_energies_are_sums_and_serve_symplectic_methods() -> None:
    kinetic, potential = mlp(2), mlp(2, 1, 5)
    apart = HamiltonianODE(kinetic=kinetic, potential=potential)
    joint = HamiltonianODE(lambda q, p: kinetic(p) + potential(q))
    torch.testing.assert_close(rows(apart(TIME, PAIR)), rows(joint(TIME, PAIR)), rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(apart.energy(PAIR), joint.energy(PAIR), rtol=1e-15, atol=0)
    torch.testing.assert_close(apart.velocity(TIME, PAIR[1]), apart(TIME, PAIR)[0], rtol=0, atol=0)
    assert not hasattr(joint, "velocity")
    found = [pynode.solve(f, PAIR, [0.0, 1.0], algorithm=Yoshida6(steps=5)).ys for f in (apart, joint)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-14)
    with pytest.raises(FieldError, match="changes with p"):
        pynode.solve(MODELS["hamiltonian"]()[0], PAIR, [0.0, 1.0], algorithm=VelocityVerlet())


@pytest.mark.parametrize("given", [{}, {"kinetic": mlp(2)}, {"hamiltonian": mlp(4), "potential": mlp(2)}])
def test_half_a_hamiltonian_is_refused(given) -> None:
    with pytest.raises(InputError, match="hamiltonian, kinetic and potential"):
        HamiltonianODE(**given)


def test_a_learned_hamiltonian_is_the_energy_of_the_pendulum() -> None:
    """From pairs of states 0.5 apart, by gradients through Verlet steps: up to a constant, to 2 % of its range."""
    torch.manual_seed(0)
    start = (2.4 * torch.rand(100, 1, **DOUBLE) - 1.2, 2.4 * torch.rand(100, 1, **DOUBLE) - 1.2)
    with torch.no_grad():
        end = tuple(x[-1] for x in pynode.solve(HamiltonianODE(pendulum), start, [0.0, 0.5], **TIGHT).ys)
    model = HamiltonianODE(kinetic=mlp(1, 1, 12), potential=mlp(1, 1, 12))
    ode = NeuralODE(model, (0.0, 0.5), algorithm=VelocityVerlet(steps=5))
    optimiser = torch.optim.LBFGS(model.parameters(), lr=1.0, max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = sum((a - b).square().mean() for a, b in zip(ode(start), end, strict=True))
        loss.backward()
        return loss

    optimiser.step(closure)
    learned, true = (f.energy(start).detach().squeeze(-1) for f in (model, HamiltonianODE(pendulum)))
    error = (learned - learned.mean()) - (true - true.mean())
    assert error.abs().max() < 0.02 * (true.max() - true.min())


# Lagrangian


def double_pendulum(q: Tensor, v: Tensor) -> Tensor:
    """Unit masses, lengths and gravity, angles from below."""
    (a, b), (u, w) = q.unbind(-1), v.unbind(-1)
    return u**2 + w**2 / 2 + u * w * torch.cos(a - b) + 2 * torch.cos(a) + torch.cos(b)


def test_the_double_pendulum_s_accelerations_are_the_textbook_s() -> None:
    q, v = PAIR
    (a, b), (u, w) = q.unbind(-1), v.unbind(-1)
    d = a - b
    bottom = 3 - torch.cos(2 * d)
    first = -3 * torch.sin(a) - torch.sin(a - 2 * b) - 2 * torch.sin(d) * (w**2 + u**2 * torch.cos(d))
    second = 2 * torch.sin(d) * (2 * u**2 + 2 * torch.cos(a) + w**2 * torch.cos(d))
    expected = torch.stack([first, second], dim=-1) / bottom.unsqueeze(-1)
    dq, dv = LagrangianODE(double_pendulum)(TIME, PAIR)
    assert torch.equal(dq, v)
    # The mass matrix' condition is below 7; a few dozen operations.
    torch.testing.assert_close(dv, expected, rtol=0, atol=7 * 30 * EPS * 20)


def test_the_lagrangian_s_energy_is_conserved_without_forces() -> None:
    field = LagrangianODE(double_pendulum)
    with torch.no_grad():
        ys = pynode.solve(field, PAIR, [0.0, 2.0], **TIGHT).ys
    expected = field.energy(PAIR)
    v, d = PAIR[1], PAIR[0][:, 0] - PAIR[0][:, 1]
    by_hand = v[:, 0] ** 2 + v[:, 1] ** 2 / 2 + v.prod(-1) * torch.cos(d)
    by_hand = by_hand - 2 * torch.cos(PAIR[0][:, 0]) - torch.cos(PAIR[0][:, 1])
    torch.testing.assert_close(expected, by_hand, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(field.energy((ys[0][-1], ys[1][-1])), expected, rtol=0, atol=1e-8)


def test_forces_are_generalised_ones() -> None:
    """M dv/dt gains the force: twice of it with L = v^2 + ..., whose mass is 2."""
    net = Concatenated(mlp(4))
    free = LagrangianODE(lambda q, v: v.square().sum(-1) - q.cos().sum(-1))
    pushed = LagrangianODE(lambda q, v: v.square().sum(-1) - q.cos().sum(-1), forces=lambda t, q, v: net(q, v) * t)
    gain = pushed(TIME, PAIR)[1] - free(TIME, PAIR)[1]
    torch.testing.assert_close(gain, (net(*PAIR) * TIME / 2).expand(5, 2), rtol=1e-12, atol=1e-14)


def test_gradients_of_a_lagrangian_equal_finite_differences() -> None:
    model, y0 = MODELS["lagrangian"]()
    weight = model.lagrangian.net.net[0].weight

    def loss() -> Tensor:
        return loss_of(pynode.solve(model, y0, [0.0, 0.5], **TIGHT).ys)

    (found,) = torch.autograd.grad(loss(), weight)
    h = 1e-4
    with torch.no_grad():
        weight[1, 2] += h
        above = loss()
        weight[1, 2] -= 2 * h
        below = loss()
    # Truncation h^2 / 6 |l'''|, with |l'''| < 100; the solver's 1e-10 over h.
    assert abs(found[1, 2] - (above - below) / (2 * h)) < 100 * h**2 / 6 + 1e-10 / h


# Gradient flow


def test_the_potential_falls_along_every_trajectory() -> None:
    model, y0 = MODELS["gradient flow"]()
    with torch.no_grad():
        ys = pynode.solve(model, y0, torch.linspace(0.0, 5.0, 21), algorithm="vern7", rtol=1e-8, atol=1e-8).ys
    assert (model.potential(ys).squeeze(-1).diff(dim=0) < 0).all()


def test_the_potential_falls_at_the_rate_of_its_squared_gradient() -> None:
    field = GradientFlow(lambda y, k: (k * y**4).sum(-1))
    y = points(5, 3)
    dy = field(TIME, y, 0.5)
    torch.testing.assert_close(dy, -2.0 * y**3, rtol=1e-14, atol=0)
    tree = GradientFlow(lambda y: y["a"].square().sum(-1) * y["b"][0])
    found = tree(TIME, {"a": y, "b": (points(5),)})
    torch.testing.assert_close(found["a"], -2 * y * points(5)[:, None], rtol=1e-14, atol=0)
    torch.testing.assert_close(found["b"][0], -y.square().sum(-1), rtol=1e-14, atol=0)


# Port-Hamiltonian


@pytest.mark.parametrize("rank", [2, 4], ids=["friction on p", "on both"])
def test_power_balance(rank) -> None:
    """dH/dt = -grad H^T R grad H + w^T u, at points, and integrated as a running cost."""
    energy = MechanicalEnergy(mlp(2, 4), mlp(2))
    actuation = nn.Sequential(mlp(2, 2), nn.Unflatten(-1, (2, 1)))
    model = PortHamiltonianODE(energy, actuation=actuation, dissipation=points(rank, 2))
    control = lambda t: torch.cos(3 * t).expand(5, 1)  # noqa: E731
    _, rate = torch.func.jvp(lambda *y: model.energy(y), PAIR, model(TIME, PAIR, control))
    given = (model.output(PAIR) * control(TIME)).sum(-1)
    assert (model.dissipated(PAIR) > 0).all()
    torch.testing.assert_close(rate, given - model.dissipated(PAIR), rtol=0, atol=1e-13)

    power = lambda t, y, u: (model.output(y) * u(t)).sum(-1) - model.dissipated(y)  # noqa: E731
    options = {"algorithm": "vern7", "rtol": 1e-9, "atol": 1e-9, "cost_in_norm": True}
    with torch.no_grad():
        sol = pynode.solve(model, PAIR, [0.0, 2.0], args=(control,), running_cost=power, **options)
    gained = model.energy(tuple(x[-1] for x in sol.ys)) - model.energy(PAIR)
    torch.testing.assert_close(gained, sol.running_cost, rtol=0, atol=50 * 3 * 10 * 1e-9)


def test_without_ports_it_is_the_hamiltonian_field() -> None:
    energy = Concatenated(mlp(4))
    assert torch.equal(rows(PortHamiltonianODE(energy)(TIME, PAIR)), rows(HamiltonianODE(energy)(TIME, PAIR)))


def test_feedback_adds_to_the_control() -> None:
    plain = PortHamiltonianODE(pendulum, actuation=torch.tensor([[1.0], [2.0]], **DOUBLE))
    fed = PortHamiltonianODE(pendulum, actuation=plain.actuation, control=lambda t, q, p: -p[..., :1])
    dp = fed(TIME, PAIR, torch.ones(5, 1, **DOUBLE))[1] - plain(TIME, PAIR)[1]
    expected = (1 - PAIR[1][:, :1]) * torch.tensor([1.0, 2.0], **DOUBLE)
    torch.testing.assert_close(dp, expected, rtol=0, atol=20 * EPS)
    assert "actuation" in plain.state_dict()
    with pytest.raises(FieldError, match="2 or 4 rows"):
        PortHamiltonianODE(pendulum, dissipation=points(3, 1))(TIME, PAIR)


def test_the_mechanical_energy_has_a_positive_mass() -> None:
    energy = MechanicalEnergy(mlp(2, 4), mlp(2), floor=0.2)
    q, p = PAIR
    inverse = energy.inverse_mass(q)
    assert torch.linalg.eigvalsh(inverse).min() >= 0.2 - 1e-14
    expected = 0.5 * torch.einsum("bi,bij,bj->b", p, inverse, p) + energy.potential(q)[:, 0]
    torch.testing.assert_close(energy(q, p), expected, rtol=1e-14, atol=0)


# Mechanical


def test_mass_times_acceleration_is_the_force() -> None:
    q, v = PAIR
    forces = Forces()
    expected = forces(TIME, q, v)
    for mass in (Lumped(), Lumped()(q[0]).detach(), torch.tensor([2.0, 3.0], **DOUBLE)):
        field = MechanicalODE(forces, mass)
        dq, dv = field(TIME, PAIR)
        assert torch.equal(dq, v)
        matrix = mass(q) if isinstance(mass, nn.Module) else mass.diag() if mass.ndim == 1 else mass
        torch.testing.assert_close((matrix @ dv.unsqueeze(-1)).squeeze(-1), expected, rtol=0, atol=1e-14)
    assert torch.equal(MechanicalODE(forces)(TIME, PAIR)[1], expected)
    assert "mass" in MechanicalODE(forces, torch.ones(2, **DOUBLE)).state_dict()
    with pytest.raises(FieldError, match="mass matrix has shape"):
        MechanicalODE(forces, torch.ones(3, 3, **DOUBLE))(TIME, PAIR)


def test_an_undamped_oscillator_takes_verlet() -> None:
    """m q'' = -k q with k / m = 4: the cosine of twice the time, to Verlet's phase error of h^2 / 24 * 8 * t."""
    field = MechanicalODE(lambda t, q, v: -8.0 * q, torch.tensor([2.0], **DOUBLE))
    y0 = (torch.ones(1, **DOUBLE), torch.zeros(1, **DOUBLE))
    q, _ = pynode.solve(field, y0, [0.0, 1.0], algorithm=VelocityVerlet(dt=0.01)).ys
    assert abs(q[-1].item() - math.cos(2.0)) < 0.01**2 / 24 * 8


# Universal


def test_the_network_may_stand_inside_the_known_equations() -> None:
    net, y = mlp(2, 2), points(5, 2)
    inside = UniversalODE(lambda t, y, z, k: k * z * y + t, net, inside=True)
    torch.testing.assert_close(inside(TIME, y, 3.0), 3.0 * net(y) * y + TIME, rtol=0, atol=0)
    tree = UniversalODE(lambda t, y: {"a": y["a"] * t}, lambda y: {"a": net(y["a"])})
    torch.testing.assert_close(tree(TIME, {"a": y})["a"], y * TIME + net(y), rtol=0, atol=0)


def test_the_missing_interaction_of_predators_and_prey_is_found() -> None:
    """Lotka-Volterra with births and deaths known: the interaction (-0.9 x y, 0.8 x y) from a trajectory, by gradients
    through the solver; to 5 % of its largest value where the data is."""
    rates = torch.tensor([1.3, -1.8], **DOUBLE)
    interaction = lambda y: torch.tensor([-0.9, 0.8], **DOUBLE) * y.prod(-1, keepdim=True)  # noqa: E731
    t = torch.linspace(0.0, 6.0, 61, **DOUBLE)
    start = torch.tensor([0.44, 4.6], **DOUBLE)
    with torch.no_grad():
        data = pynode.solve(lambda t, y: rates * y + interaction(y), start, t, **TIGHT).ys
    model = UniversalODE(lambda t, y: rates * y, mlp(2, 2, 12))
    ode = NeuralODE(model, (0.0, 0.1), algorithm="rk4")
    optimiser = torch.optim.LBFGS(model.parameters(), max_iter=150, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = (ode(data[:-1]) - data[1:]).square().mean()  # one short solve from every point, as one batch
        loss.backward()
        return loss

    optimiser.step(closure)
    with torch.no_grad():
        found, expected = model.network(data), interaction(data)
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()
