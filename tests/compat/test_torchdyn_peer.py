"""Against torchdyn itself, where it is installed: the same numbers from the same parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pynode.compat import torchdyn as ours

theirs_core = pytest.importorskip("torchdyn.core")
theirs_nn = pytest.importorskip("torchdyn.nn")
theirs_models = pytest.importorskip("torchdyn.models")
theirs_numerics = pytest.importorskip("torchdyn.numerics")

TIGHT = {"atol": 1e-9, "rtol": 1e-9}
SPAN = torch.linspace(0.1, 1, 5, dtype=torch.float64)


def both(make, x, order=1, solver="dopri5", **options):  # in the precision of x
    """Trajectories, and gradients of one loss, of ours and of theirs with the same parameters."""
    models = []
    for nn_, models_, core in ((ours.nn, ours.models, ours.core), (theirs_nn, theirs_models, theirs_core)):
        torch.manual_seed(0)
        models.append(core.NeuralODE(make(nn_, models_).to(x.dtype), solver, order=order, **(TIGHT | options)))
    models[0].load_state_dict(models[1].state_dict())
    for parameter, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        moved = parameter.detach() + 0.1 * torch.randn_like(parameter)
        parameter.data, other.data = moved, moved.clone()
    found = []
    for model in models:
        t_eval, path = model(x, SPAN.to(x.dtype))
        loss = path[-1].square().sum()
        found.append((t_eval, path, torch.autograd.grad(loss, list(model.parameters()))))
    return found


def energy():
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1, bias=False))


def mlp(inputs, outputs):
    return [nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs)]


FIELDS = {
    "plain": (lambda nn_, m: nn.Sequential(*mlp(2, 2)), 1),
    "DepthCat": (lambda nn_, m: nn.Sequential(nn_.DepthCat(1), *mlp(3, 2)), 1),
    "DataControl": (lambda nn_, m: nn.Sequential(nn_.DataControl(), *mlp(4, 2)), 1),
    "second order": (lambda nn_, m: nn.Sequential(*mlp(2, 1)), 2),
    "Fourier": (lambda nn_, m: galerkin(nn_, nn_.Fourier(3)), 1),
    "Polynomial": (lambda nn_, m: galerkin(nn_, nn_.Polynomial(3)), 1),
    "GaussianRBF": (lambda nn_, m: galerkin(nn_, nn_.GaussianRBF(3)), 1),
    "VanillaRBF": (lambda nn_, m: galerkin(nn_, nn_.VanillaRBF(3)), 1),
    "MultiquadRBF": (lambda nn_, m: galerkin(nn_, nn_.MultiquadRBF(3)), 1),
    "CNF": (lambda nn_, m: m.CNF(nn.Sequential(*mlp(1, 1))), 1),
    "HNN": (lambda nn_, m: m.HNN(energy()), 1),
    "GNF": (lambda nn_, m: m.GNF(energy()), 1),
    "LNN": (lambda nn_, m: m.LNN(Convex()), 1),
}


class Convex(nn.Module):
    """A Lagrangian whose mass matrix is regular."""

    def __init__(self):
        super().__init__()
        self.net = energy()

    def forward(self, x):
        return self.net(x) + 2 * x[..., 1:] ** 2


def galerkin(nn_, basis):
    return nn.Sequential(nn.Linear(2, 2), nn_.DepthCat(1), nn_.GalLinear(2, 2, expfunc=basis))


@pytest.mark.parametrize("name", FIELDS)
def test_fields_and_backpropagation(name):
    make, order = FIELDS[name]
    # torchdyn's Galerkin layers are float32 only.
    single = name in ("Fourier", "Polynomial", "GaussianRBF", "VanillaRBF", "MultiquadRBF")
    x = torch.randn(4, 2, dtype=torch.float32 if single else torch.float64)
    options = {"atol": 1e-6, "rtol": 1e-6} if single else {}
    (t, path, gradients), (t_theirs, path_theirs, gradients_theirs) = both(make, x, order=order, **options)
    # 100 times the tolerance: some ten steps each, whose errors the flow amplifies.
    bound = 1e-4 if single else 1e-7
    torch.testing.assert_close(t, t_theirs)
    torch.testing.assert_close(path, path_theirs, rtol=bound, atol=bound)
    for a, b in zip(gradients, gradients_theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=10 * bound, atol=10 * bound)


def test_the_adjoint():
    options = {"sensitivity": "adjoint", "atol_adjoint": 1e-9, "rtol_adjoint": 1e-9}
    (_, path, gradients), (_, path_theirs, gradients_theirs) = both(
        FIELDS["plain"][0], torch.randn(4, 2, dtype=torch.float64), **options
    )
    torch.testing.assert_close(path, path_theirs, rtol=1e-7, atol=1e-8)
    for a, b in zip(gradients, gradients_theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("solver", ["euler", "midpoint", "rk4"])
def test_fixed_steps(solver):
    """Autonomous: torchdyn's rk4 takes the abscissae one stage late."""
    f = ours.numerics.Lorenz()
    x = torch.randn(4, 3, dtype=torch.float64)
    span = torch.linspace(0, 0.2, 9, dtype=torch.float64)
    _, path = ours.numerics.odeint(f, x, span, solver)
    _, path_theirs = theirs_numerics.odeint(theirs_numerics.Lorenz(), x, span, solver)
    torch.testing.assert_close(path, path_theirs, rtol=1e-6 if solver == "rk4" else 1e-12, atol=1e-12)


def test_hypersolvers_and_leapfrog():
    x = torch.randn(4, 2, dtype=torch.float64)
    span = torch.linspace(0, 1, 9, dtype=torch.float64)
    net = nn.Linear(2, 2).double()
    paths = [
        numerics.odeint(lambda t, x: -x, x, span, numerics.HyperEuler(lambda t, x: net(x)))[1]
        for numerics in (ours.numerics, theirs_numerics)
    ]
    torch.testing.assert_close(*paths)

    def field(t, x):
        return -x

    field.order = 1
    paths = [numerics.odeint_symplectic(field, x, span, "alf")[1] for numerics in (ours.numerics, theirs_numerics)]
    torch.testing.assert_close(*paths)


def test_integral_loss_under_the_adjoint():
    def loss(t, x):
        return (x**2).sum(dim=1)

    options = {"sensitivity": "adjoint", "atol_adjoint": 1e-9, "rtol_adjoint": 1e-9, "integral_loss": loss}
    found = both(FIELDS["plain"][0], torch.randn(4, 2, dtype=torch.float64), **options)
    for a, b in zip(found[0][2], found[1][2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
