"""A row says ``compile="solve"`` only if that is what ran."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pynode.compile_stats import COUNTS
from pynode.errors import UnsupportedError, explain


@contextmanager
def own_tier() -> Iterator[None]:
    """Refuse what is done inside by another tier than the one asked for.

    Raises
    ------
    UnsupportedError
        Naming why a solve fell back.
    """
    before = dict(COUNTS.fallen_back)
    yield
    for refusal, count in COUNTS.fallen_back.items():
        if count > before.get(refusal, 0):
            raise UnsupportedError(explain(f"compile='solve' fell back: {refusal}", "a solve in C++", "see tier eager"))
