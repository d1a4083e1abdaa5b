"""Evaluations that each step-size controller needs for the same error, on DETEST.

Every controller solves every problem with every method over a range of tolerances. Its error is the largest at the end
of any step, against a solution to 1e-13; ``log(evaluations)`` is fitted by a parabola in ``log(error)``, and two
controllers are compared where their errors overlap: at equal measured error, whatever tolerance each took for it. To
choose and to judge on the same problems would flatter the winner: the best controller on every second problem is
reported on the others, and the other way round.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import pynode
from pynode.bench import Claim, Report, Table
from pynode.bench.solver_runs import built
from pynode.bench.step_controllers import CONTROLLERS
from pynode.errors import SolveError
from pynode.problems import DETEST

SUMMARY = "evaluations of every step-size controller at equal error, on DETEST"

#: The methods, and the smallest tolerance each is asked for.
METHODS = {"BS3": 1e-7, "Tsit5": 1e-10, "DP5": 1e-10, "Vern7": 1e-10, "Vern9": 1e-10, "DP8": 1e-10}

TOLERANCES = tuple(10.0**-n for n in range(3, 11))

Array = NDArray[np.float64]
#: Error and evaluations of one solve; None where it failed.
Point = tuple[float, int] | None
Key = tuple[str, str, str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this experiment."""
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--problems", nargs="+", choices=DETEST, default=list(DETEST), metavar="PROBLEM")
    parser.add_argument("--controllers", nargs="+", choices=CONTROLLERS, default=list(CONTROLLERS), metavar="NAME")
    parser.add_argument("--tightest", type=float, default=1e-10, metavar="RTOL", help="smallest tolerance (1e-10)")
    parser.add_argument("--keep", metavar="FILE", type=Path, help="append every solve to FILE, and go on from it")


def run(options: argparse.Namespace) -> Report:
    """Measure, and say what came of it."""
    names = list(dict.fromkeys([next(iter(CONTROLLERS)), *options.controllers]))
    points = _solved(names, options.methods, options.problems, options.tightest, options.keep)
    tables, claims = [], []
    data: dict[str, Any] = {}
    for method in options.methods:
        ratios = {name: _ratios(points, name, names[0], method, options.problems) for name in names}
        data[method] = ratios
        plain = {name: _at_equal_tolerance(points, name, names[0], method, options.problems) for name in names}
        tables.append(_table(method, ratios, plain, options.problems))
        claims += _held_out(method, ratios, options.problems)
    if len(options.methods) > 1:
        tables.append(_summary(data, names))
    return Report(tables, claims, data={"ratios": data})


def _solved(
    names: Sequence[str], methods: Iterable[str], problems: Sequence[str], tightest: float, keep: Path | None
) -> dict[Key, Point]:
    points: dict[Key, Point] = {}
    if keep is not None and keep.exists():
        for line in keep.read_text(encoding="utf-8").splitlines():
            key, point = json.loads(line)
            points[tuple(key)] = None if point is None else tuple(point)
    for method, problem, name in itertools.product(methods, problems, names):
        for rtol in TOLERANCES:
            key = (method, problem, name, f"{rtol:.0e}")
            if rtol < 0.99 * max(METHODS[method], tightest) or key in points:
                continue
            points[key] = point = solve_once(problem, method, name, rtol)
            if keep is not None:
                with keep.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([key, point]) + "\n")
    return points


def solve_once(problem: str, method: str, controller: str, rtol: float) -> Point:
    """Largest error at the end of any step (scaled by one more than the state) and evaluations of one solve."""
    instance = built(problem)
    try:
        with torch.no_grad():
            sol = pynode.solve(
                instance.field,
                instance.y0,
                instance.t[[0, -1]],
                algorithm=method,
                rtol=rtol,
                atol=rtol,
                controller=CONTROLLERS[controller],
                saveat=pynode.SaveAt(steps=True, dense=False),
            )
    except SolveError:
        return None
    exact = reference(problem, sol.ts.numpy())
    error = np.max(np.abs(sol.ys.flatten(1).numpy() - exact) / (1.0 + np.abs(exact)))
    return float(error), sol.stats.forward.nfe


@functools.cache
def _nodes(problem: str) -> tuple[Array, Array, Array]:
    """Times (m,) so close that cubic Hermite interpolation between them is exact to 1e-12, states and rates (m, n)."""
    instance = built(problem)
    options: dict[str, Any] = {"algorithm": "Vern9", "rtol": 1e-13, "atol": 1e-13}
    with torch.no_grad():
        ends = instance.t[[0, -1]]
        steps = pynode.solve(instance.field, instance.y0, ends, saveat=pynode.SaveAt(steps=True), **options).ts
        fine = steps[:-1, None] + torch.linspace(0.0, 1.0, 49, dtype=torch.float64)[:-1] * steps.diff()[:, None]
        ts = torch.cat([fine.reshape(-1), steps[-1:]])
        ys = pynode.solve(instance.field, instance.y0, ends, saveat=ts, **options).ys
        rates = torch.stack([instance.field(t, y) for t, y in zip(ts, ys, strict=True)])
    return ts.numpy(), ys.flatten(1).numpy(), rates.flatten(1).numpy()


def reference(problem: str, times: Array) -> Array:
    """The solution (m, n) of a problem at ``times`` (m,)."""
    ts, ys, rates = _nodes(problem)
    left = np.clip(np.searchsorted(ts, times, side="right") - 1, 0, len(ts) - 2)
    h = (ts[left + 1] - ts[left])[:, None]
    s = (times - ts[left])[:, None] / h
    rise = ys[left + 1] - ys[left]
    start, end = h * rates[left] - rise, rise - h * rates[left + 1]
    found: Array = ys[left] + s * rise + s * (1 - s) * ((1 - s) * start + s * end)
    return found


def _curve(points: dict[Key, Point], method: str, problem: str, name: str) -> tuple[Array, Array] | None:
    """``log(error)`` and ``log(evaluations)`` over the tolerances; None where fewer than three solves succeeded."""
    found = [points.get((method, problem, name, f"{rtol:.0e}")) for rtol in TOLERANCES]
    solved = [point for point in found if point is not None and point[0] > 0.0]
    if len(solved) < 3:
        return None
    error, nfe = np.array(solved).T
    return np.log(error), np.log(nfe)


def _ratios(
    points: dict[Key, Point], name: str, base: str, method: str, problems: Iterable[str]
) -> dict[str, float | None]:
    """Per problem: evaluations over those of ``base`` at equal error, averaged over the common range of errors."""
    ratios: dict[str, float | None] = {}
    for problem in problems:
        ours, theirs = _curve(points, method, problem, name), _curve(points, method, problem, base)
        ratios[problem] = None if ours is None or theirs is None else at_equal_error(ours, theirs)
    return ratios


def at_equal_error(ours: tuple[Array, Array], theirs: tuple[Array, Array]) -> float | None:
    """Geometric mean over the common range of errors of the work of one curve over another's; None without one."""
    low, high = max(ours[0].min(), theirs[0].min()), min(ours[0].max(), theirs[0].max())
    if not low < high:
        return None
    grid = np.linspace(low, high, 33)
    mine, other = (np.polyval(np.polyfit(x, y, 2 if len(x) > 4 else 1), grid) for x, y in (ours, theirs))
    return float(np.exp(np.mean(mine - other)))


def _at_equal_tolerance(
    points: dict[Key, Point], name: str, base: str, method: str, problems: Iterable[str]
) -> tuple[float, float]:
    """Errors and evaluations over those of ``base`` at the same tolerances, geometric means."""
    errors, work = [], []
    for problem, rtol in itertools.product(problems, TOLERANCES):
        ours, theirs = (points.get((method, problem, which, f"{rtol:.0e}")) for which in (name, base))
        if ours is not None and theirs is not None and ours[0] > 0.0 < theirs[0]:
            errors.append(ours[0] / theirs[0])
            work.append(ours[1] / theirs[1])
    return geometric_mean(errors), geometric_mean(work)


def geometric_mean(ratios: Iterable[float | None]) -> float:
    """Over what is there; NaN where nothing is."""
    logs = [math.log(x) for x in ratios if x is not None]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def _table(
    method: str,
    ratios: dict[str, dict[str, float | None]],
    plain: dict[str, tuple[float, float]],
    problems: Sequence[str],
) -> Table:
    rows = []
    for name, found in ratios.items():
        values = [x for x in found.values() if x is not None]
        spread = (min(values), float(np.median(values)), max(values)) if values else (math.nan,) * 3
        halves = [geometric_mean(found[problem] for problem in problems[i::2]) for i in (0, 1)]
        error, work = plain[name]
        cells = [geometric_mean(values), *spread, *halves, work, error]
        rows.append((name, *(f"{x:.3f}" for x in cells), str(len(problems) - len(values))))
    title = f"{method}: evaluations over those of {next(iter(ratios))} at equal error, {len(problems)} DETEST problems"
    columns = ("", "mean", "least", "median", "largest", "first half", "second half")
    more = ("equal tolerance", "its error", "failed")
    return Table(title, (*columns, *more), rows)


def _held_out(method: str, ratios: dict[str, dict[str, float | None]], problems: Sequence[str]) -> list[Claim]:
    claims = []
    for chosen_on, judged_on in ((problems[::2], problems[1::2]), (problems[1::2], problems[::2])):
        means = {name: geometric_mean(found[problem] for problem in chosen_on) for name, found in ratios.items()}
        best = min(means, key=lambda name: means[name] if means[name] == means[name] else math.inf)
        value = geometric_mean(ratios[best][problem] for problem in judged_on)
        half = "second" if judged_on == problems[1::2] else "first"
        claims.append(
            Claim(f"{method}: {best}, the best on the other half, has {value:.3f} on the {half}", value, None)
        )
    return claims


def _summary(data: dict[str, dict[str, dict[str, float | None]]], names: Sequence[str]) -> Table:
    rows = [(name, *(f"{geometric_mean(data[method][name].values()):.3f}" for method in data)) for name in names]
    return Table("evaluations over those of the first at equal error, mean of all problems", ("", *data), rows)
