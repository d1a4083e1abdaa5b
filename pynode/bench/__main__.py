"""``python -m pynode.bench EXPERIMENT``: run an experiment, print its report."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pynode.bench import Report, baseline, environment, everything
from pynode.bench.one_thread import one_thread
from pynode.errors import PynodeError

#: Experiments by name, each the module of this package that holds it.
EXPERIMENTS = {
    **everything.PARTS,
    "all": "pynode.bench.everything",
    "eager": "pynode.bench.eager",
    "ensemble": "pynode.bench.ensemble",
    "controllers": "pynode.bench.controllers",
    "julia": "pynode.bench.julia",
    "per-sample": "pynode.bench.per_sample",
    "soak": "pynode.bench.soak",
    "torchdiffeq-suite": "pynode.bench.torchdiffeq_suite",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment named in ``argv``, on one thread.

    Returns
    -------
    int
        0, whatever was measured; 1 if a solve failed, a peer library is missing, or ``--check`` finds a regression.
    """
    options, module = _parsed(argv)
    try:
        with one_thread():
            facts = environment()
            print(", ".join(f"{key} {value}" for key, value in facts.items()), flush=True)
            report: Report = module.run(options)
        report.print()
        if options.json is not None:
            _write(options.json, options.experiment, facts, report)
        return max(int(bool(report.failed)), _against_baseline(options, facts, report))
    except (PynodeError, ImportError) as error:
        print(f"pynode bench {options.experiment}: {error}", file=sys.stderr)
        return 1


def _parsed(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Any]:
    parser = argparse.ArgumentParser(prog="pynode bench", description="Measure pynode on this machine.")
    commands = parser.add_subparsers(dest="experiment", required=True, metavar="EXPERIMENT")
    modules = {name: importlib.import_module(module) for name, module in EXPERIMENTS.items()}
    for name, module in modules.items():
        command = commands.add_parser(name, help=module.SUMMARY, description=module.__doc__)
        command.add_argument("--json", metavar="FILE", type=Path, help="write all numbers to FILE")
        command.add_argument(
            "--check", action="store_true", help="fail where a ratio to a peer is worse than the committed one"
        )
        command.add_argument(
            "--update-baseline", action="store_true", help="write this run's ratios as those to be checked against"
        )
        command.add_argument(
            "--baseline", metavar="FILE", type=Path, default=baseline.PATH, help="the ratios' file (the package's own)"
        )
        module.add_arguments(command)
    options = parser.parse_args(argv)
    return options, modules[options.experiment]


def _against_baseline(options: argparse.Namespace, facts: dict[str, Any], report: Report) -> int:
    key = baseline.key_of(options.experiment, getattr(options, "quick", False))
    status = 0
    if options.check:
        verdict = baseline.check(key, report.ratios, facts, options.baseline)
        print("\n".join(verdict.lines()))
        status = int(verdict.failed)
    if options.update_baseline:
        baseline.update(key, report.ratios, facts, options.baseline)
        print(f"baseline of {key!r} written: {len(report.ratios)} ratios")
    return status


def _write(path: Path, experiment: str, facts: dict[str, Any], report: Report) -> None:
    claims = [dataclasses.asdict(claim) for claim in report.claims]
    written = {"experiment": experiment, "environment": facts, **report.data, "ratios": report.ratios, "claims": claims}
    text = json.dumps(_finite({**written, "notes": report.notes, "failed": report.failed}), indent=1, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    """What JSON can hold: numbers that are not finite become null."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(main())
