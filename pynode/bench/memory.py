"""Peak memory of a gradient against the number of steps, for each sensitivity algorithm."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

import pynode
from pynode.bench import Claim, Report, Table
from pynode.bench.fields import Mild
from pynode.live_bytes import peak_during

SUMMARY = "peak memory of a gradient against the number of steps"

STEPS = (10, 100, 1000)

#: The sensitivity algorithms that are compared, as functions of the number of steps.
SENSEALGS: dict[str, Callable[[int], pynode.SensitivityAlgorithm]] = {
    "DirectAdjoint": lambda steps: pynode.DirectAdjoint(),
    "CheckpointedAdjoint": lambda steps: pynode.CheckpointedAdjoint(),
    "CheckpointedAdjoint(checkpoints=sqrt N)": lambda steps: pynode.CheckpointedAdjoint(
        checkpoints=max(2, math.ceil(math.sqrt(steps)))
    ),
    "BacksolveAdjoint": lambda steps: pynode.BacksolveAdjoint(),
}


def peak_bytes(sensealg: pynode.SensitivityAlgorithm, steps: int, size: int) -> int:
    """Most bytes alive at once during one gradient of ``sum(y(1)**2)`` by ``RK4(steps=steps)``.

    ``size`` is the number of float32 elements of the state; the initial state itself is not counted.
    """
    field = Mild()
    y0 = torch.linspace(-1.0, 1.0, size).requires_grad_()

    def gradient() -> None:
        sol = pynode.solve(field, y0, [0.0, 1.0], algorithm=pynode.RK4(steps=steps), sensealg=sensealg)
        torch.autograd.grad(sol.ys[-1].pow(2).sum(), [y0, *field.parameters()])

    return peak_during(gradient)


def exponent(steps: Sequence[int], peaks: Sequence[float], base: float) -> float:
    """Least-squares slope of ``log(peak - base)`` against ``log(steps)``; 0 where the peaks differ by under a state.

    ``base`` is the peak of a single step: what does not depend on their number. Peaks are in states.
    """
    if max(peaks) - min(peaks) < 1.0:
        return 0.0
    points = [(math.log(n), math.log(peak - base)) for n, peak in zip(steps, peaks, strict=True) if peak > base]
    x_mean = sum(x for x, _ in points) / len(points)
    y_mean = sum(y for _, y in points) / len(points)
    return sum((x - x_mean) * (y - y_mean) for x, y in points) / sum((x - x_mean) ** 2 for x, _ in points)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this experiment."""
    parser.add_argument(
        "--size", type=int, default=100_000, help="float32 elements of the state (default: %(default)s)"
    )


def run(options: argparse.Namespace) -> Report:
    """Measure every sensitivity algorithm at every number of steps."""
    return measure(STEPS, options.size)


def measure(steps: Sequence[int], size: int) -> Report:
    """The experiment at the given numbers of steps (at least two, ascending)."""
    state = 4 * size
    rows: list[tuple[str, ...]] = []
    measured: dict[str, dict[str, Any]] = {}
    for name, make in SENSEALGS.items():
        base = peak_bytes(make(1), 1, size) / state
        peaks = [peak_bytes(make(n), n, size) / state for n in steps]
        slope = exponent(steps, peaks, base)
        per_step = (peaks[-1] - peaks[0]) / (steps[-1] - steps[0])
        measured[name] = {"base": base, "peaks": peaks, "exponent": slope, "per_step": per_step}
        rows.append((name, *(f"{peak:.1f}" for peak in (base, *peaks)), f"{slope:.2f}", f"{per_step:.3f}"))
    columns = ("", *(f"N = {n}" for n in (1, *steps)), "exponent", "states per step")
    title = f"peak memory of a gradient in states ({size} float32, {state / 1e6:g} MB each), N steps of RK4"
    direct, checkpointed, bounded, backsolve = (measured[name] for name in SENSEALGS)
    growth = backsolve["peaks"][-1] - backsolve["peaks"][0]
    most = max((p - bounded["base"]) / math.sqrt(n) for n, p in zip(steps, bounded["peaks"], strict=True))
    claims = [
        Claim(
            f"BacksolveAdjoint is flat: {growth:+.2f} states from N = {steps[0]} to N = {steps[-1]}",
            growth,
            abs(growth) < 1.0,
        ),
        Claim(
            f"CheckpointedAdjoint keeps one state per step: {checkpointed['per_step']:.3f} "
            f"(DirectAdjoint {direct['per_step']:.1f})",
            checkpointed["per_step"],
            0.95 < checkpointed["per_step"] < 1.05,
        ),
        Claim(
            f"CheckpointedAdjoint(checkpoints=sqrt N) grows like the square root: exponent {bounded['exponent']:.2f}, "
            f"at most {most:.1f} sqrt(N) states",
            bounded["exponent"],
            0.35 < bounded["exponent"] < 0.65,
        ),
    ]
    note = (
        "N = 1 is what does not depend on the number of steps; the exponent is fitted to what comes on top of it. "
        "Counted: the bytes of every storage torch operations made, while it lived; y0 itself is not."
    )
    data = {"steps": list(steps), "size": size, "state_bytes": state, "sensealgs": measured}
    return Report([Table(title, columns, rows)], claims, [note], data)
