"""torch.autocast around a solve: f runs under it in both passes, the solver's own arithmetic never."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

import pynode
from pynode import (
    BacksolveAdjoint,
    CheckpointedAdjoint,
    DirectAdjoint,
    ForwardSensitivity,
    GaussAdjoint,
    InterpolatingAdjoint,
    QuadratureAdjoint,
    ReversibleAdjoint,
)
from pynode.algorithms import algorithm_from_name
from pynode.native.backend import BACKEND

BF16 = torch.bfloat16
#: Unit roundoff of bfloat16: 8 bits.
U = 2.0**-8

SENSEALGS = [
    CheckpointedAdjoint(),
    CheckpointedAdjoint(checkpoints=3),
    DirectAdjoint(),
    BacksolveAdjoint(),
    InterpolatingAdjoint(),
    InterpolatingAdjoint(checkpointing=True),
    QuadratureAdjoint(),
    GaussAdjoint(),
    ForwardSensitivity(),
    ReversibleAdjoint(),
]
every_sensealg = pytest.mark.parametrize("sensealg", SENSEALGS, ids=repr)
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
    ),
]
every_device = pytest.mark.parametrize("device", DEVICES)


def method(name: str, steps: int = 12) -> pynode.Algorithm:
    algorithm = algorithm_from_name(name)
    return algorithm if algorithm.adaptive else dataclasses.replace(algorithm, steps=steps)


def fixed(sensealg: pynode.SensitivityAlgorithm) -> pynode.Algorithm:
    return method("reversibleheun" if isinstance(sensealg, ReversibleAdjoint) else "rk4")


class Linear(torch.nn.Module):
    """``y W^T``: what it computes is remembered by dtype, and whether that was in a backward pass."""

    def __init__(self, device: str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(4, 4, generator=generator)
        self.weight = torch.nn.Parameter((weight / torch.linalg.matrix_norm(weight, 2)).to(device))
        self.seen: list[tuple[str, torch.dtype]] = []
        self.phase = "forward"

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        assert y.dtype == torch.float32
        assert t.dtype == torch.float32
        product = torch.nn.functional.linear(y, self.weight)
        self.seen.append((self.phase, product.dtype))
        return product


def start(device: str) -> Tensor:
    return torch.randn(2, 4, generator=torch.Generator().manual_seed(1)).to(device).requires_grad_()


# ------------------------------------------------------------------------------------------- the solver's arithmetic


@every_device
@pytest.mark.parametrize(
    "name",
    ["Tsit5", "KenCarp4"]
    + [
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("Vern7", "DP8", "BS3", "RK4", "VCABM", "ABM43", "ROCK4", "ReversibleHeun", "Rodas5P", "RadauIIA5")
        + ("FBDF", "ImplicitMidpoint")
    ],
)
def test_a_field_without_products_is_solved_as_without_autocast(name: str, device: str) -> None:
    """States, dense output and gradients equal to the last bit: autocast's list (matrix products) must not reach the
    sums of stages, norms, interpolants, linear solves and adjoints of the solver."""
    w = torch.linspace(0.2, 0.9, 4, device=device).requires_grad_()
    algorithm = method(name)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.sin(y * w) - 0.5 * y * torch.cos(t)

    def solved(sensealg: pynode.SensitivityAlgorithm, enabled: bool) -> list[Tensor]:
        y0 = start(device)
        keeps = not isinstance(sensealg, BacksolveAdjoint | ReversibleAdjoint)
        with torch.autocast(device, dtype=BF16, enabled=enabled):
            sol = pynode.solve(f, y0, [0.0, 0.4, 1.0], algorithm=algorithm, sensealg=sensealg, rtol=1e-3, atol=1e-4)
            loss = sol.ys.pow(2).sum() + (sol(0.3).sum() if keeps else 0.0)
        return [sol.ys.detach(), *torch.autograd.grad(loss, [y0, w])]

    tried = 0
    for sensealg in SENSEALGS:
        if BACKEND.supports(algorithm, sensealg) is None:
            tried += 1
            for without, under in zip(solved(sensealg, False), solved(sensealg, True), strict=True):
                assert torch.equal(without, under), sensealg
    assert tried >= 2


@pytest.mark.parametrize("sensealg", [CheckpointedAdjoint(), DirectAdjoint()], ids=repr)
def test_rows_without_products_are_solved_as_without_autocast(sensealg) -> None:
    def solved(enabled: bool) -> list[Tensor]:
        y0 = start("cpu")
        with torch.autocast("cpu", dtype=BF16, enabled=enabled):
            sol = pynode.solve(
                lambda t, y: torch.sin(3 * y) * t, y0, [0.0, 0.3, 1.0], sensealg=sensealg, batching="independent"
            )
        return [sol.ys.detach(), *torch.autograd.grad(sol.ys.pow(2).sum(), y0)]

    for without, under in zip(solved(False), solved(True), strict=True):
        assert torch.equal(without, under)


# ------------------------------------------------------------------------------------------------------- f's arithmetic


@every_device
@every_sensealg
@pytest.mark.parametrize("inside", [False, True], ids=["backward outside", "backward inside"])
def test_f_runs_under_the_autocast_of_the_solve_in_both_passes(sensealg, inside: bool, device: str) -> None:
    """Solved under autocast and differentiated outside of it, and the other way round."""
    f, y0 = Linear(device), start(device)
    with torch.autocast(device, dtype=BF16, enabled=not inside):
        sol = pynode.solve(f, y0, [0.0, 1.0], algorithm=fixed(sensealg), sensealg=sensealg)
    assert sol.ys.dtype == torch.float32
    f.phase = "backward"
    with torch.autocast(device, dtype=BF16, enabled=inside):
        sol.ys[-1].sum().backward()
    expected = torch.float32 if inside else BF16
    assert {dtype for _, dtype in f.seen} == {expected}
    # The tape and the columns of forward sensitivities evaluate f once; every other one has to do so again.
    again = not isinstance(sensealg, DirectAdjoint | ForwardSensitivity)
    assert ("backward" in {phase for phase, _ in f.seen}) == again
    assert y0.grad is not None
    assert y0.grad.dtype == f.weight.grad.dtype == torch.float32


def _bounds(f: Linear, y0: Tensor, span: float) -> tuple[float, float, float]:
    """Bounds of the errors of y, of its adjoint and of the gradient of ``W`` that bfloat16 products cause.

    A product of bfloat16 roundings, summed over 4 terms and rounded, is off by at most ``g |W| |y|`` with
    ``g = (1 + u)^7 - 1`` (Higham 2002, lemma 3.1: two roundings in, one product, three sums, one out). A disturbance d
    of the rate grows to at most ``d (e^LT - 1) / L`` by Gronwall's lemma, in the Runge-Kutta steps of RK4 as well,
    whose weights are positive; the adjoint obeys the same equation with ``W^T``. All norms are Frobenius's, L = |W|_2.
    """
    weight = f.weight.detach()
    lipschitz = torch.linalg.matrix_norm(weight, 2).item()
    g = ((1.0 + U) ** 7 - 1.0) * torch.linalg.matrix_norm(weight.abs(), 2).item()
    grown = math.exp((lipschitz + g) * span)
    largest = grown * torch.linalg.norm(y0).item()
    off = g * largest * (grown - 1.0) / lipschitz
    cotangent = grown * math.sqrt(y0.numel())  # of the sum of all elements
    cotangent_off = g * cotangent * (grown - 1.0) / lipschitz
    return (
        off,
        cotangent_off,
        span * (cotangent_off * (largest + off) + cotangent * off + g * cotangent * (largest + off)),
    )


@every_device
@every_sensealg
def test_errors_are_those_of_bfloat16_products(sensealg, device: str) -> None:
    f = Linear(device)

    def solved(enabled: bool) -> list[Tensor]:
        y0 = start(device)
        with torch.autocast(device, dtype=BF16, enabled=enabled):
            sol = pynode.solve(f, y0, [0.0, 1.0], algorithm=fixed(sensealg), sensealg=sensealg)
        return [sol.ys[-1].detach(), *torch.autograd.grad(sol.ys[-1].sum(), [y0, f.weight])]

    bounds = _bounds(f, start(device).detach(), 1.0)
    for exact, rounded, bound in zip(solved(False), solved(True), bounds, strict=True):
        error = torch.linalg.norm(exact - rounded).item()
        assert 1e-3 * U < error <= bound  # not float32's, nor more than bfloat16's


def test_values_of_the_autocast_dtype_are_cast_up_in_trees_costs_and_rows() -> None:
    f = Linear("cpu")
    y0 = start("cpu").detach()
    with torch.autocast("cpu", dtype=BF16):
        tree = pynode.solve(
            lambda t, y: {"a": f(t, y["a"]), "b": (-y["b"][0],)}, {"a": y0, "b": (torch.ones(3),)}, [0.0, 1.0]
        )
        cost = pynode.solve(f, y0, [0.0, 1.0], running_cost=lambda t, y: f(t, y).sum(), rtol=1e-2, atol=1e-2)
        rows = pynode.solve(f, y0, [0.0, 1.0], batching="independent", rtol=1e-2, atol=1e-2)
    assert {x.dtype for x in (tree.ys["a"], tree.ys["b"][0], cost.ys, cost.running_cost, rows.ys)} == {torch.float32}
    assert {dtype for _, dtype in f.seen} == {BF16}


def test_autocast_within_f_alone_is_the_users_to_cast() -> None:
    f = Linear("cpu")

    def under(t: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=BF16):
            return f(t, y)

    y0 = start("cpu")
    with pytest.raises(pynode.FieldError, match=r"returned dtype torch\.bfloat16.*torch\.float32"):
        pynode.solve(under, y0, [0.0, 1.0])
    pynode.solve(lambda t, y: under(t, y).float(), y0, [0.0, 1.0], algorithm=method("rk4")).ys.sum().backward()
    assert {dtype for _, dtype in f.seen} == {BF16}


def test_other_precisions_are_refused_under_autocast() -> None:
    y0 = start("cpu").detach()
    with torch.autocast("cpu", dtype=BF16):
        with pytest.raises(pynode.FieldError, match=r"returned dtype torch\.float16"):
            pynode.solve(lambda t, y: y.half(), y0, [0.0, 1.0])
        with pytest.raises(pynode.FieldError, match=r"returned dtype torch\.bfloat16.*torch\.float64"):
            pynode.solve(lambda t, y: y.bfloat16(), y0.double(), [0.0, 1.0])
        for dtype in (BF16, torch.float16):
            with pytest.raises(pynode.InputError, match=r"use y0\.float\(\).*even under autocast"):
                pynode.solve(lambda t, y: -y, y0.to(dtype), [0.0, 1.0])


def test_overflow_under_float16_is_for_the_grad_scaler_to_see() -> None:
    """A loss scale that was too large gives infinities, on which torch.amp.GradScaler skips its step."""
    f, y0 = Linear("cpu"), start("cpu")
    with torch.autocast("cpu", dtype=torch.float16):
        ys = pynode.solve(f, y0, [0.0, 1.0], algorithm=method("rk4")).ys
    (1e9 * ys[-1].sum()).backward()
    assert not f.weight.grad.isfinite().all()
    with torch.autocast("cpu", dtype=BF16):
        ys = pynode.solve(f, y0, [0.0, 1.0], algorithm=method("rk4")).ys
    with pytest.raises(pynode.GradientError, match=r"not finite|infinit|NaN"):
        (math.inf * ys[-1].sum()).backward()


def test_compiled_steps_under_autocast_say_where_to_put_it() -> None:
    with (
        torch.autocast("cpu", dtype=BF16),
        pytest.raises(pynode.UnsupportedError, match=r"compile='step' under torch\.autocast.*inside f"),
    ):
        pynode.solve(Linear("cpu"), start("cpu"), [0.0, 1.0], compile="step")
