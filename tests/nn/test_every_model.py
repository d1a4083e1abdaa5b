"""What every model has to do: equal gradients whatever the sensitivity algorithm, exact ones by finite differences, a
state_dict that restores it, capture for Julia without calling back."""

from __future__ import annotations

import copy
import io
import pickle
import threading

import pytest
import torch
from nn_models import MODELS, inputs_of, made
from torch import Tensor

import pynode
from pynode import julia

each_model = pytest.mark.parametrize("name", MODELS)

TOLERANCE = 1e-8
#: Some 20 steps forward and as many backward, each with a local error below the tolerance, which the mild fields of the
#: zoo amplify by 2 at most over their span; relative to the largest gradient.
BOUND = 100 * TOLERANCE


def _gradients(name: str, sensealg: pynode.sensealg.SensitivityAlgorithm, tolerance: float) -> dict[str, Tensor]:
    model, x = made(name, sensealg=sensealg, rtol=tolerance, atol=tolerance)
    inputs = inputs_of(model, x)
    out = model(x)
    weights = torch.cos(torch.arange(1.0, out.numel() + 1.0, dtype=out.dtype)).reshape(out.shape)
    loss = (weights * out + 0.5 * out**2).sum()
    return dict(zip(inputs, torch.autograd.grad(loss, list(inputs.values())), strict=True))


@each_model
def test_sensitivity_algorithms_agree(name: str) -> None:
    reference = _gradients(name, pynode.DirectAdjoint(), TOLERANCE)
    largest = max(g.abs().max().item() for g in reference.values())
    assert all(g.abs().max() > 0 for g in reference.values())
    bounds = {
        pynode.CheckpointedAdjoint(): 1e-13,  # the same derivative of the same steps, summed in another order
        pynode.BacksolveAdjoint(): BOUND,
        pynode.InterpolatingAdjoint(): BOUND,
        pynode.GaussAdjoint(): BOUND,
    }
    for sensealg, bound in bounds.items():
        found = _gradients(name, sensealg, TOLERANCE)
        for key, gradient in found.items():
            distance = (gradient - reference[key]).abs().max().item()
            assert distance < bound * largest, f"{sensealg.name}: {key} is off by {distance:.1e} of {largest:.1e}"


@each_model
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    """In one direction through all parameters and the input. Central differences of fourth order: eps**4 = 1e-12 times
    a fifth derivative, and the 2e-11 of a solve at 1e-12 over eps, 2e-8."""
    model, x = made(name, rtol=1e-12, atol=1e-12, algorithm=pynode.Vern9())
    inputs = inputs_of(model, x)
    generator = torch.Generator().manual_seed(1)
    directions = [torch.randn(v.shape, generator=generator, dtype=v.dtype) for v in inputs.values()]
    gradients = torch.autograd.grad(model(x).pow(2).sum(), list(inputs.values()))
    slope = sum((g * d).sum().item() for g, d in zip(gradients, directions, strict=True))
    eps, differences = 1e-3, 0.0
    with torch.no_grad():
        for step, weight in ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12)):
            for value, direction in zip(inputs.values(), directions, strict=True):
                value += step * eps * direction
            differences += weight / eps * model(x).pow(2).sum().item()
            for value, direction in zip(inputs.values(), directions, strict=True):
                value -= step * eps * direction
    size = sum((g * d).abs().sum().item() for g, d in zip(gradients, directions, strict=True))
    assert abs(slope - differences) < 1e-7 * size


#: The others are captured by the slow tests: a second each, and all are run in tests/julia/test_emitted_models.py.
CAPTURED = (
    "tree",
    "stacked",
    "Galerkin of images",
    "conditional hypernetwork",
    "adaptive depth, controlled, second order",
)


@pytest.mark.parametrize(
    "name", [name if name in CAPTURED else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_it_is_captured_for_julia(name: str) -> None:
    model, x = made(name)
    y0 = x if model.input is None else model.input(x)
    text = julia.source(model.f, 0.25, y0, tuple(model.conditions(x)))
    assert "vjp_p!" in text


@each_model
def test_state_dict_copies_and_pickles(name: str) -> None:
    model, x = made(name)
    other, _ = made(name)
    with torch.no_grad():
        expected = model(x)
        for parameter in other.parameters():
            parameter.add_(0.1)
        assert not torch.equal(other(x), expected)
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True))
        twins = [other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        for twin in twins:
            assert torch.equal(twin(x), expected)
    names = [key for key, _ in model.named_parameters()]
    assert len({id(p) for p in model.parameters()}) == len(names)


@each_model
def test_both_precisions(name: str) -> None:
    """float32 within its rounding (1e-7) of float64, some 30 evaluations apart, beside the tolerance 1e-5."""
    model, x = made(name)
    single, x32 = made(name, torch.float32)
    expected, found = model(x).detach(), single(x32)
    assert found.dtype == torch.float32
    assert (found.double() - expected).abs().max().item() < 1e-4 * expected.abs().max().item()


@each_model
def test_trajectories_run_from_the_input_to_the_value(name: str) -> None:
    model, x = made(name, algorithm=pynode.RK4(steps=4))
    with torch.no_grad():
        end = model(x)
        ts = torch.linspace(0, 0.8 if name == "learned end" else 1.0, 5, dtype=torch.float64)
        path = model.trajectory(x, ts)
        y0 = x if model.input is None else model.input(x)
        start = y0 if model.output is None else model.output(y0)
    assert path.shape == (5, *end.shape)
    # The same steps, up to the rounding of the times: 0.8 in float32 for the learned end.
    torch.testing.assert_close(path[-1], end, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(path[0], start, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["hypernetwork", "conditional hypernetwork", "stacked"])
def test_parameters_put_into_a_module_are_of_one_thread(name: str) -> None:
    model, x = made(name)
    inputs = [(x.detach() * (k + 1)) for k in range(4)]
    expected = [torch.autograd.grad(model(y).sum(), list(model.parameters()))[0] for y in inputs]
    found: list[Tensor | None] = [None] * 4

    def work(k: int) -> None:
        found[k] = torch.autograd.grad(model(inputs[k]).sum(), list(model.parameters()))[0]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
