"""torchdiffeq's own public tests against ``pynode.compat.torchdiffeq`` installed under its name, and against itself.

``--source`` is a checkout of torchdiffeq with its ``tests``; nothing of it is part of pynode. Every file runs in a
process of its own, one after the other, once for each library.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from pynode.bench import Claim, Report, Table
from pynode.errors import InputError, explain

SUMMARY = "torchdiffeq's own tests against the drop-in: --source CHECKOUT"

FILES = ("api_tests", "event_tests", "norm_tests", "odeint_tests", "gradient_tests")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this experiment."""
    parser.add_argument("--source", type=Path, required=True, metavar="DIR", help="a checkout of torchdiffeq")
    parser.add_argument("--files", nargs="+", default=list(FILES), choices=FILES, help="all five by default")
    parser.add_argument("--ours-only", action="store_true", help="leave out torchdiffeq's own run")
    parser.add_argument("--limit", type=float, default=3600.0, metavar="SECONDS", help="per file and library")


def checked(source: Path) -> Path:
    """The checkout.

    Raises
    ------
    InputError
        If it holds no torchdiffeq with tests.
    """
    source = source.expanduser().resolve()
    missing = [x for x in ("torchdiffeq/__init__.py", "tests/problems.py") if not (source / x).is_file()]
    if missing:
        raise InputError(
            explain(
                f"{source} holds no {' and no '.join(missing)}",
                "a checkout of torchdiffeq's repository",
                "git clone https://github.com/rtqichen/torchdiffeq DIR, and pass DIR",
            )
        )
    return source


def outcome(source: Path, name: str, drop_in: bool, limit: float = 3600.0) -> dict[str, Any]:
    """What ``tests/NAME.py`` of a checkout reports: see :mod:`pynode.bench.unittest_process`."""
    command = [sys.executable, "-m", "pynode.bench.unittest_process", str(source), name]
    done = subprocess.run(
        [*command, *(["--drop-in"] if drop_in else [])], capture_output=True, text=True, timeout=limit, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{name}.py did not run: {done.stderr.strip()[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])[name]
    return found


def run(options: argparse.Namespace) -> Report:
    """Measure, and say what came of it."""
    source = checked(options.source)
    sides = [("pynode", True)] if options.ours_only else [("pynode", True), ("torchdiffeq", False)]
    results = {
        label: {name: outcome(source, name, own, options.limit) for name in options.files} for label, own in sides
    }
    columns = tuple(f"{label} {what}" for label, _ in sides for what in ("tests", "subtests", "s"))
    rows = []
    for name in (*options.files, "all"):
        cells: list[str] = []
        for label, _ in sides:
            one = results[label][name] if name != "all" else _sum(list(results[label].values()))
            cells += [
                f"{one['tests'] - one['tests_failed']}/{one['tests']}",
                f"{one['subtests'] - one['subtests_failed']}/{one['subtests']}",
                f"{one['seconds']:.0f}",
            ]
        rows.append((name, *cells))
    table = Table("torchdiffeq's test files: passed of all, seconds", ("", *columns), rows)
    notes = [
        f"{label}: {x['test']}: {x['reason']} ({x['line']})"
        for label, found in results.items()
        for one in found.values()
        for x in one["broken"]
    ]
    total = _sum(list(results["pynode"].values()))
    passed, subtests = total["tests"] - total["tests_failed"], total["subtests"] - total["subtests_failed"]
    text = f"torchdiffeq's tests pass: {passed} of {total['tests']}, subtests {subtests} of {total['subtests']}"
    claim = Claim(text, float(passed), not total["tests_failed"])
    return Report([table], [claim], notes, {"results": results})


def _sum(found: list[dict[str, Any]]) -> dict[str, Any]:
    keys = ("tests", "tests_failed", "subtests", "subtests_failed", "seconds")
    return {key: sum(one[key] for one in found) for key in keys}
