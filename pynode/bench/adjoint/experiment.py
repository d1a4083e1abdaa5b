"""Gradients of large problems: time, memory and error of every sensitivity algorithm, backend and peer.

The 2-D Brusselator on 32 x 32 and 64 x 64 points, a network of 1e6 parameters, a batch of 4 096, and a horizon of 1e4
steps; ``sum(y(t[-1])**2)`` is differentiated in y0 and every parameter, forward by Dormand and Prince's 5(4).
Errors are relative, against CheckpointedAdjoint with Vern9 in float64 at 1e-12, which in turn is held against a finite
difference along a random direction and SciPy's solution. Memory is the most bytes alive at once in tensors made during
a gradient; for diffrax, by XLA's own account, what it takes beyond inputs and results; "-" where it cannot be seen
(Julia, compiled code). Times are medians over alternating slots, with their quartiles. The long horizon
takes by far the longest: ``--cases`` chooses.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from typing import Any

import pynode
from pynode.bench import Report, Table
from pynode.bench.adjoint.cases import CASES
from pynode.bench.adjoint.ways import WayToDifferentiate, ways
from pynode.bench.contestants import Pynode, final, gradient
from pynode.bench.distance import error
from pynode.bench.fields import Case
from pynode.bench.own_tier import own_tier
from pynode.bench.peers.contestant import tensors
from pynode.bench.peers.diffrax_solver import precision
from pynode.bench.peers.line_up import NEEDS, TIERS, absent
from pynode.bench.reference import Reference, crosscheck
from pynode.bench.stages import Stages, stages
from pynode.bench.timing import alternate

SUMMARY = "time, memory and error of gradients of large problems, by sensitivity algorithm and backend"

#: An error of a gradient, relative, at which it says nothing any more.
NONSENSE = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this experiment."""
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), help="all by default")
    parser.add_argument(
        "--tiers", nargs="+", choices=tuple(TIERS), help="pynode's compile= (all by default, eager with --quick)"
    )
    parser.add_argument("--without", nargs="+", choices=(*NEEDS, "julia"), default=[], help="leave out these libraries")
    parser.add_argument("--rounds", type=int, help="rounds of slots (3, with --quick 1)")
    parser.add_argument("--quick", action="store_true", help="small problems and one round, such as CI can afford")


def run(options: argparse.Namespace) -> Report:
    """Measure every case."""
    report = Report([], [])
    lacking = {name: why for name, why in absent().items() if name not in options.without}
    report.notes += [f"absent: {name}: {why}" for name, why in lacking.items()]
    report.notes += [f"left out: {name}" for name in options.without]
    left_out = [*lacking, *options.without]
    tiers = options.tiers or (["eager"] if options.quick else list(TIERS))
    rounds = options.rounds or (1 if options.quick else 3)
    cases = [CASES[name][int(options.quick)]() for name in options.cases or CASES]
    found = [(case, ways(case, tiers, left_out)) for case in cases]
    report.data = {"absent": lacking, "cases": {}}
    with stages("adjoint", sum(1 + len(ones) + rounds for _, ones in found)) as progress:
        for case, ones in found:
            with contextlib.ExitStack() as stack:
                if "diffrax" not in left_out:
                    stack.enter_context(precision(case.y0.dtype))
                measure(case, ones, rounds, report, progress)
    return report


def measure(
    case: Case, found: list[WayToDifferentiate], rounds: int, report: Report, progress: Stages
) -> dict[str, dict[str, Any]]:
    """Rows of one case by contestant, into ``report``."""
    progress.show(f"{case.name}: reference")
    exact = case.exact()
    oracle = Pynode(algorithm=pynode.Vern9(), sensealg=pynode.CheckpointedAdjoint())
    reference = Reference(final(oracle, exact), gradient(oracle, exact))
    peer, solution_gap, gradient_gap = crosscheck(case, reference)
    accepted, rejected = Pynode(algorithm=pynode.DP5()).steps(case)
    report.notes.append(
        f"{case.name}: DP5 takes {accepted} + {rejected} steps; the reference is {solution_gap:.0e} from {peer}, its "
        f"gradient {gradient_gap:.0e} from a finite difference along a random direction."
    )
    progress.step(f"{case.name}: reference")
    rows: dict[str, dict[str, Any]] = {}
    ready: dict[str, Callable[[], Any]] = {}
    for way in found:
        name = way.contestant.name
        try:
            with own_tier():
                call = way.contestant.prepare(case)
                rows[name] = {"error": error(tensors(call()), reference.gradient)}
            rows[name]["peak_bytes"] = None if way.peak is None else way.peak(case, call)
            ready[name] = call
        except Exception as raised:  # a library may raise anything; whatever it is, the row says so
            rows[name] = {"refused": f"{type(raised).__name__}: {raised}".splitlines()[0]}
        progress.step(f"{case.name}: {name}")
    timings = alternate(ready, rounds, warmup=0, between=lambda: progress.step(f"{case.name}: rounds"))
    for name, timing in timings.items():
        rows[name] |= {"median": timing.median, "samples": list(timing.samples)}
    report.tables.append(_table(case, rows, {name: timing.spread for name, timing in timings.items()}))
    report.notes += [f"{case.name}: {name}: {row['refused']}" for name, row in rows.items() if "refused" in row]
    report.data.setdefault("cases", {})[case.name] = {
        "title": case.title,
        "steps": [accepted, rejected],
        "reference": {"peer": peer, "solution": solution_gap, "finite_difference": gradient_gap},
        "rows": rows,
    }
    return rows


def _table(case: Case, rows: dict[str, dict[str, Any]], spreads: dict[str, Any]) -> Table:
    cells: list[tuple[str, ...]] = []
    for name, row in rows.items():
        if "refused" in row:
            cells.append((name, "refused", "", "", ""))
            continue
        found, peak = spreads[name], row["peak_bytes"]
        wrong = "" if row["error"] < NONSENSE else " (nonsense)"
        cells.append(
            (
                name,
                f"{1e3 * found.median:.4g}",
                f"{1e3 * found.lower:.4g} - {1e3 * found.upper:.4g}",
                "-" if peak is None else f"{peak / 1e6:.3g}",
                f"{row['error']:.1e}{wrong}",
            )
        )
    return Table(f"gradient, {case.title}", ("", "median ms", "quartiles", "peak MB", "gradient error"), cells)
