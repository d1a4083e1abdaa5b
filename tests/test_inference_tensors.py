"""Models built under torch.inference_mode(), solved in it and outside of it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import pynode
from pynode.algorithms import algorithm_from_name


def built() -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()
    return net, torch.randn(2, 3, dtype=torch.float64)


def method(name: str) -> pynode.Algorithm:
    algorithm = algorithm_from_name(name)
    return algorithm if algorithm.adaptive else dataclasses.replace(algorithm, steps=8)


EXPLICIT = ["Tsit5", "Vern7", "DP8", "RK4", "VCABM", "ROCK4", "ABM43"]


@pytest.mark.parametrize("name", EXPLICIT)
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_states_and_dense_output_are_those_of_an_ordinary_model(name: str, mode) -> None:
    """The parameters, the state and what is kept of the solve are inference tensors; asked for again outside."""
    net, y0 = built()
    with torch.no_grad():
        expected = pynode.solve(lambda t, y: net(y), y0, [0.0, 0.5, 1.0], algorithm=method(name))
    with torch.inference_mode():
        net, y0 = built()
    assert next(net.parameters()).is_inference()
    with mode():
        sol = pynode.solve(lambda t, y: net(y), y0, [0.0, 0.5, 1.0], algorithm=method(name))
        inside = sol(0.3), sol.derivative(0.3)
    assert torch.equal(sol.ys, expected.ys)
    assert not sol.ys.requires_grad
    assert torch.equal(inside[0], expected(0.3))
    assert torch.equal(inside[1], expected.derivative(0.3))
    with torch.no_grad():
        assert torch.equal(sol(0.3), expected(0.3))


@pytest.mark.parametrize("options", [{"batching": "independent"}, {"events": pynode.Event(lambda t, y: y.sum() - 0.5)}])
def test_rows_and_events(options: dict) -> None:
    net, y0 = built()
    with torch.no_grad():
        expected = pynode.solve(lambda t, y: net(y), y0, [0.0, 1.0], **options).ys
    if "events" in options:
        options = {"events": pynode.Event(lambda t, y: y.sum() - 0.5)}
    with torch.inference_mode():
        net, y0 = built()
        assert torch.equal(pynode.solve(lambda t, y: net(y), y0, [0.0, 1.0], **options).ys, expected)


def test_what_cannot_be_differentiated_says_so() -> None:
    with torch.inference_mode():
        net, y0 = built()
        with pytest.raises(pynode.UnsupportedError, match=r"inference_mode\(\), through which a Jacobian"):
            pynode.solve(lambda t, y: net(y), y0, [0.0, 1.0], algorithm="RadauIIA5")
    with pytest.raises(pynode.UnsupportedError, match=r"inference_mode\(\), through which gradients"):
        pynode.solve(lambda t, y: net(y), y0, [0.0, 1.0])


def test_an_implicit_method_takes_a_jacobian_of_the_users() -> None:
    net, _ = built()
    with torch.inference_mode():
        matrix = net[0].weight[:3, :3].clone()
        y0 = torch.ones(3, dtype=torch.float64)
        sol = pynode.solve(
            lambda t, y: matrix @ y,
            y0,
            [0.0, 1.0],
            algorithm="RadauIIA5",
            rtol=1e-8,
            atol=1e-10,
            jac=lambda t, y: matrix,
        )
        torch.testing.assert_close(sol.ys[-1], torch.linalg.matrix_exp(matrix) @ y0, rtol=1e-6, atol=1e-8)
