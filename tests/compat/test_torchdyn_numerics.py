"""torchdyn.numerics over pynode: solvers by name, as objects, and with steps of the user's own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import pynode
from pynode.compat.torchdyn.core import NeuralODE
from pynode.compat.torchdyn.numerics import (
    AsynchronousLeapfrog,
    DormandPrince45,
    Euler,
    HyperEuler,
    HyperMidpoint,
    HyperRungeKutta4,
    Lorenz,
    Midpoint,
    RungeKutta4,
    Tsitouras45,
    VanDerPol,
    odeint,
    odeint_symplectic,
)

X = torch.tensor([[0.3, 1.1], [-0.7, 0.2]], dtype=torch.float64)
SPAN = torch.linspace(0, 1, 11, dtype=torch.float64)


def field(t, x):
    return torch.sin(x) * (1 + t)


@pytest.mark.parametrize(
    ("name", "solver", "algorithm"),
    [
        ("euler", Euler, "Euler"),
        ("midpoint", Midpoint, "Midpoint"),
        ("rk4", RungeKutta4, "RK4"),
        ("dopri5", DormandPrince45, "DP5"),
        ("tsit5", Tsitouras45, "Tsit5"),
    ],
)
def test_solvers_are_pynodes(name, solver, algorithm):
    options = {"atol": 1e-8, "rtol": 1e-8}
    expected = pynode.solve(field, X, SPAN, algorithm=algorithm, **options).ys
    for given in (name, solver(), getattr(pynode, algorithm)()):
        t_eval, path = odeint(field, X, SPAN, given, **options)
        assert t_eval is SPAN
        torch.testing.assert_close(path, expected, rtol=1e-14, atol=0)  # summed in another order on a tape


@pytest.mark.parametrize("solver", [Euler, Midpoint, RungeKutta4, DormandPrince45, Tsitouras45])
def test_a_step_is_the_algorithms(solver):
    made = solver()
    t, dt = torch.tensor(0.2, dtype=torch.float64), torch.tensor(0.1, dtype=torch.float64)
    last, end, error, *stages = made.step(field, X, t, dt)
    algorithm = made.algorithm
    options = {"controller": pynode.IController(), "dt0": 0.1} if algorithm.adaptive else {}
    sol = pynode.solve(field, X, [0.2, 0.30000000000000004], algorithm=algorithm, rtol=1.0, atol=1.0, **options)
    assert sol.stats.forward.accepted == 1
    torch.testing.assert_close(end, sol.ys[-1], rtol=1e-14, atol=0)
    if algorithm.adaptive:
        torch.testing.assert_close(last, field(t + dt, end), rtol=1e-13, atol=0)
        assert error.shape == X.shape
        assert 0 < error.abs().max() < 1e-6
        assert len(stages[0]) == 7
        torch.testing.assert_close(made.step(field, X, t, dt, k1=field(t, X))[1], end, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("hyper", "solver"), [(HyperEuler, Euler), (HyperMidpoint, Midpoint), (HyperRungeKutta4, RungeKutta4)]
)
def test_hypersolvers_add_their_network(hyper, solver):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(2, 2).double()

        def forward(self, t, x):
            return t * self.net(x)

    net = Net()
    made = hyper(net)
    t_eval, path = odeint(field, X, SPAN, made)
    x = X
    for t, dt in zip(SPAN[:-1], SPAN.diff(), strict=True):
        x = solver().step(field, x, t, dt)[1] + dt ** (solver().order + 1) * net(t, x)
    torch.testing.assert_close(path[-1], x, rtol=1e-12, atol=0)
    assert t_eval.shape == (11,)
    path[-1].sum().backward()
    assert net.net.weight.grad.abs().min() > 0


def test_a_network_of_the_local_error_makes_eulers_method_second_order():
    """``x' = -x``: Euler's local error is ``x dt^2 / 2``, so with this network the error falls as ``dt^2``."""

    def error(steps):
        span = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        _, path = odeint(lambda t, x: -x, X, span, HyperEuler(lambda t, x: x / 2))
        return (path[-1] - X * math.exp(-1)).abs().max().item()

    assert math.log2(error(50) / error(100)) == pytest.approx(2, abs=0.05)


def test_steps_of_the_users_own_take_dictionaries_and_args():
    """torchdyn's own test of dictionaries: a field that returns the next state, and a solver that takes it."""
    net = nn.Linear(2, 2)

    def fun(t, x, args):
        out = net(torch.cat([x["i1"], x["i2"]], dim=-1)) * args["gain"]
        return t, {"i1": out[..., 0:1], "i2": out[..., 1:2]}

    class Dummy(Euler):
        def step(self, f, x, t, dt, k1=None, args=None):
            _, end = f(t, x, args)
            return None, end, None

    x0 = {"i1": torch.rand(3, 1), "i2": torch.rand(3, 1)}
    gain = torch.tensor(0.5, requires_grad=True)
    model = NeuralODE(fun, solver=Dummy())
    t_eval, path = model(x0, torch.linspace(0, 1, 4), args={"gain": gain}, save_at=torch.tensor([0.0, 1.0]))
    expected = torch.cat([x0["i1"], x0["i2"]], dim=-1)
    for _ in range(3):
        expected = net(expected) * gain
    assert t_eval.tolist() == [0, 1]
    torch.testing.assert_close(torch.cat([path["i1"], path["i2"]], dim=-1)[-1], expected)
    path["i1"].sum().backward()
    assert gain.grad.abs() > 0
    adjoint = NeuralODE(fun, solver=Dummy(), sensitivity="adjoint")
    with pytest.raises(pynode.UnsupportedError, match="sensitivity='autograd'"):
        adjoint(x0, torch.linspace(0, 1, 4), args={"gain": gain})
    with pytest.raises(pynode.InputError, match="times of t_span, each once"):
        model(x0, torch.linspace(0, 1, 4), args={"gain": gain}, save_at=[0.5])


def test_dictionaries_with_a_fixed_and_an_adaptive_solver():
    for solver in ("rk4", "dopri5"):
        t_eval, path = odeint(lambda t, x: {k: -v for k, v in x.items()}, {"a": X, "b": X[0]}, SPAN, solver, 1e-9, 1e-9)
        torch.testing.assert_close(path["a"][-1], X * math.exp(-1), rtol=1e-6, atol=0)
        assert path["b"].shape == (len(t_eval), 2)


def test_leapfrog_on_states_with_a_velocity():
    """With the field's own velocity to begin with it is pynode's method; otherwise the caller's velocity counts."""
    start = torch.cat([X, field(SPAN[0], X)], dim=1)
    expected = pynode.solve(field, X, SPAN, algorithm=pynode.AsynchronousLeapfrog()).ys
    for solver in ("alf", AsynchronousLeapfrog()):
        t_eval, path = odeint_symplectic(field, start, SPAN, solver)
        torch.testing.assert_close(path[..., :2], expected, rtol=1e-12, atol=1e-14)
        assert len(t_eval) == 11
    other = odeint_symplectic(field, torch.cat([X, 0 * X], dim=1), SPAN, "alf")[1]
    assert (other[-1, :, :2] - expected[-1]).abs().max() > 1e-3
    with pytest.raises(pynode.InputError, match="odeint for others"):
        odeint_symplectic(field, start, SPAN, "rk4")
    with pytest.raises(pynode.UnsupportedError, match="adaptive=True"):
        AsynchronousLeapfrog(stepping_class="adaptive")


def test_options_of_odeint():
    """All accepted steps; a list of tensors; stops; complex states; the seminorm."""
    span = [torch.tensor([0.0]), torch.tensor([1.0])]
    t_eval, path = odeint(field, X, span, "dopri5", return_all_eval=True)
    assert len(t_eval) == len(path) > 2
    t_eval, _ = odeint(field, X, span, "dopri5", return_all_eval=True, t_stops=[0.123])
    assert (t_eval - 0.123).abs().min() < 1e-7
    z = torch.tensor([1.0 + 0j], dtype=torch.complex128)
    end = odeint(lambda t, z: 1j * z, z, torch.tensor([0.0, 1.0]), "tsit5", 1e-9, 1e-9)[1][-1]
    torch.testing.assert_close(end, torch.exp(1j * torch.ones(1, dtype=torch.float64)), rtol=1e-7, atol=0)

    def stiffer_second(t, x):
        return torch.stack([-x[0], torch.cos(60 * t)])

    y = torch.tensor([1.0, 0.0], dtype=torch.float64)
    whole = odeint(stiffer_second, y, SPAN[[0, -1]], "dopri5", 1e-8, 1e-8, return_all_eval=True)[0]
    first = odeint(stiffer_second, y, SPAN[[0, -1]], "dopri5", 1e-8, 1e-8, return_all_eval=True, seminorm=(True, 1))[0]
    assert len(first) < len(whole) / 2


def test_systems():
    torch.testing.assert_close(Lorenz()(0.0, torch.tensor([[1.0, 2.0, 3.0]])), torch.tensor([[10.0, 23.0, -6.0]]))
    torch.testing.assert_close(VanDerPol(5)(0.0, torch.tensor([2.0, 3.0])), torch.tensor([3.0, -47.0]))
    equilibrium = torch.tensor([math.sqrt(72), math.sqrt(72), 27.0], dtype=torch.float64)
    assert Lorenz()(0.0, equilibrium).abs().max() < 1e-13
    t_eval, path = odeint(Lorenz(), torch.randn(8, 3) + 15, torch.linspace(0.0, 2.0, 10), solver="dopri5")
    assert path.shape == (10, 8, 3)
    assert path.isfinite().all()
    assert t_eval[-1] == 2
