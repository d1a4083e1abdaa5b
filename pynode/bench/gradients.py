"""Gradients: error against work for every sensitivity algorithm, the seminorm's saving, and speed beside torchdiffeq.

Three parts. ``work``: a work-precision table for each built-in problem, and the ratio of backward to forward
evaluations, counted where they happen and anew for every solve. ``seminorm``: a neural CDE under the adjoint's error
norms. ``speed``: the spiral beside ``torchdiffeq.odeint_adjoint``, in alternating slots on one thread.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from typing import Any

import pynode
from pynode.bench import Claim, Report, Table, seminorm, work_precision
from pynode.bench.contestants import Pynode, Solver, TorchDiffEq, gradient
from pynode.bench.distance import error, root_mean_square
from pynode.bench.fields import spiral
from pynode.bench.overhead import each
from pynode.bench.overhead_tables import ADJOINT, BACKPROP
from pynode.bench.reference import reference
from pynode.bench.timing import alternate

SUMMARY = "gradient error against work, the seminorm, speed beside torchdiffeq's adjoint"

PARTS = ("work", "seminorm", "speed")

#: What an adjoint solve may leave where the forward solve is held to 1e-7: its error stays below the peer's.
_LOOSER = {"rtol": 1e-5, "atol": 1e-7}


def solvers(eager: bool) -> dict[str, Solver]:
    """The contestants on the spiral, all with DP5 and the same forward tolerances."""
    sensealgs: dict[str, pynode.SensitivityAlgorithm] = {
        "CheckpointedAdjoint": pynode.CheckpointedAdjoint(),
        "DirectAdjoint": pynode.DirectAdjoint(),
        "GaussAdjoint": pynode.GaussAdjoint(),
        "GaussAdjoint, 1e-5/1e-7": pynode.GaussAdjoint(**_LOOSER),  # type: ignore[arg-type]
        "QuadratureAdjoint, 1e-5/1e-7": pynode.QuadratureAdjoint(**_LOOSER),  # type: ignore[arg-type]
        "InterpolatingAdjoint": pynode.InterpolatingAdjoint(),
        "InterpolatingAdjoint, 1e-5/1e-7": pynode.InterpolatingAdjoint(**_LOOSER),  # type: ignore[arg-type]
        "BacksolveAdjoint": pynode.BacksolveAdjoint(),
    }
    found: dict[str, Solver] = {ADJOINT: TorchDiffEq("odeint_adjoint"), BACKPROP: TorchDiffEq()}
    for name, sensealg in sensealgs.items():
        found[name] = Pynode(algorithm=pynode.DP5(), sensealg=sensealg)
        compilable = isinstance(sensealg, pynode.CheckpointedAdjoint | pynode.GaussAdjoint | pynode.QuadratureAdjoint)
        if compilable and not eager:
            found[f"{name}, compile='step'"] = Pynode(algorithm=pynode.DP5(), sensealg=sensealg, compile="step")
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this experiment."""
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part (may be repeated)")
    parser.add_argument("--draws", type=int, default=5, help="fields over which medians are taken (%(default)s)")
    parser.add_argument("--repeats", type=int, default=40, help="rounds of slots of the speed part (%(default)s)")
    parser.add_argument("--eager", action="store_true", help="leave out what torch.compile must compile first")
    parser.add_argument(
        "--quick", action="store_true", help="few problems, draws and rounds: a look, not a measurement"
    )


def run(options: argparse.Namespace) -> Report:
    """The parts that were asked for."""
    parts = options.part or PARTS
    report = Report([], [])
    draws, repeats = (1, 3) if options.quick else (options.draws, options.repeats)
    if "work" in parts:
        names = ("linear", "spiral") if options.quick else work_precision.NAMES
        tolerances = work_precision.TOLERANCES[:2] if options.quick else work_precision.TOLERANCES
        tables, rows = work_precision.measure(names, tolerances)
        report.tables += tables
        report.data["work"] = [
            {"problem": problem, "sensealg": name, "rtol": tolerance, **dataclasses.asdict(one)}
            for (problem, name, tolerance), one in rows.items()
            if one is not None
        ]
    if "seminorm" in parts:
        tables, claims, found = seminorm.measure(draws)
        report.tables += tables
        report.claims += claims
        report.data["seminorm"] = [
            {"control": control, "sensealg": name, "rtol": rtol, "draws": [dataclasses.asdict(one) for one in ones]}
            for (control, name, rtol), ones in found.items()
        ]
    if "speed" in parts:
        table, claims, data = speed(draws, repeats, solvers(options.eager))
        theirs = (ADJOINT, BACKPROP)
        report.ratios |= {f"{k} over {ADJOINT}": 1.0 / row["faster"] for k, row in data.items() if k not in theirs}
        report.tables.append(table)
        report.claims += claims
        report.data["speed"] = data
    return report


def speed(draws: int, rounds: int, contestants: dict[str, Solver]) -> tuple[Table, list[Claim], dict[str, Any]]:
    """Time and error of the gradient of ``sum(y(1)**2)`` on the spiral, over that of ``odeint_adjoint``."""
    cases = [spiral(seed) for seed in range(draws)]
    exact = [reference(case).gradient for case in cases]
    errors = {
        name: root_mean_square(
            [error(gradient(solver, case), found) for case, found in zip(each(cases), exact, strict=True)]
        )
        for name, solver in contestants.items()
    }
    timings = alternate(
        {name: functools.partial(gradient, solver, cases[0]) for name, solver in contestants.items()}, rounds
    )
    faster = {name: timings[ADJOINT].over(timing) for name, timing in timings.items()}
    rows = [
        (
            name,
            f"{timings[name].median * 1e3:.2f}",
            f"{timings[name].minimum * 1e3:.2f}",
            f"{faster[name]:.2f}",
            f"{errors[name]:.1e}",
        )
        for name in contestants
    ]
    columns = ("", "median ms", "min ms", "faster than odeint_adjoint", "gradient error")
    table = Table(f"gradient, {cases[0].title}; forward DP5 throughout", columns, list(rows))
    # The peer has to be beaten at no larger error by two different sensitivity algorithms.
    good = {
        name.partition(",")[0]: faster[name]
        for name in sorted(contestants, key=faster.__getitem__)
        if name not in (ADJOINT, BACKPROP) and errors[name] <= errors[ADJOINT]
    }
    best = sorted(good.items(), key=lambda item: -item[1])[:2]
    text = " and ".join(f"{name} {ratio:.1f}x" for name, ratio in best)
    least = min((ratio for _, ratio in best), default=0.0)
    text += " as fast as odeint_adjoint at no larger gradient error (two, >= 15)"
    claim = Claim(text, least, len(best) == 2 and least >= 15.0)
    data = {
        name: {"median": timings[name].median, "faster": faster[name], "error": errors[name]} for name in contestants
    }
    return table, [claim], data
