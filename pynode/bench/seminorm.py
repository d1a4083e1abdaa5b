"""The adjoint's error norm on a neural CDE: all channels, the seminorm, or no parameter channels at all."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import pynode
from pynode.bench import Claim, Table
from pynode.problems import PROBLEMS, Instance

TOLERANCES = ((1e-3, 1e-6), (1e-4, 1e-7), (1e-5, 1e-8))

FULL, SEMI, GAUSS = "BacksolveAdjoint(norm='full')", "BacksolveAdjoint()", "GaussAdjoint()"

SENSEALGS: dict[str, Callable[[], pynode.SensitivityAlgorithm]] = {
    FULL: lambda: pynode.BacksolveAdjoint(norm="full"),
    SEMI: lambda: pynode.BacksolveAdjoint(),
    "InterpolatingAdjoint(norm='full')": lambda: pynode.InterpolatingAdjoint(norm="full"),
    "InterpolatingAdjoint()": lambda: pynode.InterpolatingAdjoint(),
    GAUSS: lambda: pynode.GaussAdjoint(),
    "QuadratureAdjoint()": lambda: pynode.QuadratureAdjoint(),
    "CheckpointedAdjoint()": lambda: pynode.CheckpointedAdjoint(),
}


@dataclass(frozen=True)
class Gradient:
    """One gradient: its relative error over all inputs, its backward evaluations and products, its seconds."""

    error: float
    nfe: int
    nvjp: int
    seconds: float


def gradient(
    problem: Instance, sensealg: pynode.SensitivityAlgorithm, rtol: float, atol: float, algorithm: pynode.Algorithm
) -> tuple[list[Tensor], pynode.Stats, float]:
    """Gradient of the problem's loss with respect to y0 and every parameter, its cost, and the seconds of its backward
    pass (the quickest of two)."""
    y0 = problem.y0.detach().requires_grad_()
    inputs = [y0, *problem.field.parameters()]
    seconds = math.inf
    for _ in range(2):
        sol = pynode.solve(problem.field, y0, problem.t, rtol=rtol, atol=atol, sensealg=sensealg, algorithm=algorithm)
        loss = problem.loss(sol.ys)
        start = time.perf_counter()
        found = list(torch.autograd.grad(loss, inputs))
        seconds = min(seconds, time.perf_counter() - start)
    return found, sol.stats, seconds


def reference(problem: Instance) -> list[Tensor]:
    """The gradient in the problem's float64 at 1e-12, by Vern9 and the exact discrete adjoint."""
    return gradient(problem, pynode.CheckpointedAdjoint(), 1e-12, 1e-12, pynode.Vern9())[0]


def distance(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Relative Euclidean distance over all tensors together."""
    difference = sum((a.double() - b.double()).pow(2).sum().item() for a, b in zip(found, exact, strict=True))
    return math.sqrt(difference / sum(b.double().pow(2).sum().item() for b in exact))


Measured = dict[tuple[str, float], list[Gradient]]


def measure(draws: int) -> tuple[list[Table], list[Claim], Measured]:
    """Every sensitivity algorithm at every tolerance, over several draws of field and initial state."""
    measured: Measured = {}
    for seed in range(draws):
        problem = PROBLEMS["cde"].build(dtype=torch.float64, seed=seed)
        exact = reference(problem)
        for rtol, atol in TOLERANCES:
            for name, make in SENSEALGS.items():
                found, stats, seconds = gradient(problem, make(), rtol, atol, pynode.DP5())
                one = Gradient(distance(found, exact), stats.backward.nfe, stats.backward.nvjp, seconds)
                measured.setdefault((name, rtol), []).append(one)
    return [_table(measured, draws)], _claims(measured), measured


def _median(measured: Measured, name: str, rtol: float, what: str) -> float:
    return float(statistics.median(getattr(one, what) for one in measured[name, rtol]))


def _table(measured: Measured, draws: int) -> Table:
    rows: list[tuple[str, ...]] = []
    for rtol, atol in TOLERANCES:
        for name in SENSEALGS:
            saving = 1.0 - _median(measured, name, rtol, "nfe") / _median(measured, FULL, rtol, "nfe")
            rows.append(
                (
                    f"{rtol:g}/{atol:g} {name}",
                    f"{_median(measured, name, rtol, 'nfe'):g}",
                    f"{_median(measured, name, rtol, 'nvjp'):g}",
                    f"{100 * saving:.0f} %",
                    f"{_median(measured, name, rtol, 'error'):.1e}",
                    f"{1e3 * _median(measured, name, rtol, 'seconds'):.1f}",
                )
            )
    title = f"{PROBLEMS['cde'].title}, DP5, float64: backward pass, medians of {draws} draw(s)"
    columns = ("", "f backward", "pullbacks", f"fewer f than {FULL}", "gradient error", "ms")
    return Table(title, columns, rows)


def _claims(measured: Measured) -> list[Claim]:
    tolerances = [rtol for rtol, _ in TOLERANCES]
    pairs = [
        (semi, full)
        for rtol in tolerances
        for semi, full in zip(measured[SEMI, rtol], measured[FULL, rtol], strict=True)
    ]
    saving = statistics.median(1.0 - semi.nfe / full.nfe for semi, full in pairs)
    worse = statistics.median(semi.error / full.error for semi, full in pairs)
    claims = [
        Claim(
            f"the seminorm saves {100 * saving:.0f} % of backward evaluations (median, >= 40 %)", saving, saving >= 0.4
        ),
        Claim(f"at {worse:.2f} times the full norm's gradient error (median, <= 2)", worse, worse <= 2.0),
    ]
    for other in (FULL, SEMI):
        for what, unit in (("nfe", "backward evaluations"), ("seconds", "time")):
            ratio = at_equal_error(measured, GAUSS, other, what)
            claims.append(
                Claim(f"GaussAdjoint at {other}'s error takes {ratio:.2f} of its {unit} (< 1)", ratio, ratio < 1.0)
            )
    return claims


def at_equal_error(measured: Measured, name: str, other: str, what: str) -> float:
    """Median over tolerances of the work of ``name`` over that of ``other`` at the other's error.

    The work of ``name`` at that error is read off the power law through its points: ``work ~ error ** slope``.
    """
    tolerances = [rtol for rtol, _ in TOLERANCES]
    points = [
        (math.log(_median(measured, name, rtol, "error")), math.log(_median(measured, name, rtol, what)))
        for rtol in tolerances
    ]
    x_mean, y_mean = (statistics.mean(column) for column in zip(*points, strict=True))
    slope = sum((x - x_mean) * (y - y_mean) for x, y in points) / sum((x - x_mean) ** 2 for x, _ in points)
    ratios = []
    for rtol in tolerances:
        expected = y_mean + slope * (math.log(_median(measured, other, rtol, "error")) - x_mean)
        ratios.append(math.exp(expected) / _median(measured, other, rtol, what))
    return statistics.median(ratios)
