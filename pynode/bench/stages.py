"""How far a benchmark has come, on stderr."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pynode.progress import Display, displayed


class Stages:
    """Counts what is done of a number of stages."""

    def __init__(self, display: Display, total: int) -> None:
        self._display, self._total = display, max(total, 1)
        self.done = 0

    def show(self, text: str) -> None:
        """Say what is being done."""
        self._display.update(min(1.0, self.done / self._total), text)

    def step(self, text: str) -> None:
        """Count a stage as done; ``text`` names it."""
        self.done += 1
        self.show(text)


@contextmanager
def stages(label: str, total: int) -> Iterator[Stages]:
    """Progress through ``total`` stages."""
    display = displayed(label)
    counted = Stages(display, total)
    try:
        yield counted
    finally:
        display.close(f"{counted.done} of {total} stages")
