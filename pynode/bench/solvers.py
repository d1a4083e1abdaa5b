"""Error, evaluations and steps of the adaptive solvers on public test sets, next to SciPy's nearest method.

DETEST (25 non-stiff problems) for the explicit and multistep methods, the stiff set (van der Pol, ROBER, HIRES, OREGO,
POLLU, BRUSS) for the implicit ones, at the same rtol and atol for both libraries. The error is that of the state at the
end against a published or much tighter solution, ``max |y - y_ref| / (scale + |y_ref|)``, which a solver that keeps its
tolerance in every step keeps near rtol; for DETEST also the largest of that at the ends of all steps, as at the end
alone, where many of these problems rest or errors of both signs have met, it is an accident. Work is evaluations of f,
plus the number of columns for every Jacobian, both counted in f itself, for both libraries (SciPy gets its Jacobian
from autograd).

Promised: the error is at most 3 times that of SciPy's nearest method at the same tolerance, and within 10 times the
tolerance wherever SciPy's is. Everything else is listed, by the largest error where it is known; the errors at the end
are counted next to it.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pynode.algorithms import ALGORITHMS
from pynode.bench import Claim, Report, Table, solver_runs
from pynode.bench.solver_log import RunLog
from pynode.bench.solver_runs import Run
from pynode.errors import InputError, explain
from pynode.problems import DETEST, STIFF

SUMMARY = "work and precision of the solvers on DETEST and the stiff set, next to SciPy"

#: SciPy's nearest method: of the same order and kind, or the nearest that there is.
NEAREST = {
    **dict.fromkeys(("BS3", "AdaptiveHeun", "Fehlberg2"), "RK23"),
    **dict.fromkeys(("DP5", "Tsit5"), "RK45"),
    **dict.fromkeys(("Vern7", "Vern9", "DP8"), "DOP853"),
    "VCABM": "LSODA",
    **dict.fromkeys(
        ("Rosenbrock23", "Rodas4", "Rodas5P", "TRBDF2", "KenCarp4", "Kvaerno5", "RadauIIA5", "RadauIIA9"), "Radau"
    ),
    **dict.fromkeys(("FBDF", "QNDF"), "BDF"),
}
#: What is run by default, as far as this version has it. The stiff methods of low order are left out at tight rtol.
NONSTIFF = ("DP5", "Tsit5", "Vern7", "Vern9", "DP8", "VCABM")
STIFF_METHODS = (
    *("Rosenbrock23", "TRBDF2", "KenCarp4", "Kvaerno5", "Rodas4", "Rodas5P"),
    *("RadauIIA5", "RadauIIA9", "FBDF", "QNDF"),
)
LOW_ORDER = {"BS3": 1e-7, "Rosenbrock23": 1e-7, "TRBDF2": 1e-7, "RK23": 1e-7, "AdaptiveHeun": 1e-5, "Fehlberg2": 1e-5}
#: Methods of SciPy that are shown in any case.
SHOWN = {"detest": ("RK45", "DOP853", "LSODA"), "stiff": ("Radau", "BDF", "LSODA")}

TOLERANCES = tuple(10.0**-k for k in range(3, 11))

#: Errors below it are rounding, and no better or worse than each other.
FLOOR = 1e-13

Key = tuple[str, str, str, float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this experiment."""
    parser.add_argument("--set", choices=("detest", "stiff", "all"), default="all", help="which problems (all)")
    parser.add_argument("--problems", nargs="+", metavar="NAME", help="these of them only")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="these of pynode's only")
    parser.add_argument("--rtol", nargs="+", type=float, default=list(TOLERANCES), help="1e-3 to 1e-10 by default")
    parser.add_argument(
        "--keep",
        metavar="FILE",
        type=Path,
        help="append every run to FILE as it ends, and take from there what is done",
    )
    parser.add_argument(
        "--patience",
        metavar="SECONDS",
        type=float,
        default=math.inf,
        help="leave out the tighter tolerances of a method on a problem that took longer than this",
    )
    parser.add_argument("--quick", action="store_true", help="three problems and two tolerances: a look")
    parser.add_argument("--plots", metavar="DIR", type=Path, help="write work-precision plots there")


def options_check(options: argparse.Namespace) -> None:
    """Raise InputError for names that do not exist."""
    for what, names, known in (
        ("problem", options.problems, {**DETEST, **STIFF}),
        ("method", options.methods, {name: 0 for name in ALGORITHMS if name in NEAREST}),
    ):
        for name in names or ():
            if name not in known:
                raise InputError(explain(f"no {what} {name!r}", f"one of {', '.join(known)}", "choose one of them"))


def run(options: argparse.Namespace) -> Report:
    """Measure, and say what came of it."""
    options_check(options)
    if options.quick:
        options.problems, options.rtol = options.problems or ["A1", "B1", "vdpol"], [1e-3, 1e-5]
    report = Report([], [])
    runs: dict[Key, Run] = {}
    log = RunLog(options.keep)
    for kind, problems, methods in (("detest", DETEST, NONSTIFF), ("stiff", STIFF, STIFF_METHODS)):
        if options.set not in (kind, "all"):
            continue
        names = [name for name in problems if options.problems is None or name in options.problems]
        chosen = [m for m in methods if m in ALGORITHMS and (options.methods is None or m in options.methods)]
        if options.methods is not None:
            chosen += [m for m in options.methods if m not in chosen and kind == "detest" and m not in STIFF_METHODS]
        if not names:
            continue
        theirs = list(dict.fromkeys((*SHOWN[kind], *(NEAREST[m] for m in chosen))))
        contestants = [*((m, "pynode") for m in chosen), *((m, "scipy") for m in theirs)]
        found = measure(names, contestants, options.rtol, log, options.patience)
        runs |= found
        report.tables += [_table(found, name, contestants, options.rtol) for name in names]
        report.tables.append(_summary(kind, found, names, chosen, options.rtol))
        report.notes += violations(found, names, chosen, options.rtol)
        report.claims += _claims(kind, found, names, chosen, options.rtol)
        if options.plots is not None:
            from pynode.bench.solver_plots import draw

            report.notes.append(f"plot: {draw(kind, found, names, contestants, options.plots)}")
    report.data = {"runs": [dataclasses.asdict(one) for one in runs.values()]}
    return report


def measure(
    names: Sequence[str],
    contestants: Sequence[tuple[str, str]],
    tolerances: Sequence[float],
    log: RunLog,
    patience: float = math.inf,
) -> dict[Key, Run]:
    """Every contestant ``(method, library)`` on every problem at every tolerance that its order is meant for, from
    ``log`` where it has been run; from the loosest on, until one took more than ``patience`` seconds."""
    runs: dict[Key, Run] = {}
    for name in names:
        for method, library in contestants:
            for rtol in sorted(tolerances, reverse=True):
                if rtol < 0.99 * LOW_ORDER.get(method, 0.0):
                    continue
                one = log.find(name, method, library, rtol)
                if one is None:
                    one = solver_runs.run(name, method, library, rtol)
                    log.add(one)
                runs[name, method, library, rtol] = one
                if one.seconds > patience:
                    break
    return runs


def _table(
    runs: dict[Key, Run], name: str, contestants: Sequence[tuple[str, str]], tolerances: Sequence[float]
) -> Table:
    def cell(one: Run | None) -> str:
        if one is None:
            return "-"
        return "failed" if one.error is None else f"{judged(one):.0e} {one.work} {one.accepted}"

    rows = [
        (f"{library} {method}", *(cell(runs.get((name, method, library, rtol))) for rtol in tolerances))
        for method, library in contestants
    ]
    title = f"{name}: {({**DETEST, **STIFF})[name].title}: error, evaluations (+ columns of Jacobians), steps"
    return Table(title, ("", *(f"rtol {rtol:g}" for rtol in tolerances)), rows)


def pairs(
    runs: dict[Key, Run], names: Sequence[str], method: str, tolerances: Sequence[float]
) -> list[tuple[Run, Run]]:
    """A method's runs beside those of SciPy's nearest, where there are both."""
    found = []
    for name in names:
        for rtol in tolerances:
            ours, theirs = (
                runs.get((name, method, "pynode", rtol)),
                runs.get((name, NEAREST[method], "scipy", rtol)),
            )
            if ours is not None and theirs is not None:
                found.append((ours, theirs))
    return found


def judged(one: Run, at_end: bool = False) -> float | None:
    """The error that counts: the largest of all steps where it is known, or that at the end."""
    return one.error if at_end or one.largest is None else one.largest


def verdict(ours: Run, theirs: Run, at_end: bool = False) -> str:
    """Empty, or what of the promise a run breaks."""
    error, other = judged(ours, at_end), judged(theirs, at_end)
    if error is None:
        return "failed" if other is not None else ""
    if other is None:
        return ""
    worse = error > 3.0 * max(other, FLOOR)
    beyond = error > 10.0 * ours.rtol >= other
    return "; ".join(
        [*(["error over 3 times SciPy's"] if worse else []), *(["over 10 times the tolerance"] if beyond else [])]
    )


def violations(
    runs: dict[Key, Run], names: Sequence[str], methods: Sequence[str], tolerances: Sequence[float]
) -> list[str]:
    """Every run that breaks the promise, in words."""
    lines = []
    for method in methods:
        for ours, theirs in pairs(runs, names, method, tolerances):
            broken = verdict(ours, theirs)
            if broken:
                error, other = _cost(ours), _cost(theirs)
                lines.append(
                    f"{ours.problem} {method} at {ours.rtol:g}: {error}, {theirs.method} {other}: {broken}"
                    f"{' (' + ours.failure.split('. ')[0] + ')' if ours.failure else ''}"
                )
    return lines


def _cost(one: Run) -> str:
    error = judged(one)
    return "failed" if error is None else f"{error:.1e} in {one.work}"


def _summary(
    kind: str, runs: dict[Key, Run], names: Sequence[str], methods: Sequence[str], tolerances: Sequence[float]
) -> Table:
    rows: list[tuple[str, ...]] = []
    for method in methods:
        both = pairs(runs, names, method, tolerances)
        kept = [(a, b) for a, b in both if a.error is not None and b.error is not None]
        over = sum(bool(verdict(a, b)) for a, b in both)
        beyond = sum("tolerance" in verdict(a, b) for a, b in both)
        worse = sum("times SciPy" in verdict(a, b) for a, b in both)
        at_end = sum(bool(verdict(a, b, at_end=True)) for a, b in both)
        ratios = [max(judged(a) or 0, FLOOR) / max(judged(b) or 0, FLOOR) for a, b in kept]
        work = [a.work / b.work for a, b in kept]
        equal = [x for name in names if (x := at_equal_error(runs, name, method, tolerances)) is not None]
        rows.append(
            (
                f"{method} / {NEAREST[method]}",
                str(len(both)),
                str(over),
                str(worse),
                str(beyond),
                str(at_end),
                _median(ratios),
                _median(work),
                _median(equal),
                f"{max(equal):.2f}" if equal else "-",
            )
        )
    columns = (
        *("", "runs", "broken", "error > 3x", "> 10 rtol", "broken at the end", "error ratio", "work ratio"),
        *("work at equal error", "worst problem"),
    )
    return Table(f"{kind}: over SciPy's nearest method, medians", columns, rows)


def _median(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f}" if values else "-"


def at_equal_error(runs: dict[Key, Run], name: str, method: str, tolerances: Sequence[float]) -> float | None:
    """Work of a method over that of SciPy's nearest at the same error, the geometric mean over the errors both reach:
    log work is interpolated linearly in log error. None where they share no error."""
    curves = []
    for who, library in ((method, "pynode"), (NEAREST[method], "scipy")):
        points = [runs.get((name, who, library, rtol)) for rtol in tolerances]
        found = [(judged(x), x.work) for x in points if x is not None]
        known = [(math.log(error), math.log(work)) for error, work in found if error and error > FLOOR]
        curves.append(sorted(known))
    ours, theirs = curves
    if len(ours) < 2 or len(theirs) < 2:
        return None
    low, high = max(ours[0][0], theirs[0][0]), min(ours[-1][0], theirs[-1][0])
    if high <= low:
        return None
    places = [low + (high - low) * i / 10 for i in range(11)]
    return math.exp(statistics.fmean(_at(ours, x) - _at(theirs, x) for x in places))


def _at(curve: Sequence[tuple[float, float]], x: float) -> float:
    for (x0, y0), (x1, y1) in itertools.pairwise(curve):
        if x0 <= x <= x1:
            return y0 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return curve[-1][1]


def _claims(
    kind: str, runs: dict[Key, Run], names: Sequence[str], methods: Sequence[str], tolerances: Sequence[float]
) -> list[Claim]:
    claims = []
    both = [pair for method in methods for pair in pairs(runs, names, method, tolerances)]
    text = f"{kind}: error at most 3 times SciPy's, and within 10 tolerances where SciPy's is"
    for where, at_end in (("over the solve", False), ("at the end", True)):
        if both and (at_end or any(ours.largest is not None for ours, _ in both)):
            broken = sum(bool(verdict(*pair, at_end)) for pair in both)
            counted = f"{text}, {where}: {len(both) - broken} of {len(both)} runs"
            claims.append(Claim(counted, broken / len(both), broken == 0))
    if kind == "stiff":
        worst: dict[str, Any] = {}
        for name in names:
            found = {m: x for m in methods if (x := against_radau(runs, name, m, tolerances)) is not None}
            if found:
                best = min(found, key=found.__getitem__)
                worst[name] = (found[best], best)
        for name, (ratio, best) in worst.items():
            text = f"stiff: {name}: work of the best native method ({best}) over Radau's at equal error: {ratio:.2f}"
            claims.append(Claim(text, ratio, ratio <= 1.0))
    return claims


def against_radau(runs: dict[Key, Run], name: str, method: str, tolerances: Sequence[float]) -> float | None:
    """As :func:`at_equal_error`, against Radau whatever is nearest."""
    shown = {key: one for key, one in runs.items() if key[2] == "pynode" or key[1] == "Radau"}
    renamed = {(k[0], NEAREST[method] if k[2] == "scipy" else k[1], k[2], k[3]): v for k, v in shown.items()}
    return at_equal_error(renamed, name, method, tolerances)
