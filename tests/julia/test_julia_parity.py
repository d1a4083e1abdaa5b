"""The Julia backend against the torch backend: solutions and every gradient, by both routes into Julia.

Both integrate the same field at the same tolerances. A solve takes some 10 to 30 steps, each of whose local errors is
below the tolerance, in a field whose growth over the span is at most 2: the bound of ``tests/test_sensealgs.py``, 100
tolerances relative to the size of the quantity, holds for either side.
"""

from __future__ import annotations

import contextlib
import warnings

import pytest
import torch
from torch import Tensor

import pynode
from pynode.julia import runtime

pytestmark = [
    pytest.mark.julia,
    pytest.mark.skipif(not runtime.installed(), reason="juliacall is not installed"),
]

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-7}
MULTIPLE = 100.0
SENSEALGS = {
    "Gauss": pynode.GaussAdjoint(),
    "GaussKronrod": pynode.GaussKronrodAdjoint(),
    "Interpolating": pynode.InterpolatingAdjoint(),
    "Interpolating-full": pynode.InterpolatingAdjoint(norm="full"),
    "Interpolating-checkpointing": pynode.InterpolatingAdjoint(checkpointing=True),
    "Gauss-checkpointing": pynode.GaussAdjoint(checkpointing=True),
    "Quadrature": pynode.QuadratureAdjoint(),
    "Backsolve": pynode.BacksolveAdjoint(),
}
ROUTES = ("captured", "callback")


def route(name: str):
    from pynode.julia.routes import callbacks

    return callbacks() if name == "callback" else contextlib.nullcontext()


class Net(torch.nn.Module):
    """Depends on time, on an argument, on a buffer, and uses one layer twice."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.inner = torch.nn.Linear(3, 3)
        self.outer = torch.nn.Linear(3, 3)
        self.register_buffer("shift", torch.tensor([0.1, -0.2, 0.3]))
        self.to(dtype)  # the same numbers in both precisions

    def forward(self, t, y, a):
        h = torch.tanh(self.inner(y) * torch.cos(2.0 * t) + self.shift)
        return torch.tanh(self.outer(self.inner(h))) * a - 0.3 * y


def gradients(backend: str, dtype: torch.dtype, **options) -> dict[str, Tensor]:
    net = Net(dtype)
    y0 = torch.tensor([[0.5, -0.3, 0.8], [0.1, 0.9, -0.4]], dtype=dtype, requires_grad=True)
    a = torch.tensor([1.0, 0.7, -0.5], dtype=dtype, requires_grad=True)
    t = torch.tensor([0.1, 0.55, 0.9, 1.3], dtype=torch.float64, requires_grad=True)
    rtol = options.pop("rtol", TOLERANCE[dtype])
    sol = pynode.solve(net, y0, t, args=(a,), rtol=rtol, atol=rtol, backend=backend, **options)
    weights = torch.linspace(0.5, 1.5, sol.ys.numel(), dtype=dtype).reshape(sol.ys.shape)
    loss = (weights * sol.ys.sin()).sum()
    found = torch.autograd.grad(loss, [y0, a, t, *net.parameters()])
    names = ["y0", "args", "t", *(name for name, _ in net.named_parameters())]
    return {"solution": sol.ys.detach(), **dict(zip(names, found, strict=True))}


def check(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float) -> None:
    for name, x in expected.items():
        distance = (found[name].double() - x.double()).norm() / x.double().norm()
        assert distance <= MULTIPLE * rtol, f"{name}: {distance:.3g}"
        assert found[name].norm() > 0


@pytest.fixture(scope="module")
def truth() -> dict[str, Tensor]:
    return gradients("torch", torch.float64, algorithm=pynode.Vern9())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("sensealg", SENSEALGS.values(), ids=SENSEALGS)
@pytest.mark.parametrize("algorithm", ["Tsit5", "DP5"])
@pytest.mark.parametrize("way", ROUTES)
def test_sensitivity_algorithms(algorithm, sensealg, dtype, way, truth):
    narrow = isinstance(sensealg, pynode.GaussKronrodAdjoint) or getattr(sensealg, "checkpointing", False)
    with route(way):
        if narrow and dtype == torch.float32:
            with pytest.raises(pynode.UnsupportedError, match="in float32"):
                gradients("julia", dtype, algorithm=algorithm, sensealg=sensealg)
            return
        found = gradients("julia", dtype, algorithm=algorithm, sensealg=sensealg)
    check(found, truth, TOLERANCE[dtype])


EXPLICIT = ("BS3", "Vern7", "Vern9", "DP8", "AdaptiveHeun", "Fehlberg2")
IMPLICIT = ("Rosenbrock23", "Rodas5P", "KenCarp4", "AutoTsit5(Rosenbrock23())")


@pytest.mark.parametrize("algorithm", [*EXPLICIT, *IMPLICIT])
def test_algorithms(algorithm, truth):
    # Methods of low order take hundreds of steps at the tolerance of the others.
    loose = algorithm in ("BS3", "AdaptiveHeun", "Fehlberg2", "Rosenbrock23", "AutoTsit5(Rosenbrock23())")
    multiple = 10.0 if loose else 1.0
    found = gradients("julia", torch.float64, algorithm=algorithm)
    check(found, truth, multiple * TOLERANCE[torch.float64])


@pytest.mark.parametrize("algorithm", ["FBDF"])
def test_multistep_methods_converge(algorithm, truth):
    """Their global error is no fixed multiple of the tolerance; a hundredfold tighter one makes it at least ten times
    smaller in everything."""

    def errors(rtol):
        # GaussAdjoint's integral over such steps is controlled by nothing: 2e-5 was measured at 1e-7.
        sensealg = pynode.QuadratureAdjoint()
        found = gradients("julia", torch.float64, algorithm=algorithm, rtol=rtol, sensealg=sensealg)
        return {name: ((found[name] - x).norm() / x.norm()).item() for name, x in truth.items()}

    coarse, fine = errors(1e-5), errors(1e-7)
    assert all(fine[name] <= coarse[name] / 10.0 for name in truth), (coarse, fine)


@pytest.mark.parametrize("algorithm", ["Rodas5P", "FBDF"])
@pytest.mark.parametrize("way", ROUTES)
def test_implicit_methods_by_both_routes(algorithm, way, truth):
    with route(way):
        found = gradients("julia", torch.float64, algorithm=algorithm, sensealg=pynode.QuadratureAdjoint())
    check(found, truth, 10.0 * TOLERANCE[torch.float64])


@pytest.mark.parametrize("name", ["Euler", "Midpoint", "Heun", "Ralston", "RK4", "RK38", "SSPRK33", "Heun3"])
def test_fixed_steps_are_the_torch_backends(name):
    """The same steps of the same method: equal to rounding."""
    algorithm = getattr(pynode, name)(dt=0.05)
    net = Net(torch.float64)
    y0 = torch.tensor([[0.5, -0.3, 0.8]], dtype=torch.float64)
    a = torch.ones(3, dtype=torch.float64)
    t = [0.0, 0.17, 1.0]
    with torch.no_grad():
        ours = pynode.solve(net, y0, t, args=(a,), algorithm=algorithm)
        theirs = pynode.solve(net, y0, t, args=(a,), algorithm=algorithm, backend="julia")
    assert theirs.stats.forward.accepted == ours.stats.forward.accepted
    torch.testing.assert_close(theirs.ys[-1], ours.ys[-1], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", ["ImplicitEuler", "ImplicitMidpoint", "Trapezoid"])
def test_implicit_fixed_steps_are_the_torch_backends(name):
    """The same steps, each of which either iteration solves to some 1e-11: 20 of them, and a growth of 2."""
    algorithm = getattr(pynode, name)(dt=0.05)
    net = Net(torch.float64)
    y0 = torch.tensor([[0.5, -0.3, 0.8]], dtype=torch.float64)
    a = torch.ones(3, dtype=torch.float64)
    with torch.no_grad():
        ours = pynode.solve(net, y0, [0.0, 0.17, 1.0], args=(a,), algorithm=algorithm)
        theirs = pynode.solve(net, y0, [0.0, 0.17, 1.0], args=(a,), algorithm=algorithm, backend="julia")
    assert theirs.stats.forward.accepted == ours.stats.forward.accepted
    torch.testing.assert_close(theirs.ys[-1], ours.ys[-1], rtol=0, atol=40 * 1e-11)


def test_running_cost():
    results = {}
    for backend in ("torch", "julia"):
        net = Net(torch.float64)
        c = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
        y0 = torch.tensor([[0.5, -0.3, 0.8]], dtype=torch.float64, requires_grad=True)
        a = torch.ones(3, dtype=torch.float64, requires_grad=True)
        sol = pynode.solve(
            net,
            y0,
            [0.0, 0.4, 1.0],
            args=(a,),
            rtol=1e-8,
            atol=1e-10,
            backend=backend,
            sensealg=pynode.GaussAdjoint(),
            running_cost=lambda t, y, a, c=c: (c * y).square().sum(-1),
        )
        loss = sol.running_cost.sum() + sol.ys[1].sum()
        results[backend] = [sol.running_cost, *torch.autograd.grad(loss, [y0, a, c, *net.parameters()])]
    for ours, theirs in zip(results["torch"], results["julia"], strict=True):
        assert (ours - theirs).norm() <= 100 * 1e-8 * ours.norm()


def test_dense_output_and_saved_steps():
    net, y0 = Net(torch.float64), torch.tensor([[0.5, -0.3, 0.8]], dtype=torch.float64)
    a = torch.ones(3, dtype=torch.float64)
    options = {"args": (a,), "rtol": 1e-9, "atol": 1e-11}
    ours = pynode.solve(net, y0, [0.0, 1.0], algorithm="Vern9", **options)
    sol = pynode.solve(net, y0, [0.0, 1.0], backend="julia", saveat=pynode.SaveAt(steps=True), **options)
    at = torch.tensor([0.83, 0.11, 0.5], dtype=torch.float64)
    torch.testing.assert_close(sol(at), ours(at), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(sol.derivative(at), ours.derivative(at), rtol=1e-4, atol=1e-5)
    assert len(sol.ts) == sol.stats.forward.accepted + 1
    torch.testing.assert_close(sol.ys[-1], ours.ys[-1], rtol=1e-7, atol=1e-8)
    query = torch.tensor(0.37, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(sol(query).sum(), query)
    exact = net(query.detach(), sol(query).detach(), a).sum()
    torch.testing.assert_close(slope, exact.detach(), rtol=1e-6, atol=1e-8)


def test_backward_in_time_and_save_times_apart():
    results = []
    for backend in ("torch", "julia"):
        net = Net(torch.float64)
        y0 = torch.tensor([[0.5, -0.3, 0.8]], dtype=torch.float64, requires_grad=True)
        a = torch.ones(3, dtype=torch.float64)
        t = torch.tensor([1.0, 0.2], dtype=torch.float64, requires_grad=True)
        save = torch.tensor([1.0, 0.7, 0.3], dtype=torch.float64, requires_grad=True)
        sol = pynode.solve(
            net, y0, t, args=(a,), saveat=save, rtol=1e-9, atol=1e-11, backend=backend, sensealg=pynode.GaussAdjoint()
        )
        results.append([sol.ys, *torch.autograd.grad(sol.ys.square().sum(), [y0, t, save, *net.parameters()])])
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).norm() <= 100 * 1e-8 * max(ours.norm().item(), 1.0)


@pytest.mark.parametrize("name", ["lotka-volterra", "spiral", "brusselator-1d", "lorenz"])
def test_built_in_problems(name):
    problem = pynode.problems.PROBLEMS[name]
    errors = {}
    found = {}
    for backend, algorithm, tolerance in (("torch", "vern9", 1e-11), ("julia", "Vern9", 1e-9)):
        instance = problem.build(dtype=torch.float64, seed=0)
        y0 = instance.y0.clone().requires_grad_()
        end = instance.t[: max(2, len(instance.t) // 4)]  # Lorenz forgets where it came from
        options = {"algorithm": algorithm, "rtol": tolerance, "atol": tolerance, "backend": backend}
        sol = pynode.solve(instance.field, y0, end, sensealg=pynode.GaussAdjoint(), **options)
        parameters = [p for p in instance.field.parameters() if p.requires_grad]
        found[backend] = [sol.ys, *torch.autograd.grad(sol.ys.square().mean(), [y0, *parameters])]
    errors = [(a - b).norm() / a.norm() for a, b in zip(found["torch"], found["julia"], strict=True)]
    # Growth over these spans is below 1e3 (Lorenz, Van der Pol on their fast pieces).
    assert max(errors) <= 1e3 * 1e-9 * 100, errors


def test_captured_fields_say_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradients("julia", torch.float64, algorithm="Tsit5")
