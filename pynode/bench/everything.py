"""Every part of the benchmark, one after the other: one report, one JSON file.

The parts run with their own defaults, with ``--quick`` at their small sizes. A part that fails is named, the others go
on, and the command ends with status 1. On a machine without CUDA the GPU's part runs small on the CPU.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

import torch

from pynode.bench import Report
from pynode.errors import PynodeError

SUMMARY = "all of overhead, gradients, solvers, adjoint, memory, scaling, gpu and peers"

#: The parts by name, each the module that holds it.
PARTS = {
    "overhead": "pynode.bench.overhead",
    "gradients": "pynode.bench.gradients",
    "solvers": "pynode.bench.solvers",
    "adjoint": "pynode.bench.adjoint.experiment",
    "memory": "pynode.bench.memory",
    "scaling": "pynode.bench.scaling",
    "gpu": "pynode.bench.gpu",
    "peers": "pynode.bench.peers.experiment",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this experiment."""
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS), help="these only")
    parser.add_argument("--plots", metavar="DIR", type=Path, help="write the plots of all parts there")
    parser.add_argument("--quick", action="store_true", help="every part at its small sizes")


def run(options: argparse.Namespace) -> Report:
    """All parts; ``failed`` of the report names those that could not be measured."""
    whole = Report([], [], data={"parts": {}})
    for name in options.parts:
        print(f"== {name}", flush=True)
        try:
            part = part_of(name, options)
        except (PynodeError, ImportError) as error:
            whole.failed.append(f"{name}: {error}")
            continue
        # Shown as it ends: the whole takes long.
        part.print()
        whole.claims += part.claims
        whole.ratios |= {f"{name}: {key}": value for key, value in part.ratios.items()}
        whole.failed += [f"{name}: {why}" for why in part.failed]
        whole.data["parts"][name] = {**part.data, "ratios": part.ratios}
    whole.notes = ["== all"]
    return whole


def part_of(name: str, options: argparse.Namespace) -> Report:
    """The report of a part, run with its own defaults."""
    module: Any = importlib.import_module(PARTS[name])
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    known = {flag for action in parser._actions for flag in action.option_strings}
    arguments = ["--quick"] if options.quick else []
    if options.quick and "--eager" in known:
        arguments.append("--eager")  # compiling takes longer than all the rest at these sizes
    if options.plots is not None and "--plots" in known:
        arguments += ["--plots", str(options.plots)]
    if name == "gpu" and not torch.cuda.is_available():
        arguments += ["--device", "cpu"]
    report: Report = module.run(parser.parse_args(arguments))
    return report
