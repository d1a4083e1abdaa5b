"""``pynode validity``: a trained model of the user's under other solvers."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode.errors import InputError, explain
from pynode.training.measure import Batch, as_batches
from pynode.training.metrics import METRICS, Metric
from pynode.training.validity import validity
from pynode.training.validity_report import FLOW
from pynode.user_module import user_attribute

_MODEL = "a torch.nn.Module with a pynode.nn.NeuralODE in it, or a function that returns one"
_DATA = "(x, target), an iterable of such batches, or a function that returns one of these"


def main(argv: list[str]) -> int:
    """Judge a model.

    Returns
    -------
    int
        0 if it is a flow, 1 if it is only its discretisation.
    """
    options = _parser().parse_args(argv)
    for path in (options.json, options.plot):
        if path is not None and not path.resolve().parent.is_dir():
            raise InputError(explain(f"cannot write {path}", "an existing folder", f"mkdir -p {path.parent}"))
    if options.plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise InputError(
            explain("--plot needs matplotlib", "it to be installed", "pip install 'pynode[plot]', or drop --plot")
        )
    torch.manual_seed(options.seed)
    model = user_model(options.model, options.weights)
    metric: Metric | str = options.metric
    if ":" in options.metric:
        metric = user_attribute(options.metric, "--metric", "metric(output, target)")
    report = validity(
        model,
        user_data(options.data, options.batch),
        metric,
        threshold=options.threshold,
        relative=True if options.relative else None,
        solvers=options.solvers,
        factors=options.factors,
        backends=options.backends,
        reference_tolerance=options.reference_tolerance,
        progress=_show_progress,
    )
    if sys.stderr.isatty():
        print(f"\r{'':<78}\r", end="", file=sys.stderr, flush=True)
    report.print()
    if options.json is not None:
        report.to_json(options.json)
    if options.plot is not None:
        report.save_plot(options.plot)
    return 0 if report.verdict == FLOW else 1


def user_model(name: str, weights: Path | None) -> torch.nn.Module:
    """The model called ``MODULE:ATTRIBUTE``, with the weights of a ``state_dict`` in a file.

    Raises
    ------
    InputError
        If it is no module, or the file does not fit it.
    """
    found = user_attribute(name, "the model", _MODEL)
    if callable(found) and not isinstance(found, torch.nn.Module):
        found = found()
    if not isinstance(found, torch.nn.Module):
        raise InputError(explain(f"{name} is a {type(found).__name__}", _MODEL, "return the model"))
    if weights is not None:
        try:
            found.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        except (OSError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                explain(
                    f"cannot load {weights} ({error})",
                    f"the state_dict of {name}",
                    "torch.save(model.state_dict(), path)",
                )
            ) from error
    return found


def user_data(name: str, size: int | None) -> list[Batch]:
    """Batches from ``MODULE:ATTRIBUTE`` or from a file: ``.npz`` with arrays ``x`` and ``y``, ``.pt`` with a pair or
    with such a dictionary; divided into batches of ``size``.

    Raises
    ------
    InputError
        If there is nothing of that form.
    """
    path = Path(name)
    found: Any
    if path.suffix in (".npz", ".pt", ".pth"):
        try:
            if path.suffix == ".npz":
                with np.load(path) as arrays:
                    found = {key: torch.as_tensor(arrays[key]) for key in arrays.files}
            else:
                found = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            what = f"cannot read {name} ({error})"
            raise InputError(explain(what, "a file of numpy.savez or torch.save", "check the path")) from error
        if isinstance(found, dict):
            if not {"x", "y"} <= found.keys():
                raise InputError(explain(f"{name} holds {[*found]}", "x and y", "name the arrays so"))
            found = (found["x"], found["y"])
    else:
        found = user_attribute(name, "--data", _DATA)
        if callable(found) and not isinstance(found, Tensor | list | tuple) and not hasattr(found, "__iter__"):
            found = found()
    batches = as_batches(found)
    if size is None:
        return batches
    return [part for x, y in batches for part in zip(torch.split(x, size), torch.split(y, size), strict=True)]


def _show_progress(text: str) -> None:
    """One line on a terminal that each evaluation overwrites; nothing in a pipe or a file."""
    if sys.stderr.isatty():
        print(f"\r{text[:78]:<78}\r", end="", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pynode validity",
        description="Evaluate a trained model with other solvers and steps. Exit status 0: a flow, whose metric no "
        "more exact solver changes; 1: a discretisation, which is its solver.",
    )
    add = parser.add_argument
    add("model", metavar="MODULE:ATTRIBUTE", help=_MODEL)
    add("--data", required=True, metavar="DATA", help=f"FILE.npz (x, y), FILE.pt, or MODULE:ATTRIBUTE: {_DATA}")
    add("--weights", type=Path, metavar="FILE", help="a state_dict for the model")
    add("--batch", type=_count, metavar="N", help="divide the data into batches of N")
    add("--metric", default="accuracy", metavar="M", help=f"{', '.join(METRICS)}, or MODULE:ATTRIBUTE (%(default)s)")
    add("--threshold", type=_positive, default=0.1, metavar="X", help="of the change of the metric (%(default)s)")
    add("--relative", action="store_true", help="the change relative to the metric, as for losses")
    add("--solvers", type=_each(str), metavar="A,...", help="beside the model's own (Euler,Midpoint,RK4 or DP5,...)")
    add("--factors", type=_each(_positive), metavar="X,...", help="on the number of steps, or on the tolerance")
    add("--backends", type=_each(str), metavar="A,...", help="torch, julia (the model's own)")
    add("--reference-tolerance", type=_positive, metavar="X", help="of the flow (1e-5 in float32, 1e-8)")
    add("--seed", type=int, default=0, metavar="N", help="set before the model is made (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write all numbers there")
    add("--plot", type=Path, metavar="FILE", help="draw the metric over the step; needs matplotlib")
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


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value
