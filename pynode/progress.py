"""``progress=True``: how far a solve has come, on stderr."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from pynode.problem import check_times
from pynode.resuming import resumable
from pynode.solution import Solution

#: Seconds between two updates.
INTERVAL = 0.2


class Display(Protocol):
    """Where progress is shown."""

    def update(self, fraction: float, text: str) -> None: ...
    def close(self, text: str) -> None: ...


class Line:
    """One line on stderr, written over itself on a terminal; a log file gets the last one only."""

    def __init__(self) -> None:
        self._stream = sys.stderr
        self._width = 0

    def update(self, fraction: float, text: str) -> None:
        if self._stream.isatty():
            self._write(f"{fraction:4.0%} {text}", "")

    def close(self, text: str) -> None:
        self._write(text, "\n")

    def _write(self, text: str, end: str) -> None:
        start = "\r" if self._stream.isatty() else ""
        self._stream.write(f"{start}{text:<{self._width}}{end}")
        self._stream.flush()
        self._width = len(text)


class Bar:
    """rich's progress bar on stderr."""

    def __init__(self, label: str = "solve") -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        columns = (TextColumn(label), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[text]}"))
        self._progress = Progress(*columns, console=Console(stderr=True), refresh_per_second=1 / INTERVAL)
        self._task = self._progress.add_task(label, total=1.0, text="")
        self._progress.start()

    def update(self, fraction: float, text: str) -> None:
        self._progress.update(self._task, completed=fraction, text=text)

    def close(self, text: str) -> None:
        self._progress.update(self._task, text=text)
        self._progress.stop()


def displayed(label: str) -> Display:
    """A bar where rich is installed, else a line."""
    return Bar(label) if importlib.util.find_spec("rich") is not None else Line()


class Reporter:
    """An observer that shows how far time has come, and passes what it sees on to ``inner``."""

    def __init__(self, start: float, end: float, inner: Any, display: Display) -> None:
        self._start, self._end, self._inner, self._display = start, end, inner, display
        self._attempted = self._rejected = 0
        self._last = time.monotonic()

    def step(self, t: float, y: Tensor, h: float) -> None:
        self._attempted += 1
        if self._inner is not None:
            self._inner.step(t, y, h)
        now = time.monotonic()
        if now - self._last >= INTERVAL:
            self._last = now
            fraction = (t - self._start) / (self._end - self._start)
            self._display.update(fraction, self._text(t) + f", dt = {h:.3g}")

    def accepted(self, t: float, y: Tensor, h: float) -> None:
        if self._inner is not None:
            self._inner.accepted(t, y, h)

    def rejected(self, t: float, y: Tensor, h: float) -> None:
        self._rejected += 1
        if self._inner is not None:
            self._inner.rejected(t, y, h)

    def finish(self, outcome: str, t: float) -> None:
        self._display.close(f"{outcome}: {self._text(t)}")

    def _text(self, t: float) -> str:
        return f"t = {t:.6g} of {self._end:.6g}, {self._attempted} steps, {self._rejected} of them rejected"


def with_progress(solve: Callable[..., Solution], y0: Any, t: Any, options: dict[str, Any]) -> Solution:
    """``solve(y0=y0, t=t, **options)``, shown."""
    _, times = check_times("t", t)
    display = displayed("solve")
    reporter = Reporter(times[0], times[-1], options["observer"], display)
    outcome, reached = "failed", times[0]
    try:
        solution = solve(y0=y0, t=t, **{**options, "progress": False, "observer": reporter})
        outcome, reached = solution.retcode.name, solution.span[1]
    finally:
        reporter.finish(outcome, reached)
    return resumable(solution, solve, options)
