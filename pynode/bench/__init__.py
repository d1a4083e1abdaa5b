"""Benchmarks: what pynode costs next to its peers and to the bare field, measured in one process.

``python -m pynode.bench EXPERIMENT`` prints tables and, at the end, what was promised and whether it holds. An
experiment is a module of this package with ``SUMMARY``, ``add_arguments(parser)`` and ``run(options) -> Report``,
registered in ``pynode.bench.__main__``. Here is what they share: the form of a report.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pynode.bench.packages import versions


@dataclass(frozen=True)
class Table:
    """A table of text; the first column names its row."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def plain(self) -> str:
        """The table in characters: names to the left, numbers to the right."""
        cells = [self.columns, *self.rows]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        rule = "  ".join("-" * width for width in widths)

        def line(row: tuple[str, ...]) -> str:
            first = row[0].ljust(widths[0])
            return "  ".join([first, *(x.rjust(w) for x, w in zip(row[1:], widths[1:], strict=True))]).rstrip()

        return "\n".join([self.title, line(self.columns), rule, *map(line, self.rows)])


@dataclass(frozen=True)
class Claim:
    """Something measured: ``met`` says whether it is what was promised, None where nothing was."""

    text: str
    value: float
    met: bool | None

    def __str__(self) -> str:
        return f"{ {True: 'met', False: 'NOT MET', None: 'measured'}[self.met]:>8}  {self.text}"


@dataclass
class Report:
    """Outcome of an experiment.

    ``data`` is what ``--json`` writes beside the environment and the claims; ``ratios`` are times of pynode over those
    of others, by name, which ``--check`` holds against the committed ones (:mod:`pynode.bench.baseline`).
    ``failed`` names what could not be measured at all: the command then ends with status 1.
    """

    tables: list[Table]
    claims: list[Claim]
    notes: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    def print(self) -> None:
        """Print tables, notes and claims; the tables by rich where it is installed."""
        for table in self.tables:
            _print_table(table)
            print()
        for note in self.notes:
            print(note)
        for claim in self.claims:
            print(claim)
        for why in self.failed:
            print(f"  FAILED  {why}")


def _print_table(table: Table) -> None:
    if importlib.util.find_spec("rich") is None:
        print(table.plain())
        return
    from rich.console import Console
    from rich.table import Table as RichTable

    shown = RichTable(title=table.title, title_justify="left")
    for index, column in enumerate(table.columns):
        shown.add_column(column, justify="right" if index else "left", no_wrap=True)
    for row in table.rows:
        shown.add_row(*row)
    console = Console()
    # A file or a pipe has no width of its own; a table cut to 80 characters would lose its numbers.
    if not console.is_terminal:
        console = Console(width=200)
    console.print(shown)


def environment() -> dict[str, Any]:
    """The facts a timing depends on."""
    return {
        "pynode": _commit(),
        "python": platform.python_version(),
        **versions(),
        "cpu": next(_cpu_models(), platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "machine": machine_class(),
        "threads": torch.get_num_threads(),
    }


def machine_class() -> str:
    """What ratios of times depend on most, short of the very machine: architecture and vector instructions."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def _cpu_models() -> Iterator[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith("model name"):
            yield line.partition(":")[2].strip()


def _commit() -> str:
    """The version, with the commit where the package lies in a git checkout; ``+`` marks uncommitted changes."""
    from pynode import __version__

    here = Path(__file__).parent
    try:
        ask = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--exclude=*"]
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__} ({answer})"
