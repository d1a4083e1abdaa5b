"""pynode beside every library that is installed, on one field with the same weights, at equal measured error.

torchdiffeq, torchode, torchdyn, diffrax (jitted), SciPy and Julia (through pynode) solve with Dormand and Prince's 5(4)
at the same tolerances; then ``sum(y(t[-1])**2)`` is differentiated, by each library's usual ways. Errors are relative,
against float64 at 1e-12, and root mean squares over several draws of weights and initial states. As libraries differ
in what a tolerance yields, they are compared at the error that ours measures: what a peer takes there is read off its
work-precision line over several tolerances, in logarithms. "<=" marks a peer that is more accurate even at its
quickest, so that it might be quicker still; "never" one that does not get there. Errors below four roundings of the
state's precision count as equal. Every round times every contestant at every tolerance once; ratios are taken within
rounds, and shown as their median and quartiles.

diffrax runs on jax's own arrays, so that no crossing is counted against it; torchode and torchdyn in eager mode.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path

from pynode.bench import Report
from pynode.bench.peers import tables
from pynode.bench.peers.diffrax_solver import precision
from pynode.bench.peers.fields import PROBLEMS_BY_NAME, Problem
from pynode.bench.peers.line_up import NEEDS, TIERS, absent, line_up
from pynode.bench.peers.lines import Line
from pynode.bench.peers.measure import lines
from pynode.bench.reference import Reference, reference
from pynode.bench.stages import Stages, stages

SUMMARY = "beside torchdiffeq, torchode, torchdyn, diffrax, SciPy and Julia at equal measured error"

DIRECTIONS = ("forward", "gradient")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this experiment."""
    parser.add_argument("--fields", nargs="+", choices=tuple(PROBLEMS_BY_NAME), help="all by default")
    parser.add_argument("--directions", nargs="+", choices=DIRECTIONS, default=list(DIRECTIONS), help="both by default")
    parser.add_argument(
        "--tiers", nargs="+", choices=tuple(TIERS), help="pynode's compile= (all by default, eager with --quick)"
    )
    parser.add_argument("--without", nargs="+", choices=(*NEEDS, "julia"), default=[], help="leave out these libraries")
    parser.add_argument("--rounds", type=int, help="rounds of slots (15, with --quick 2)")
    parser.add_argument("--draws", type=int, help="fields over which errors are taken (3, with --quick 1)")
    parser.add_argument("--plots", metavar="DIR", type=Path, help="write work-precision plots there")
    parser.add_argument("--quick", action="store_true", help="small fields, few rounds: a look, not a measurement")


def run(options: argparse.Namespace) -> Report:
    """Measure every field."""
    report = Report([], [])
    lacking = {name: why for name, why in absent().items() if name not in options.without}
    report.notes += [f"absent: {name}: {why}" for name, why in lacking.items()]
    report.notes += [f"left out: {name}" for name in options.without]
    left_out = [*lacking, *options.without]
    report.data = {"absent": lacking, "left_out": options.without, "fields": {}}
    tiers = options.tiers or (["eager"] if options.quick else list(TIERS))
    rounds = options.rounds or (2 if options.quick else 15)
    draws = options.draws or (1 if options.quick else 3)
    chosen = [PROBLEMS_BY_NAME[name] for name in options.fields or PROBLEMS_BY_NAME]
    contestants = {direction: line_up(direction == "gradient", tiers, left_out) for direction in options.directions}
    total = len(chosen) * sum(len(ones) + rounds for ones in contestants.values())
    measured: dict[str, dict[str, list[Line]]] = {}
    with stages("peers", total) as progress:
        for problem in chosen:
            measured[problem.name] = measure(
                problem, options.directions, tiers, left_out, rounds, draws, options.quick, report, progress
            )
    report.notes.append(
        "under each tier: how many times as fast as the row it is, at the same tolerance and at the error it has; "
        "median [quartiles] over the rounds."
    )
    if options.plots is not None:
        from pynode.bench.peers.plots import draw

        report.notes.append(f"plot: {draw(measured, options.plots)}")
    return report


def measure(
    problem: Problem,
    directions: Sequence[str],
    tiers: Sequence[str],
    left_out: Sequence[str],
    rounds: int,
    draws: int,
    quick: bool,
    report: Report,
    progress: Stages,
) -> dict[str, list[Line]]:
    """The lines of one problem by direction; tables, claims and ratios go into ``report``."""
    cases = [problem.draw(seed, quick) for seed in range(draws)]
    case = cases[0]
    exact: list[Reference] = []
    for one in cases:
        progress.show(f"{problem.name}: reference of draw {len(exact) + 1}")
        exact.append(reference(one))
    found: dict[str, list[Line]] = {}
    with contextlib.ExitStack() as stack:
        if "diffrax" not in left_out:
            stack.enter_context(precision(case.y0.dtype))
        for direction in directions:
            differentiated = direction == "gradient"
            contestants = line_up(differentiated, tiers, left_out)
            rtols = _some(problem.rtols, case.rtol) if quick else problem.rtols
            found[direction] = lines(contestants, cases, exact, rtols, rounds, differentiated, progress)
            compared = tables.comparisons(case, found[direction], tiers)
            report.tables.append(tables.table(case, direction, found[direction], tiers))
            report.notes += tables.failures(case, direction, found[direction])
            report.claims += tables.claims(case, direction, compared, problem.compute_bound, not quick)
            report.ratios |= tables.ratios(case, direction, compared)
    report.data["fields"][problem.name] = {
        "title": case.title,
        "rtol": case.rtol,
        **{direction: {line.name: line.plain() for line in ones} for direction, ones in found.items()},
    }
    return found


def _some(rtols: Sequence[float], rtol: float) -> list[float]:
    """``rtol`` and its two neighbours: enough for a line."""
    place = rtols.index(rtol)
    return list(rtols[max(0, place - 1) : place + 2])
