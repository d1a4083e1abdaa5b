"""The adjoint's error norm on a neural CDE: all channels, the seminorm, or no parameter channels at all.

Two controls are measured, a smooth one over one unit of time and one three times as fast over half of it, with a loss
that sums over samples, at the three pairs of tolerances of Kidger, Chen and Lyons (2021).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import pynode
from pynode.bench import Claim, Table
from pynode.problems import ControlledField, initialise

TOLERANCES = ((1e-3, 1e-6), (1e-4, 1e-7), (1e-5, 1e-8))

#: Controls: (speed, length of the span).
CONTROLS = ((1.0, 1.0), (3.0, 1.0), (3.0, 0.5))

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
class Task:
    """A gradient to take: of ``loss(ys)``, ``ys`` being the states of ``field`` from ``y0`` at ``t``."""

    field: nn.Module
    y0: Tensor
    t: Tensor
    loss: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Gradient:
    """One gradient: its relative error over all inputs, its evaluations and products, the seconds of its backward
    pass."""

    error: float
    forward: int
    nfe: int
    nvjp: int
    seconds: float


def task(speed: float, span: float, seed: int) -> Task:
    """A neural CDE with 13 456 parameters, 32 samples, 32 hidden states and 8 channels; loss ``sum(w * y(t[-1]))``."""
    generator = torch.Generator().manual_seed(seed)
    field = ControlledField(batch=32, hidden=32, inner=40, channels=8, generator=generator, speed=speed)
    initialise(field, generator)
    y0 = (0.5 * torch.randn(32, 32, generator=generator)).double()
    weights = torch.randn(32, 32, generator=generator).double()
    t = torch.tensor([0.0, span], dtype=torch.float64)
    return Task(field.double(), y0, t, lambda ys: (weights * ys[-1]).sum())


def gradient(
    task: Task, sensealg: pynode.SensitivityAlgorithm, rtol: float, atol: float, algorithm: pynode.Algorithm
) -> tuple[list[Tensor], pynode.Stats, float]:
    """Gradient of the loss with respect to y0 and every parameter, its cost, and the seconds of its backward pass (the
    quickest of three)."""
    y0 = task.y0.detach().requires_grad_()
    inputs = [y0, *task.field.parameters()]
    seconds = math.inf
    for _ in range(3):
        sol = pynode.solve(task.field, y0, task.t, rtol=rtol, atol=atol, sensealg=sensealg, algorithm=algorithm)
        loss = task.loss(sol.ys)
        start = time.perf_counter()
        found = list(torch.autograd.grad(loss, inputs))
        seconds = min(seconds, time.perf_counter() - start)
    return found, sol.stats, seconds


def reference(task: Task) -> list[Tensor]:
    """The gradient in float64 at 1e-12, by Vern9 and the exact discrete adjoint."""
    return gradient(task, pynode.CheckpointedAdjoint(), 1e-12, 1e-12, pynode.Vern9())[0]


def distance(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Relative Euclidean distance over all tensors together."""
    difference = sum((a.double() - b.double()).pow(2).sum().item() for a, b in zip(found, exact, strict=True))
    return math.sqrt(difference / sum(b.double().pow(2).sum().item() for b in exact))


def measured(
    task: Task,
    exact: Sequence[Tensor],
    sensealg: pynode.SensitivityAlgorithm,
    rtol: float,
    atol: float,
    algorithm: pynode.Algorithm,
) -> Gradient:
    """One gradient against the exact one."""
    found, stats, seconds = gradient(task, sensealg, rtol, atol, algorithm)
    return Gradient(distance(found, exact), stats.forward.nfe, stats.backward.nfe, stats.backward.nvjp, seconds)


#: Gradients by (control, name of the sensitivity algorithm, rtol), one a draw.
Measured = dict[tuple[tuple[float, float], str, float], list[Gradient]]


def measure(draws: int) -> tuple[list[Table], list[Claim], Measured]:
    """Every sensitivity algorithm at every tolerance on every control, over several draws of field and state."""
    found: Measured = {}
    for control in CONTROLS:
        for seed in range(draws):
            problem = task(*control, seed)
            exact = reference(problem)
            for rtol, atol in TOLERANCES:
                for name, make in SENSEALGS.items():
                    one = measured(problem, exact, make(), rtol, atol, pynode.DP5())
                    found.setdefault((control, name, rtol), []).append(one)
    return [_table(found, control, draws) for control in CONTROLS], _claims(found), found


def _median(found: Measured, control: tuple[float, float], name: str, rtol: float, what: str) -> float:
    return float(statistics.median(getattr(one, what) for one in found[control, name, rtol]))


def _table(found: Measured, control: tuple[float, float], draws: int) -> Table:
    rows: list[tuple[str, ...]] = []
    for rtol, atol in TOLERANCES:
        for name in SENSEALGS:
            nfe, nvjp, error, seconds = (
                _median(found, control, name, rtol, what) for what in ("nfe", "nvjp", "error", "seconds")
            )
            saving = 1.0 - nfe / _median(found, control, FULL, rtol, "nfe")
            cells = (f"{nfe:g}", f"{nvjp:g}", f"{100 * saving:.0f} %", f"{error:.1e}", f"{1e3 * seconds:.1f}")
            rows.append((f"{rtol:g}/{atol:g} {name}", *cells))
    speed, span = control
    title = (
        f"neural CDE, 13 456 parameters, control of speed {speed:g} over {span:g}, DP5, float64: backward pass, "
        f"medians of {draws} draw(s)"
    )
    return Table(title, ("", "f backward", "pullbacks", "saved of f", "gradient error", "ms"), rows)


def _pairs(found: Measured, controls: Sequence[tuple[float, float]]) -> list[tuple[Gradient, Gradient]]:
    return [
        pair
        for control in controls
        for rtol, _ in TOLERANCES
        for pair in zip(found[control, SEMI, rtol], found[control, FULL, rtol], strict=True)
    ]


def _claims(found: Measured) -> list[Claim]:
    claims = []
    for control in CONTROLS:
        pairs = _pairs(found, [control])
        saving = statistics.median(1.0 - semi.nfe / full.nfe for semi, full in pairs)
        worse = statistics.median(semi.error / full.error for semi, full in pairs)
        text = f"control of speed {control[0]:g} over {control[1]:g}: the seminorm saves {100 * saving:.0f} %"
        claims.append(Claim(f"{text} of backward evaluations at {worse:.2f} times the error", saving, None))
    pairs = _pairs(found, CONTROLS)
    saving = statistics.median(1.0 - semi.nfe / full.nfe for semi, full in pairs)
    worse = statistics.median(semi.error / full.error for semi, full in pairs)
    claims += [
        Claim(f"the seminorm saves {100 * saving:.0f} % of backward evaluations (median: 40)", saving, saving >= 0.4),
        Claim(f"at {worse:.2f} times the full norm's gradient error (median: 2)", worse, worse <= 2.0),
    ]
    for other in (FULL, SEMI):
        for what, unit in (("nfe", "backward evaluations"), ("seconds", "time")):
            ratio = statistics.median(at_equal_error(found, control, GAUSS, other, what) for control in CONTROLS)
            claims.append(
                Claim(f"GaussAdjoint at {other}'s error takes {ratio:.2f} of its {unit} (< 1)", ratio, ratio < 1.0)
            )
    return claims


def at_equal_error(found: Measured, control: tuple[float, float], name: str, other: str, what: str) -> float:
    """Median over tolerances of the work of ``name`` over that of ``other`` at the other's error.

    The work of ``name`` at that error is read off the power law through its points: ``work ~ error ** slope``.
    """
    tolerances = [rtol for rtol, _ in TOLERANCES]
    points = [
        (math.log(_median(found, control, name, rtol, "error")), math.log(_median(found, control, name, rtol, what)))
        for rtol in tolerances
    ]
    x_mean, y_mean = (statistics.mean(column) for column in zip(*points, strict=True))
    slope = sum((x - x_mean) * (y - y_mean) for x, y in points) / sum((x - x_mean) ** 2 for x, _ in points)
    ratios = []
    for rtol in tolerances:
        expected = y_mean + slope * (math.log(_median(found, control, other, rtol, "error")) - x_mean)
        ratios.append(math.exp(expected) / _median(found, control, other, rtol, what))
    return statistics.median(ratios)
