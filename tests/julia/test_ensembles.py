"""Ensembles in DiffEqGPU's kernels on this machine's processor, against pynode.solve and known solutions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pynode
from pynode.errors import GradientError, InputError, SolveError, UnsupportedError
from pynode.julia import solve_ensemble
from pynode.julia.ensemble import ALGORITHMS

TIMES = (0.0, 0.5, 1.25, 2.0)


def y0s(rows: int, dtype: torch.dtype = torch.float64, n: int = 2) -> Tensor:
    return torch.randn(rows, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def network(dtype: torch.dtype = torch.float64) -> Callable[[Tensor, Tensor], Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)
    return lambda t, y: net(y) + torch.sin(t)


def run(*args: Any, **options: Any) -> Tensor:
    """Without a gradient; skipped where the packages are not there."""
    try:
        with torch.no_grad():
            return solve_ensemble(*args, **options)
    except UnsupportedError as error:
        if any(x in str(error) for x in ("could not be loaded", "juliacall")):
            pytest.skip(str(error).split(". Expected")[0])
        raise


# Refusals need no Julia


def test_a_gradient_is_refused() -> None:
    f = network()
    with pytest.raises(GradientError, match=r"pynode\.solve"):
        solve_ensemble(f, y0s(3), TIMES)
    with pytest.raises(GradientError, match="y0s requires a gradient"):
        solve_ensemble(lambda t, y: -y, y0s(3).requires_grad_(), TIMES)
    rates = torch.ones(3, 1, dtype=torch.float64, requires_grad=True)
    with pytest.raises(GradientError, match=r"parameters\[0\]"):
        solve_ensemble(lambda t, y, k: -k * y, y0s(3), TIMES, parameters=[rates])
    with pytest.raises(GradientError, match=r"args\[0\]"):
        solve_ensemble(lambda t, y, k: -k * y, y0s(3), TIMES, args=(rates[0],))
    with pytest.raises(GradientError):
        torch.func.vmap(lambda y: solve_ensemble(lambda t, x: -x, y, TIMES))(y0s(6).reshape(2, 3, 2))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"algorithm": "Tsit5"}, "GPUTsit5"),
        ({"rtol": 0.0}, "rtol"),
        ({"dt": -1.0}, "dt"),
        ({"t": [1.0]}, "at least a start"),
        ({"t": [0.0, 1.0, 1.0]}, "strictly"),
        ({"y0s": torch.ones(3, 2, dtype=torch.int64)}, "float32 or float64"),
        ({"y0s": torch.ones(0, 2)}, "B > 0"),
        ({"parameters": [torch.ones(2, 1, dtype=torch.float64)]}, "3 rows"),
        ({"parameters": [torch.ones(3, 1)]}, "torch.float64"),
        ({"device": "meta"}, "'cuda'"),
    ],
)
def test_what_cannot_be_used_is_named(change: dict[str, Any], word: str) -> None:
    given: dict[str, Any] = {"y0s": y0s(3), "t": TIMES, **change}
    with torch.no_grad(), pytest.raises(InputError, match=word):
        solve_ensemble(lambda t, y, *k: -y, given.pop("y0s"), given.pop("t"), **given)


def test_times_that_float32_cannot_tell_apart_are_refused() -> None:
    with torch.no_grad(), pytest.raises(InputError, match="rounded to"):
        solve_ensemble(lambda t, y: -y, y0s(3, torch.float32), [1.0, 1.0 + 1e-9])


# Solutions


@pytest.mark.julia
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_method_solves_a_linear_system(algorithm: str) -> None:
    states = y0s(5)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], -y[0]]) * 2.0

    tolerance = 1e-4 if algorithm == "GPURosenbrock23" else 1e-7
    found = run(f, states, TIMES, algorithm=algorithm, rtol=tolerance, atol=tolerance)
    assert found.shape == (5, len(TIMES), 2)
    angle = 2 * torch.tensor(TIMES, dtype=torch.float64)[None, :]
    a, b = states[:, :1], states[:, 1:]
    exact = torch.stack([a * angle.cos() + b * angle.sin(), b * angle.cos() - a * angle.sin()], -1)
    # The system neither damps nor amplifies errors: they add up over some hundred steps at most.
    assert (found - exact).abs().max() <= 100 * tolerance * states.abs().max()
    assert (found - exact).abs().max() > 0


@pytest.mark.julia
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_agrees_with_the_native_solver(dtype: torch.dtype) -> None:
    f, states = network(dtype), y0s(7, dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-9
    found = run(f, states, TIMES, rtol=tolerance, atol=tolerance)
    wide = network(torch.float64)
    with torch.no_grad():
        exact = pynode.solve(wide, states.double(), TIMES, rtol=1e-12, atol=1e-12).ys.transpose(0, 1)
    assert found.dtype == dtype
    assert (found.double() - exact).abs().max() <= 100 * tolerance * exact.abs().max()


@pytest.mark.julia
def test_backwards_in_time_with_arguments_shared_and_of_each_row() -> None:
    states, rates = y0s(4), torch.tensor([[0.5], [1.0], [0.0], [2.0]], dtype=torch.float64)
    offsets = torch.arange(8, dtype=torch.float64).reshape(4, 2)

    def f(t: Tensor, y: Tensor, scale: float, rate: Tensor, offset: Tensor) -> Tensor:
        return -scale * rate * (y - offset) * t

    times = [2.0, 1.0, 0.0]
    found = run(f, states, times, args=(2.0,), parameters=(rates, offsets), rtol=1e-9, atol=1e-9)
    t = torch.tensor(times, dtype=torch.float64)[None, :, None]
    exact = offsets[:, None] + (states - offsets)[:, None] * torch.exp(rates[:, None] * (4.0 - t**2))
    assert ((found - exact) / exact.abs().amax((1, 2), True)).abs().max() <= 1e-6


@pytest.mark.julia
def test_fixed_steps_converge_with_the_methods_order() -> None:
    states = y0s(3).abs() + 1.0

    def error(dt: float) -> float:
        found = run(lambda t, y: -y * y, states, (0.0, 2.0), dt=dt)
        return float((found[:, -1] - states / (1 + 2.0 * states)).abs().max())

    coarse, fine = error(0.1), error(0.05)
    assert math.log2(coarse / fine) >= 4.5  # order 5


@pytest.mark.julia
def test_rows_of_any_shape_keep_it_and_one_row_is_enough() -> None:
    states = y0s(1, n=6).reshape(1, 2, 3)
    found = run(lambda t, y: -y, states, (0.0, 1.0), rtol=1e-9, atol=1e-9)
    assert found.shape == (1, 2, 2, 3)
    torch.testing.assert_close(found[:, 1], states * math.exp(-1.0), rtol=1e-7, atol=1e-7)
    numbers = run(lambda t, y: -y, y0s(3)[:, 0], (0.0, 1.0))
    assert numbers.shape == (3, 2)


@pytest.mark.julia
def test_a_stiff_ensemble() -> None:
    stiffness = torch.tensor([[1.0], [1e3], [1e5]], dtype=torch.float64)

    def f(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
        return -k * (y - torch.cos(t)) - torch.sin(t)

    found = run(
        f, torch.ones(3, 1).double(), TIMES, parameters=[stiffness], algorithm="GPURodas5P", rtol=1e-6, atol=1e-6
    )
    exact = torch.tensor(TIMES, dtype=torch.float64).cos()
    assert (found[..., 0] - exact).abs().max() <= 1e-4


@pytest.mark.julia
def test_new_weights_are_used() -> None:
    weight = torch.tensor([[-1.0, 0.0], [0.0, -2.0]], dtype=torch.float64)
    states = y0s(2)
    for factor in (1.0, 0.5):
        weight.mul_(factor)
        found = run(lambda t, y: weight @ y, states, (0.0, 1.0), rtol=1e-9, atol=1e-9)
        exact = states * weight.diagonal().exp()
        assert (found[:, 1] - exact).abs().max() <= 1e-7


@pytest.mark.julia
@pytest.mark.parametrize(
    ("f", "start"), [(lambda t, y: y * y, 2.0), (lambda t, y: torch.sqrt(0.5 - t) * y, 1.0)], ids=["infinite", "domain"]
)
def test_a_row_that_does_not_arrive_is_an_error(f: Callable[[Tensor, Tensor], Tensor], start: float) -> None:
    states = torch.tensor([[0.1], [start]], dtype=torch.float64)
    with pytest.raises(SolveError, match="of the ensemble did not reach t = 1"):
        run(f, states, (0.0, 1.0))
