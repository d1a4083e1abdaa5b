"""One thread a process: the tests' tensors are small, and pytest-xdist uses the cores."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was left out: skipped tests by reason, and the markers that were not asked for."""
    skipped = Counter(report.longrepr[2] for report in terminalreporter.stats.get("skipped", []))
    for reason, count in skipped.most_common():
        terminalreporter.write_line(f"{count} skipped: {reason.removeprefix('Skipped: ')}")
    if config.option.markexpr:
        terminalreporter.write_line(f"run: tests with -m {config.option.markexpr!r}")
