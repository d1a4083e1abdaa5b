"""``python -m pynode.bench EXPERIMENT``: run an experiment, print its report."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from pynode.bench import Report, environment
from pynode.errors import PynodeError

#: Experiments by name, each the module of this package that holds it.
EXPERIMENTS = {
    "overhead": "pynode.bench.overhead",
    "memory": "pynode.bench.memory",
    "gradients": "pynode.bench.gradients",
    "julia": "pynode.bench.julia",
    "per-sample": "pynode.bench.per_sample",
    "solvers": "pynode.bench.solvers",
    "peers": "pynode.bench.peers.experiment",
    "torchdiffeq-suite": "pynode.bench.torchdiffeq_suite",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment named in ``argv``, on one thread.

    Returns
    -------
    int
        0, whatever was measured; 1 if a solve failed or a peer library is missing.
    """
    parser = argparse.ArgumentParser(prog="pynode bench", description="Measure pynode on this machine.")
    commands = parser.add_subparsers(dest="experiment", required=True, metavar="EXPERIMENT")
    modules = {name: importlib.import_module(module) for name, module in EXPERIMENTS.items()}
    for name, module in modules.items():
        command = commands.add_parser(name, help=module.SUMMARY, description=module.__doc__)
        command.add_argument("--json", metavar="FILE", type=Path, help="write all numbers to FILE")
        module.add_arguments(command)
    options = parser.parse_args(argv)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        facts = environment()
        print(", ".join(f"{key} {value}" for key, value in facts.items()), flush=True)
        report: Report = modules[options.experiment].run(options)
    except (PynodeError, ImportError) as error:
        print(f"pynode bench {options.experiment}: {error}", file=sys.stderr)
        return 1
    finally:
        torch.set_num_threads(threads)
    report.print()
    if options.json is not None:
        claims = [dataclasses.asdict(claim) for claim in report.claims]
        written = {"experiment": options.experiment, "environment": facts, **report.data, "claims": claims}
        options.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
