"""ETDRK4: the functions of a matrix, order, stiff linear parts, gradients of both parts, what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck

import pynode
from pynode import CheckpointedAdjoint, DirectAdjoint, GaussAdjoint
from pynode.native.exponential import phi_functions

F64 = torch.float64


class Split(torch.nn.Module):
    """A rotating, decaying linear part and a nonlinear one that depends on time."""

    def __init__(self, stiff: float = 1.0) -> None:
        super().__init__()
        self.linear = torch.nn.Parameter(torch.tensor([[-0.5, 1.0], [-2.0, -stiff]], dtype=F64))
        self.a = torch.nn.Parameter(torch.tensor(0.7, dtype=F64))

    def nonlinear(self, t, y):
        return torch.stack([torch.sin(y[1]) * self.a, torch.cos(3.0 * t) - y[0] ** 2])

    def forward(self, t, y):
        return self.linear @ y + self.nonlinear(t, y)


def test_functions_of_a_matrix():
    """Of a diagonal matrix by their series or their definition."""
    x = torch.tensor([0.0, -1e-6, -0.5, -40.0], dtype=F64)
    found = phi_functions(torch.diag(x), 3)
    for k, phi in enumerate(found):
        series = sum(x.clamp(min=-1.0) ** j / float(math.factorial(j + k)) for j in range(25))
        direct = torch.exp(x)
        for j in range(k):
            direct = (direct - 1.0 / math.factorial(j)) / x
        exact = torch.where(x > -1.0, series, direct)
        torch.testing.assert_close(phi.diagonal(), exact, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@torch.no_grad()
def test_order(sign):
    f, y0, t = Split(), torch.tensor([0.4, -0.2], dtype=F64), [0.0, 2.0 * sign]
    exact = pynode.solve(f, y0, t, algorithm="vern9", rtol=1e-13, atol=1e-13).ys[-1]
    errors = [(pynode.solve(f, y0, t, algorithm=pynode.ETDRK4(steps=n)).ys[-1] - exact).abs().max() for n in (40, 80)]
    assert abs(math.log2(errors[0] / errors[1]) - 4.0) < 0.3


@torch.no_grad()
def test_a_linear_field_is_solved_exactly_in_one_step_however_stiff():
    class Linear(Split):
        def nonlinear(self, t, y):
            return 0.0 * y

    y0 = torch.tensor([0.4, -0.2], dtype=F64)
    f = Linear(1e5)
    found = pynode.solve(f, y0, [0.0, 1.0], algorithm=pynode.ETDRK4()).ys[-1]
    torch.testing.assert_close(found, torch.linalg.matrix_exp(f.linear) @ y0, rtol=1e-9, atol=0)


@torch.no_grad()
def test_a_stiff_linear_part_costs_no_steps():
    """Eigenvalues of -1e4 in steps of h = 0.02, where RK4 is unstable: the error of the nonlinear part, whose order
    falls to two there, is below h^2."""
    f, y0 = Split(1e4), torch.tensor([0.4, -0.2], dtype=F64)
    found = pynode.solve(f, y0, [0.0, 2.0], algorithm=pynode.ETDRK4(dt=0.02)).ys[-1]
    exact = pynode.solve(f, y0, [0.0, 2.0], algorithm=pynode.RadauIIA5(), rtol=1e-9, atol=1e-12).ys[-1]
    torch.testing.assert_close(found, exact, rtol=0, atol=4e-4)
    with pytest.raises(pynode.SolveError):
        pynode.solve(f, y0, [0.0, 2.0], algorithm=pynode.RK4(dt=0.02))


@pytest.mark.parametrize("sensealg", [DirectAdjoint(), CheckpointedAdjoint(), CheckpointedAdjoint(checkpoints=2)])
def test_gradients_of_both_parts_state_and_times(sensealg):
    f = Split()

    def solution(y0, t, linear, a):
        state = {"linear": linear, "a": a}

        def field(t, y, linear, a):
            return linear @ y + field.nonlinear(t, y, linear, a)

        field.linear = lambda linear, a: linear
        field.nonlinear = lambda t, y, linear, a: torch.stack([torch.sin(y[1]) * a, torch.cos(3.0 * t) - y[0] ** 2])
        call = {"args": tuple(state.values()), "algorithm": pynode.ETDRK4(steps=3), "sensealg": sensealg}
        return pynode.solve(field, y0, t, **call).ys[1:]

    inputs = [
        torch.tensor([0.4, -0.2], dtype=F64).requires_grad_(),
        torch.tensor([0.0, 0.4, 1.0], dtype=F64).requires_grad_(),
        f.linear.detach().clone().requires_grad_(),
        f.a.detach().clone().requires_grad_(),
    ]
    assert gradcheck(solution, inputs, eps=1e-6, atol=1e-8, rtol=1e-6)


def test_parameters_of_a_module_are_found():
    gradients = []
    for algorithm in (pynode.ETDRK4(steps=60), pynode.Vern9()):
        f = Split()
        y0 = torch.tensor([0.4, -0.2], dtype=F64)
        pynode.solve(f, y0, [0.0, 1.0], algorithm=algorithm, rtol=1e-12, atol=1e-12).ys[-1].sum().backward()
        gradients.append((f.linear.grad, f.a.grad))
    for found, exact in zip(*gradients, strict=True):
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-6)


def test_what_is_refused():
    y0, call = torch.tensor([0.4, -0.2], dtype=F64), {"algorithm": pynode.ETDRK4(steps=2)}
    with pytest.raises(pynode.InputError, match="linear and nonlinear"):
        pynode.solve(lambda t, y: -y, y0, [0.0, 1.0], **call)
    wrong = Split()
    wrong.forward = lambda t, y: wrong.nonlinear(t, y)
    with pytest.raises(pynode.FieldError, match="add up"):
        pynode.solve(wrong, y0, [0.0, 1.0], **call)
    with pytest.raises(pynode.InputError, match="shape"):
        wrong = Split()
        wrong.linear = torch.nn.Parameter(torch.eye(3, dtype=F64))
        wrong.forward = lambda t, y: wrong.nonlinear(t, y)
        pynode.solve(wrong, y0, [0.0, 1.0], **call)
    for sensealg in (pynode.ForwardSensitivity(), pynode.BacksolveAdjoint(), GaussAdjoint()):
        with pytest.raises(pynode.UnsupportedError, match="linear part"):
            pynode.solve(Split(), y0, [0.0, 1.0], sensealg=sensealg, **call)
    with pytest.raises(pynode.UnsupportedError, match="running cost"):
        pynode.solve(Split(), y0, [0.0, 1.0], running_cost=lambda t, y: y.sum(), **call)
