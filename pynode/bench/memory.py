"""Peak memory of a gradient against the number of steps, for each sensitivity algorithm."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

import pynode
from pynode.backends import backend_from_name
from pynode.bench import Claim, Report, Table
from pynode.bench.fields import Mild
from pynode.live_bytes import peak_during

SUMMARY = "peak memory of a gradient against the number of steps"

STEPS = (10, 100, 1000)
QUICK = (9, 36, 100)


def checkpoints(steps: int) -> int:
    """The square root of the number of steps, and the two that are needed."""
    return max(2, math.ceil(math.sqrt(steps)))


#: The sensitivity algorithms that are compared, as functions of the number of steps.
SENSEALGS: dict[str, Callable[[int], pynode.SensitivityAlgorithm]] = {
    "DirectAdjoint": lambda steps: pynode.DirectAdjoint(),
    "CheckpointedAdjoint": lambda steps: pynode.CheckpointedAdjoint(),
    "CheckpointedAdjoint(checkpoints=sqrt N)": lambda steps: pynode.CheckpointedAdjoint(checkpoints=checkpoints(steps)),
    "BacksolveAdjoint": lambda steps: pynode.BacksolveAdjoint(),
    "ReversibleAdjoint": lambda steps: pynode.ReversibleAdjoint(),
    "CheckpointedAdjoint(checkpoints=8)": lambda steps: pynode.CheckpointedAdjoint(checkpoints=8),
    "InterpolatingAdjoint": lambda steps: pynode.InterpolatingAdjoint(),
    "InterpolatingAdjoint(checkpointing=True)": lambda steps: pynode.InterpolatingAdjoint(checkpointing=True),
    "QuadratureAdjoint": lambda steps: pynode.QuadratureAdjoint(),
    "GaussAdjoint": lambda steps: pynode.GaussAdjoint(),
    "ForwardSensitivity": lambda steps: pynode.ForwardSensitivity(),
}

#: Those whose memory does not depend on the number of steps, once they are many more than the checkpoints.
FLAT = ("BacksolveAdjoint", "ReversibleAdjoint", "CheckpointedAdjoint(checkpoints=8)")


def algorithm_of(name: str, steps: int) -> pynode.Algorithm:
    """The algorithm that row ``name`` is measured on."""
    return pynode.ReversibleHeun(steps=steps) if name == "ReversibleAdjoint" else pynode.RK4(steps=steps)


def rows_offered() -> list[str]:
    """The rows that the backend offers."""
    backend = backend_from_name("torch")
    return [name for name, make in SENSEALGS.items() if backend.supports(algorithm_of(name, 1), make(1)) is None]


def peak_bytes(sensealg: pynode.SensitivityAlgorithm, algorithm: pynode.Algorithm, size: int) -> int:
    """Most bytes alive at once during one gradient of ``sum(y(1)**2)`` by ``algorithm``.

    ``size`` is the number of float32 elements of the state; the initial state itself is not counted. The gradient is
    that of y0 and of the two parameters, under ForwardSensitivity of these alone: each number would be a state more.
    """
    field = Mild()
    y0 = torch.linspace(-1.0, 1.0, size).requires_grad_(not isinstance(sensealg, pynode.ForwardSensitivity))
    inputs = [x for x in (y0, *field.parameters()) if x.requires_grad]

    def gradient() -> None:
        sol = pynode.solve(field, y0, [0.0, 1.0], algorithm=algorithm, sensealg=sensealg)
        torch.autograd.grad(sol.ys[-1].pow(2).sum(), inputs)

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
    parser.add_argument("--quick", action="store_true", help="few steps of a small state")


def run(options: argparse.Namespace) -> Report:
    """Measure every sensitivity algorithm at every number of steps."""
    return measure(QUICK, 500) if options.quick else measure(STEPS, options.size)


def measure(steps: Sequence[int], size: int) -> Report:
    """The experiment at the given numbers of steps (at least two, ascending)."""
    state = 4 * size
    rows: list[tuple[str, ...]] = []
    measured: dict[str, dict[str, Any]] = {}
    for name in rows_offered():
        base, *peaks = (peak_bytes(SENSEALGS[name](n), algorithm_of(name, n), size) / state for n in (1, *steps))
        slope = exponent(steps, peaks, base)
        per_step = (peaks[-1] - peaks[0]) / (steps[-1] - steps[0])
        measured[name] = {"base": base, "peaks": peaks, "exponent": slope, "per_step": per_step}
        rows.append((name, *(f"{peak:.1f}" for peak in (base, *peaks)), f"{slope:.2f}", f"{per_step:.3f}"))
    columns = ("", *(f"N = {n}" for n in (1, *steps)), "exponent", "states per step")
    title = f"peak memory of a gradient in states ({size} float32, {state / 1e6:g} MB each), N steps"
    direct, checkpointed, bounded = (measured[name] for name in list(SENSEALGS)[:3])
    counts = [checkpoints(n) for n in (steps[0], steps[-1])]
    each = (bounded["peaks"][-1] - bounded["peaks"][0]) / (counts[1] - counts[0])
    claims = []
    for name in FLAT:
        peaks = [peak for n, peak in zip(steps, measured[name]["peaks"], strict=True) if n >= 16]
        growth = peaks[-1] - peaks[0] if peaks else 0.0
        claims.append(Claim(f"{name} is flat: {growth:+.2f} states up to N = {steps[-1]}", growth, abs(growth) < 1.0))
    claims += [
        Claim(
            f"CheckpointedAdjoint keeps one state per step: {checkpointed['per_step']:.3f} "
            f"(DirectAdjoint {direct['per_step']:.1f})",
            checkpointed["per_step"],
            0.95 < checkpointed["per_step"] < 1.05,
        ),
        Claim(
            f"CheckpointedAdjoint(checkpoints=sqrt N) grows like the square root: {each:.2f} states per checkpoint",
            each,
            each < 1.05,
        ),
    ]
    thinned = measured.get("InterpolatingAdjoint(checkpointing=True)")
    if thinned is not None:
        claims.append(
            Claim(
                "InterpolatingAdjoint(checkpointing=True) grows like the square root: exponent "
                f"{thinned['exponent']:.2f}",
                thinned["exponent"],
                thinned["exponent"] < 0.65,
            )
        )
    note = (
        "N = 1 is what does not depend on the number of steps; the exponent is fitted to what comes on top of it. "
        "Counted: the bytes of every storage torch operations made, while it lived; y0 itself is not. Steps are RK4's, "
        "ReversibleHeun's for ReversibleAdjoint; ForwardSensitivity differentiates the two parameters only."
    )
    data = {"steps": list(steps), "size": size, "state_bytes": state, "sensealgs": measured}
    return Report([Table(title, columns, rows)], claims, [note], data)
