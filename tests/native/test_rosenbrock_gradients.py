"""Gradients through Rosenbrock methods: exact for the steps taken, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

import pynode
from pynode import Rodas4, Rodas5P, Rosenbrock23
from pynode.errors import GradientError, UnsupportedError
from pynode.sensealg import (
    BacksolveAdjoint,
    CheckpointedAdjoint,
    DirectAdjoint,
    ForwardSensitivity,
    GaussAdjoint,
    InterpolatingAdjoint,
    QuadratureAdjoint,
)

F64 = torch.float64
METHODS = (Rosenbrock23, Rodas4, Rodas5P)
every_method = pytest.mark.parametrize("method", METHODS, ids=[m.__name__ for m in METHODS])
INDEX_1 = torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=F64))


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


def central(loss, x: torch.Tensor, h: float = 1e-5) -> torch.Tensor:
    """Differences of fourth order: their errors are h^4 and U / h of the loss."""
    found = torch.zeros_like(x)
    for i in range(x.numel()):
        step = torch.zeros_like(x)
        step.view(-1)[i] = h
        near, far = loss(x + step) - loss(x - step), loss(x + 2 * step) - loss(x - 2 * step)
        found.view(-1)[i] = (8 * near - far) / (12 * h)
    return found


@every_method
@pytest.mark.parametrize(
    ("linsolve", "mass"),
    [("dense", None), ("dense", "singular"), pytest.param("gmres", "regular", marks=pytest.mark.slow)],
)
def test_gradients_are_those_of_the_steps(method, linsolve, mass):
    """Fixed steps are a smooth function of everything: differences are exact up to 1e-9. Coarse ones, which are far
    from the solution: an approximate adjoint would show."""
    if mass == "singular" and method is Rosenbrock23:
        return
    matrix = {
        None: None,
        "regular": torch.tensor([[2.0, 1.0], [0.0, 0.5]], dtype=F64),
        "singular": torch.diag(tensor(1.0, 0.0)),
    }[mass]

    def f(t, y, w):
        if mass == "singular":
            return torch.stack([-y[1] * y[0] * w[0] + torch.sin(w[1] * t), y[1] ** 2 - y[0] - 2])
        return torch.stack([-20 * y[0] * y[1] * w[0] + torch.sin(w[1] * t), y[0] - y[1] ** 2 * t])

    def loss(y0, w, t):
        if mass == "singular":
            y0 = torch.stack([y0[0], torch.sqrt(2 + y0[0])])  # consistent
        algorithm = method(steps=3, linsolve=linsolve)
        sol = pynode.solve(f, y0, t, args=(w,), algorithm=algorithm, mass_matrix=matrix, saveat=None)
        return (sol.ys[-1] * tensor(1.0, 2.0)).sum() + sol.ys[1].square().sum()

    values = [tensor(1.0, 0.5), tensor(0.8, 3.0), tensor(0.1, 0.5, 1.0)]
    leaves = [x.clone().requires_grad_() for x in values]
    found = torch.autograd.grad(loss(*leaves), leaves)
    with torch.no_grad():
        for i, gradient in enumerate(found):
            expected = central(lambda x, i=i: loss(*values[:i], x, *values[i + 1 :]), values[i])
            torch.testing.assert_close(gradient, expected, rtol=2e-8, atol=2e-8)


@every_method
@pytest.mark.parametrize("checkpoints", [None, 3])
def test_adaptive_gradients_are_those_of_the_tape(method, checkpoints):
    w = tensor(0.04, 1e4, 3e7).requires_grad_()
    y0 = tensor(1.0, 0.0, 0.0).requires_grad_()

    def f(t, y, w):
        slow, fast = -w[0] * y[0] + w[1] * y[1] * y[2], w[2] * y[1] ** 2
        return torch.stack([slow, -slow - fast, fast])

    gradients = []
    for sensealg in (DirectAdjoint(), CheckpointedAdjoint(checkpoints)):
        sol = pynode.solve(
            f, y0, [0.0, 0.3, 40.0], args=(w,), algorithm=method(), rtol=1e-3, atol=1e-7, sensealg=sensealg
        )
        assert sol.stats.forward.accepted > 5
        gradients.append(torch.autograd.grad((sol.ys[:, 0] - sol.ys[:, 2]).square().sum(), [y0, w]))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=0)


def test_gradients_of_robertson_as_a_differential_algebraic_problem():
    """Against those of the ordinary differential equation it stands for, both at tight tolerances."""
    w = tensor(0.04, 1e4, 3e7).requires_grad_()

    def rates(y, w):
        slow, fast = -w[0] * y[0] + w[1] * y[1] * y[2], w[2] * y[1] ** 2
        return torch.stack([slow, -slow - fast, fast])

    def constrained(t, y, w):
        return torch.cat([rates(y, w)[:2], y.sum().sub(1.0)[None]])

    found = []
    for f, mass in ((constrained, INDEX_1), (lambda t, y, w: rates(y, w), None)):
        options = {"rtol": 1e-6, "atol": 1e-10, "mass_matrix": mass}
        sol = pynode.solve(f, tensor(1.0, 0.0, 0.0), [0.0, 40.0], args=(w,), algorithm=Rodas5P(), **options)
        found.append(torch.autograd.grad(sol.ys[-1, 2], w)[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("method", "sensealg"),
    [(Rosenbrock23, GaussAdjoint), (Rodas4, QuadratureAdjoint), (Rodas5P, GaussAdjoint)],
    ids=["Rosenbrock23", "Rodas4", "Rodas5P"],
)
def test_continuous_adjoints_go_back_by_the_method_itself(method, sensealg):
    """df/dt of the adjoint equation is a difference: without it the way back would be of order 1."""
    w = tensor(3.0, 50.0).requires_grad_()
    y0 = tensor(1.0, 0.5).requires_grad_()

    def f(t, y, w):
        return torch.stack([-w[0] * y[0] * y[1], w[1] * (torch.cos(t) * y[0] - y[1])])

    def gradient(chosen, algorithm, tolerance):
        sol = pynode.solve(
            f, y0, [0.0, 1.0], args=(w,), algorithm=algorithm, rtol=tolerance, atol=tolerance, sensealg=chosen
        )
        return torch.autograd.grad(sol.ys[-1].square().sum(), [y0, w])

    tolerance = 1e-3 if method is Rosenbrock23 else 1e-5
    expected = gradient(CheckpointedAdjoint(), Rodas5P(), 1e-7)
    found = gradient(sensealg(), method(), tolerance)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=100 * tolerance)


@pytest.mark.parametrize("sensealg", [BacksolveAdjoint, InterpolatingAdjoint, ForwardSensitivity])
def test_what_would_need_second_derivatives_is_refused(sensealg):
    y0 = tensor(1.0).requires_grad_()
    with pytest.raises(UnsupportedError, match="Rodas5P"):
        pynode.solve(lambda t, y: -y, y0, [0.0, 1.0], algorithm=Rodas5P(), sensealg=sensealg())


@pytest.mark.parametrize("sensealg", [CheckpointedAdjoint, DirectAdjoint])
@pytest.mark.parametrize("linsolve", ["dense", "gmres"])
def test_second_derivatives_raise(sensealg, linsolve):
    """They would be wrong: the inverse in the implicit function theorem is a constant on the tape."""
    y0 = tensor(1.0).requires_grad_()
    sol = pynode.solve(lambda t, y: -(y**2), y0, [0.0, 1.0], algorithm=Rodas5P(linsolve=linsolve), sensealg=sensealg())
    (first,) = torch.autograd.grad(sol.ys[-1].sum(), y0, create_graph=True)
    with pytest.raises(GradientError, match="again"):  # also where another part of the sum has one
        torch.autograd.grad((first**2 + y0**2).sum(), y0)


def test_transforms_are_refused():
    def end(x):
        return pynode.solve(lambda t, y: -y, x, [0.0, 1.0], algorithm=Rodas5P()).ys[-1]

    for transform in (torch.func.jacrev, torch.func.jacfwd, torch.func.vmap):
        with pytest.raises(UnsupportedError, match="transform"):
            transform(end)(torch.ones(2, 1, dtype=F64))


class _Lossy(torch.autograd.Function):
    """x^3 with a pullback off the tape."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient.detach() * 3 * x.detach() ** 2


def test_a_pullback_that_loses_its_graph_is_noticed():
    y0 = tensor(1.0, 2.0).requires_grad_()
    for f in (lambda t, y: -_Lossy.apply(y), lambda t, y: -y - _Lossy.apply(y)):
        sol = pynode.solve(f, y0, [0.0, 1.0], algorithm=Rodas5P())
        with pytest.raises(GradientError, match="differentiate twice"):
            sol.ys[-1].sum().backward()


def test_a_field_of_nothing_and_one_of_time_alone():
    y0 = tensor(1.0, 2.0).requires_grad_()
    sol = pynode.solve(lambda t, y: torch.ones(2, dtype=F64), y0, [0.0, 1.0], algorithm=Rodas4())
    sol.ys[-1].sum().backward()
    torch.testing.assert_close(y0.grad, torch.ones(2, dtype=F64))
    t = tensor(0.0, 1.0).requires_grad_()
    sol = pynode.solve(lambda t, y: torch.cos(t).expand(2), y0, t, algorithm=Rodas5P(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sol.ys[-1], y0 + math.sin(1.0), rtol=0, atol=1e-7)
    (gradient,) = torch.autograd.grad(sol.ys[-1, 0], t)
    torch.testing.assert_close(gradient, tensor(-1.0, math.cos(1.0)), rtol=0, atol=1e-7)
