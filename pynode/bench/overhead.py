"""What a solve and its gradient cost beside the bare field, next to torchdiffeq, at equal tolerances.

Everything runs in one process on one thread, in alternating slots. Evaluations are counted by hooks on the field in
separate, untimed runs (in a compiled step, by pynode's own statistics). Errors are relative, against float64 at 1e-12,
and root mean squares over several draws of field and initial state, because near float32's precision a single one is
luck.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import inspect
from collections.abc import Iterator, Sequence

import torch

import pynode
from pynode.bench import Report
from pynode.bench.contestants import Pynode, Solver, TorchDiffEq, final, gradient, torchdiffeq
from pynode.bench.distance import error, root_mean_square
from pynode.bench.fields import CASES, Case
from pynode.bench.overhead_tables import (
    ADJOINT,
    BACKPROP,
    BARE,
    COMPILED,
    OURS,
    PEER,
    Row,
    claims,
    forward_table,
    gradient_table,
)
from pynode.bench.reference import Reference, crosscheck, reference
from pynode.bench.timing import Timing, alternate
from pynode.bench.work import work_of_forward, work_of_gradient

SUMMARY = "cost beside the bare field and beside torchdiffeq"

FORWARD: dict[str, Solver] = {
    "torchdiffeq dopri5": TorchDiffEq(),
    "pynode DP5": Pynode(algorithm=pynode.DP5()),
    "pynode Tsit5": Pynode(algorithm=pynode.Tsit5()),
}

GRADIENT: dict[str, Solver] = {
    "torchdiffeq odeint_adjoint": TorchDiffEq("odeint_adjoint"),
    "torchdiffeq odeint_adjoint, seminorm": TorchDiffEq("odeint_adjoint", adjoint_options={"norm": "seminorm"}),
    "torchdiffeq odeint, backprop": TorchDiffEq(),
    "pynode DP5 default": Pynode(algorithm=pynode.DP5()),
    "pynode DP5 DirectAdjoint": Pynode(algorithm=pynode.DP5(), sensealg=pynode.DirectAdjoint()),
    "pynode DP5 BacksolveAdjoint": Pynode(algorithm=pynode.DP5(), sensealg=pynode.BacksolveAdjoint()),
    "pynode Tsit5 default": Pynode(algorithm=pynode.Tsit5()),
}

if "compile" in inspect.signature(pynode.solve).parameters:
    FORWARD[COMPILED] = GRADIENT[COMPILED] = Pynode(algorithm=pynode.DP5(), compile="step")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this experiment."""
    parser.add_argument("--repeats", type=int, default=60, help="rounds of slots (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=5, help="fields whose errors are averaged (default: %(default)s)")
    parser.add_argument("--eager", action="store_true", help="leave out what torch.compile must compile first")
    parser.add_argument("--quick", action="store_true", help="5 rounds and 1 draw: a look, not a measurement")


def run(options: argparse.Namespace) -> Report:
    """Measure every case."""
    torchdiffeq()
    rounds, draws = (5, 1) if options.quick else (options.repeats, options.draws)
    solvers = [{k: v for k, v in x.items() if not (options.eager and k == COMPILED)} for x in (FORWARD, GRADIENT)]
    return measure([[make(seed) for seed in range(draws)] for make in CASES.values()], rounds, *solvers)


def measure(
    cases: Sequence[Sequence[Case]], rounds: int, forward: dict[str, Solver], gradients: dict[str, Solver]
) -> Report:
    """The experiment.

    Parameters
    ----------
    cases : sequence of draws of a case
        The first draw of each is timed, the errors are of all.
    rounds : int
    forward, gradients : dict of name to solver
    """
    report = Report([], [])
    for draws in cases:
        case, name = draws[0], draws[0].name
        references = [reference(draw) for draw in draws]
        peer, solution_gap, gradient_gap = crosscheck(case, references[0])
        report.notes.append(
            f"{name}: the float64 reference (Vern9 at 1e-12) is {solution_gap:.0e} from {peer}, its gradient "
            f"{gradient_gap:.0e} from finite differences along a random direction; relative errors, root mean square "
            f"of {len(draws)} draw(s)."
        )
        solved = _forward(forward, draws, references, rounds)
        pulled = _gradient(gradients, draws, references, rounds)
        report.tables += [forward_table(case, solved), gradient_table(case, pulled)]
        report.claims += claims(name, solved, pulled)
        report.ratios |= {
            f"{name} {direction}: {row} over {peer}": 1.0 / values["faster"]
            for direction, found, peer in (("forward", solved, PEER), ("gradient", pulled, ADJOINT))
            for row, values in found.items()
            if row.startswith("pynode")
        }
        report.data[name] = {
            "title": case.title,
            "forward": {row: _plain(values) for row, values in solved.items()},
            "gradient": {row: _plain(values) for row, values in pulled.items()},
            "reference": {"peer": peer, "solution": solution_gap, "finite_difference": gradient_gap},
        }
    report.notes.append(
        "times in ms a call; 'faster' is the median over rounds of the peer's time over the row's, in the same round; "
        "'each / bare f' is the time over that of as many evaluations of the bare field."
    )
    return report


def each(draws: Sequence[Case]) -> Iterator[Case]:
    """The draws, one after another in the first one's field: whatever was compiled for it serves for all."""
    field, own = draws[0].field, copy.deepcopy(draws[0].field.state_dict())
    for draw in draws:
        field.load_state_dict(own if draw is draws[0] else draw.field.state_dict())
        yield dataclasses.replace(draw, field=field)
    field.load_state_dict(own)


def _forward(
    solvers: dict[str, Solver], draws: Sequence[Case], references: Sequence[Reference], rounds: int
) -> dict[str, Row]:
    case = draws[0]
    rows: dict[str, Row] = {}
    for name, solver in solvers.items():
        work = work_of_forward(solver, case)
        errors = [error(final(solver, c), r.final) for c, r in zip(each(draws), references, strict=True)]
        steps = solver.steps(case)
        rows[name] = {"evaluations": work.evaluations, "steps": steps, "error": root_mean_square(errors)}

    def bare() -> None:
        with torch.no_grad():
            for _ in range(calls):
                case.field(case.t[0], case.y0)

    # One slot of the bare field is as long as the evaluations of one solve.
    calls = int(rows[OURS]["evaluations"])
    contestants = {name: functools.partial(final, solver, case) for name, solver in solvers.items()}
    timings = alternate({**contestants, BARE: bare}, rounds)
    timings[BARE] = Timing(tuple(sample / calls for sample in timings[BARE].samples))
    for name, row in rows.items():
        row["timing"] = timings[name]
        row["faster"] = timings[PEER].over(timings[name])
        row["per_evaluation"] = timings[name].over(timings[BARE]) / row["evaluations"]
    rows[BARE] = {"timing": timings[BARE], "evaluations": 1, "per_evaluation": 1.0}
    return rows


def _gradient(
    solvers: dict[str, Solver], draws: Sequence[Case], references: Sequence[Reference], rounds: int
) -> dict[str, Row]:
    case = draws[0]
    rows: dict[str, Row] = {}
    for name, solver in solvers.items():
        forward, backward = work_of_gradient(solver, case)
        errors = [error(gradient(solver, c), r.gradient) for c, r in zip(each(draws), references, strict=True)]
        rows[name] = {
            "forward": forward.evaluations,
            "backward": backward.evaluations,
            "pullbacks": forward.pullbacks + backward.pullbacks,
            "steps": solver.steps(case),
            "error": root_mean_square(errors),
        }
    contestants = {name: functools.partial(gradient, solver, case) for name, solver in solvers.items()}
    timings = alternate(contestants, rounds)
    for name, row in rows.items():
        row["timing"] = timings[name]
        row["faster"] = timings[ADJOINT].over(timings[name])
        row["faster_backprop"] = timings[BACKPROP].over(timings[name])
    return rows


def _plain(row: Row) -> Row:
    timing: Timing = row["timing"]
    rest = {key: value for key, value in row.items() if key != "timing"}
    return {"median": timing.median, "min": timing.minimum, **rest, "samples": list(timing.samples)}
