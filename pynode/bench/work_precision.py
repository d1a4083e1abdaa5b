"""Gradient error against work on the built-in problems, and what a backward pass costs beside the forward one."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

import pynode
from pynode.bench import Table
from pynode.bench.seminorm import Gradient, Task, measured, reference
from pynode.errors import GradientError, SolveError
from pynode.problems import PROBLEMS

NAMES = ("linear", "lotka-volterra", "vanderpol", "lorenz", "spiral", "heat", "brusselator-1d", "cde")

TOLERANCES = (1e-3, 1e-5, 1e-7, 1e-9)

SENSEALGS: dict[str, Callable[[], pynode.SensitivityAlgorithm]] = {
    "DirectAdjoint": pynode.DirectAdjoint,
    "CheckpointedAdjoint": pynode.CheckpointedAdjoint,
    "CheckpointedAdjoint(checkpoints=8)": lambda: pynode.CheckpointedAdjoint(checkpoints=8),
    "BacksolveAdjoint": pynode.BacksolveAdjoint,
    "BacksolveAdjoint(norm='full')": lambda: pynode.BacksolveAdjoint(norm="full"),
    "InterpolatingAdjoint": pynode.InterpolatingAdjoint,
    "InterpolatingAdjoint(checkpointing)": lambda: pynode.InterpolatingAdjoint(checkpointing=True),
    "QuadratureAdjoint": pynode.QuadratureAdjoint,
    "GaussAdjoint": pynode.GaussAdjoint,
    "ForwardSensitivity": pynode.ForwardSensitivity,
}

#: Differentiated numbers up to which forward sensitivities are taken at all.
FEW = 100

Rows = dict[tuple[str, str, float], Gradient | None]


def measure(names: tuple[str, ...], tolerances: tuple[float, ...]) -> tuple[list[Table], Rows]:
    """Every sensitivity algorithm on every problem, DP5 at ``rtol = tolerance``, ``atol = tolerance / 100``, float64.

    None stands for a gradient that was refused (BacksolveAdjoint where the state cannot be integrated backward) or not
    tried (ForwardSensitivity with more than ``FEW`` inputs).
    """
    rows: Rows = {}
    for problem in names:
        instance = PROBLEMS[problem].build(dtype=torch.float64, seed=0)
        task = Task(instance.field, instance.y0, instance.t, instance.loss)
        exact = reference(task)
        count = sum(x.numel() for x in exact)
        for name, make in SENSEALGS.items():
            for tolerance in tolerances:
                one: Gradient | None = None
                if name != "ForwardSensitivity" or count <= FEW:
                    try:
                        one = measured(task, exact, make(), tolerance, 1e-2 * tolerance, pynode.DP5())
                    except (GradientError, SolveError):
                        one = None
                rows[problem, name, tolerance] = one
    tables = [_table(rows, problem, tolerances) for problem in names]
    return [*tables, _ratios(rows, names, tolerances)], rows


def _table(rows: Rows, problem: str, tolerances: tuple[float, ...]) -> Table:
    def cell(one: Gradient | None) -> str:
        return "-" if one is None else f"{one.error:.0e} {one.nfe}+{one.nvjp} {1e3 * one.seconds:.0f} ms"

    cells = [(name, *(cell(rows[problem, name, tolerance]) for tolerance in tolerances)) for name in SENSEALGS]
    title = f"{problem}: gradient error, evaluations + pullbacks of the backward pass, its time; DP5, float64"
    return Table(title, ("", *(f"rtol {tolerance:g}" for tolerance in tolerances)), list(cells))


def _ratios(rows: Rows, names: tuple[str, ...], tolerances: tuple[float, ...]) -> Table:
    """Backward over forward evaluations of f."""

    def cell(name: str, tolerance: float) -> str:
        found = [rows[problem, name, tolerance] for problem in names]
        ratios = [one.nfe / one.forward for one in found if one is not None]
        return f"{min(ratios):.2f} {statistics.median(ratios):.2f} {max(ratios):.2f}" if ratios else "-"

    cells = [(name, *(cell(name, tolerance) for tolerance in tolerances)) for name in SENSEALGS]
    title = f"backward over forward evaluations of f, least, median and largest of {len(names)} problems"
    return Table(title, ("", *(f"rtol {tolerance:g}" for tolerance in tolerances)), list(cells))
