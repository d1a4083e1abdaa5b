"""``pynode crosscheck``: a built-in problem, or the user's own, solved and differentiated in every way there is."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pynode.crosscheck.report import Row
from pynode.crosscheck.run import crosscheck
from pynode.errors import InputError, explain
from pynode.problems import PROBLEMS, Instance, Problem, problem_from_name
from pynode.sensealg_names import sensealg_from_name
from pynode.user_module import user_attribute

_FORM = (
    "(f, y0, t) or (f, y0, t, loss), a dictionary of them, a pynode problem, or a callable that returns one of these"
)


def main(argv: list[str]) -> int:
    """Run the cross-check.

    Returns
    -------
    int
        0 if all combinations agree, 1 if some disagree beyond their tolerances (or nothing could be compared).
    """
    options = _parser().parse_args(argv)
    if options.list:
        width = max(map(len, PROBLEMS))
        for problem in PROBLEMS.values():
            marks = [m for m, on in (("analytic", problem.analytic), ("stiff", problem.stiff)) if on]
            marks += ["chaotic"] if problem.chaotic else []
            print(f"{problem.name.ljust(width)}  {problem.title}" + (f" [{', '.join(marks)}]" if marks else ""))
        return 0
    if options.problem is None:
        raise InputError(
            explain("no --problem was given", "a built-in problem or MODULE:ATTRIBUTE", "see pynode crosscheck --list")
        )
    for path in (options.json, options.plot):
        if path is not None and not path.resolve().parent.is_dir():
            raise InputError(explain(f"cannot write {path}", "an existing folder", f"mkdir -p {path.parent}"))
    if options.plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise InputError(
            explain("--plot needs matplotlib", "it to be installed", "pip install 'pynode[plot]', or drop --plot")
        )
    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    chosen: dict[str, Any] = {
        "backends": options.backends,
        "algorithms": options.algorithms,
        "sensealgs": options.sensealgs and [sensealg_from_name(name) for name in options.sensealgs],
        "oracles": options.oracles,
        "rtol": options.rtol,
        "atol": options.atol,
        "tolerances": options.tolerances or (),
        "seed": options.seed,
        "repeats": options.repeats,
        "reference": options.reference,
        "progress": _show_progress,
    }
    if ":" in options.problem:
        if dtype is not None:
            raise InputError(
                explain("--dtype with a problem of your own", "a built-in problem", "choose the dtype in your module")
            )
        report = crosscheck(**user_problem(options.problem), **chosen)
    else:
        problem = problem_from_name(options.problem)
        report = crosscheck(problem.build(dtype=dtype or torch.float64, seed=options.seed), **chosen)
    report.print()
    if options.json is not None:
        report.to_json(options.json)
    if options.plot is not None:
        report.plot(options.plot)
    return 0 if report.ok else 1


def user_problem(name: str) -> dict[str, Any]:
    """The arguments of :func:`pynode.crosscheck` from ``MODULE:ATTRIBUTE``, found from the current folder too.

    Raises
    ------
    InputError
        Saying what is missing.
    """
    found = user_attribute(name, "--problem", _FORM)
    if callable(found) and not isinstance(found, Problem | Instance):
        found = found()
    return _arguments(name, found)


def _arguments(name: str, found: Any) -> dict[str, Any]:
    keys = ("f", "y0", "t", "loss")
    if isinstance(found, Problem | Instance):
        return {"f": found}
    if isinstance(found, tuple | list) and len(found) in (3, 4):
        return dict(zip(keys, found, strict=False))
    if isinstance(found, dict) and set(keys[:3]) <= found.keys() <= {*keys, "args", "params"}:
        return dict(found)
    what = f"of type {type(found).__name__}"
    if isinstance(found, tuple | list):
        what += f" and length {len(found)}"
    elif isinstance(found, dict):
        what += f" with keys {', '.join(map(str, found))}"
    raise InputError(explain(f"{name} is {what}", _FORM, "return f, y0, t"))


def _show_progress(row: Row, number: int, count: int) -> None:
    """One line on a terminal that each row overwrites; nothing in a pipe or a file."""
    if sys.stderr.isatty():
        text = "" if number == count else f"{number} of {count}: {row.algorithm} {row.sensealg}"
        print(f"\r{text[:78]:<78}\r", end="", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pynode crosscheck",
        description="Solve and differentiate a problem with every backend, algorithm, sensitivity algorithm and oracle "
        "present, and compare with a float64 reference. Exit status 1 if something disagrees beyond its tolerance.",
    )
    add = parser.add_argument
    add("--list", action="store_true", help="print the built-in problems")
    add("--problem", metavar="NAME", help=f"a built-in problem, or MODULE:ATTRIBUTE of yours: {_FORM}")
    add("--rtol", type=_positive, metavar="X", help="relative tolerance (the problem's own, or 1e-6)")
    add("--atol", type=_positive, metavar="X", help="absolute tolerance (the problem's own, or 1e-8)")
    add("--tolerances", type=_each(_positive), metavar="X,...", help="relative tolerances to sweep, for --plot")
    add("--algorithms", type=_each(str), metavar="A,...", help="integrators (Tsit5,DP5,Vern7); Julia's with julia")
    add("--sensealgs", type=_each(str), metavar="A,...", help="sensitivity algorithms (all)")
    add("--backends", type=_each(str), metavar="A,...", help="backends (all)")
    add("--oracles", type=_each(str), metavar="A,...", help="scipy, torchdiffeq, diffrax (all installed; none: '')")
    add("--dtype", choices=("float32", "float64"), help="of a built-in problem (float64)")
    add("--reference", default="Vern9", metavar="NAME", help="Vern9, scipy or scipy:METHOD (%(default)s)")
    add("--repeats", type=int, default=3, metavar="N", help="timed gradients of each combination (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of everything random (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write all numbers there")
    add("--plot", type=Path, metavar="FILE", help="draw gradient error against time; needs matplotlib")
    return parser


def _each(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    def split(text: str) -> list[Any]:
        return [kind(part.strip()) for part in text.split(",") if part.strip()]

    return split


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive finite number")
    return value
