"""Time of a solve and of its gradient against the size of the batch, of the state and of the field.

``batch``: the 8-32-8 network on 1 to 1e5 rows; ``states``: the elementwise field ``tanh(a y + b) / 2`` on 1 to 1e5
states; ``parameters``: a network 16-w-w-16 of 1e2 to 1e7 parameters on one row. All in float32 by Tsit5 at 1e-5; the
gradient is the default's. Small sizes cost what Python costs, so the exponent is the least-squares slope of the upper
part in logarithms: the sizes from which on a solve takes three times as long as the smallest.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pynode
from pynode.bench import Claim, Report, Table
from pynode.bench.contestants import Pynode, final, gradient
from pynode.bench.fields import Case, Mild
from pynode.bench.stages import stages
from pynode.bench.timing import Timing, alternate
from pynode.problems import Perceptron, initialise

SUMMARY = "time against batch, states and parameters, with fitted exponents"

SIZES = {
    "batch": (1, 10, 100, 1_000, 10_000, 100_000),
    "states": (1, 10, 100, 1_000, 10_000, 100_000),
    "parameters": (100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000),
}
QUICK = {"batch": (1, 10, 100), "states": (1, 10, 100), "parameters": (100, 1_000)}

#: Over the time of the smallest size: from there on the size counts.
UPPER = 3.0

#: Up to which an exponent counts as linear growth. Larger sizes leave the caches, which costs once.
LINEAR = 1.15


def _case(field: nn.Module, y0: Tensor, title: str) -> Case:
    return Case("scaling", title, field, y0, torch.tensor([0.0, 1.0]), 1e-5, 1e-5)


def _network(widths: tuple[int, ...], batch: int) -> Case:
    generator = torch.Generator().manual_seed(0)
    field = Perceptron(widths)
    initialise(field, generator)
    return _case(field, torch.randn(batch, widths[0], generator=generator), "-".join(map(str, widths)))


def width_of(parameters: int) -> int:
    """The width w with which 16-w-w-16 has about so many parameters: the root of ``w**2 + 34 w + 16 = parameters``."""
    return max(1, round(-17.0 + math.sqrt(273.0 + parameters)))


MAKE: dict[str, Callable[[int], Case]] = {
    "batch": lambda size: _network((8, 32, 8), size),
    "states": lambda size: _case(Mild(), torch.linspace(-1.0, 1.0, size), "elementwise"),
    "parameters": lambda size: _network((16, width_of(size), width_of(size), 16), 1),
}


def upper_exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float | None:
    """Slope of log(seconds) against log(size) over the upper part; None where fewer than two sizes are in it."""
    points = [(math.log(n), math.log(s)) for n, s in zip(sizes, seconds, strict=True) if s >= UPPER * seconds[0]]
    if len(points) < 2:
        return None
    x_mean = sum(x for x, _ in points) / len(points)
    y_mean = sum(y for _, y in points) / len(points)
    return sum((x - x_mean) * (y - y_mean) for x, y in points) / sum((x - x_mean) ** 2 for x, _ in points)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this experiment."""
    parser.add_argument("--against", nargs="+", choices=tuple(SIZES), default=list(SIZES), help="all by default")
    parser.add_argument("--tier", choices=("eager", "step", "solve"), default="eager", help="pynode's compile=")
    parser.add_argument("--rounds", type=int, help="rounds of slots (7, with --quick 1)")
    parser.add_argument("--plots", metavar="DIR", type=Path, help="write the plot there")
    parser.add_argument("--quick", action="store_true", help="small sizes, one round")


def run(options: argparse.Namespace) -> Report:
    """Measure along every axis."""
    report, sizes = Report([], []), QUICK if options.quick else SIZES
    rounds = options.rounds or (1 if options.quick else 7)
    tier: dict[str, Any] = {} if options.tier == "eager" else {"compile": options.tier}
    found: dict[str, dict[str, Any]] = {}
    with stages("scaling", sum(len(sizes[axis]) for axis in options.against)) as progress:
        for axis in options.against:
            rows: dict[str, Any] = {"sizes": [], "nfe": [], "forward": [], "gradient": []}
            for size in sizes[axis]:
                progress.show(f"{axis} {size}")
                nfe, timings = measure(MAKE[axis](size), rounds, tier)
                rows["sizes"].append(size)
                rows["nfe"].append(nfe)
                for direction, timing in timings.items():
                    rows[direction].append(timing.median)
                progress.step(f"{axis} {size}")
            found[axis] = rows
            _report(axis, rows, report, not options.quick)
    report.data = {"tier": options.tier, "axes": found}
    if options.plots is not None:
        from pynode.bench.scaling_plots import draw

        report.notes.append(f"plot: {draw(found, options.plots)}")
    return report


def measure(case: Case, rounds: int, tier: dict[str, Any]) -> tuple[int, dict[str, Timing]]:
    """Evaluations of the forward solve, and the times of it and of the gradient."""
    solver = Pynode(algorithm=pynode.Tsit5(), **tier)
    with torch.no_grad():
        nfe = solver.solution(case, case.y0).stats.forward.nfe
    calls: dict[str, Callable[[], object]] = {
        "forward": lambda: final(solver, case),
        "gradient": lambda: gradient(solver, case),
    }
    return nfe, alternate(calls, rounds, warmup=1)


def _report(axis: str, rows: dict[str, Any], report: Report, judged: bool) -> None:
    cells: list[tuple[str, ...]] = [
        (str(size), str(nfe), f"{1e3 * forward:.4g}", f"{1e3 * back:.4g}")
        for size, nfe, forward, back in zip(*(rows[k] for k in ("sizes", "nfe", "forward", "gradient")), strict=True)
    ]
    report.tables.append(Table(f"time against {axis}, ms", (axis, "evaluations", "forward", "gradient"), cells))
    rows["exponents"] = {}
    for direction in ("forward", "gradient"):
        exponent = upper_exponent(rows["sizes"], rows[direction])
        rows["exponents"][direction] = exponent
        if exponent is None:
            report.notes.append(f"{axis}, {direction}: no two sizes cost {UPPER:g} times the smallest")
            continue
        text = f"time of the {direction} grows as {axis}**{exponent:.2f} in its upper part (<= {LINEAR:g})"
        report.claims.append(Claim(text, exponent, exponent <= LINEAR if judged else None))
