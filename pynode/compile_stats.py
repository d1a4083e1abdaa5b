"""What ``compile=`` has cost and done in this process."""

from __future__ import annotations

import copy
import sys
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class CompileStats:
    """Counts since the process began.

    Attributes
    ----------
    compiled : int
        C++ programs that the compiler made, the solver itself among them.
    from_disk : int
        C++ programs found in the cache on disk.
    seconds : float
        What compiling them took.
    solves : int
        Solves done in C++ from the full set of checks on.
    repeated : int
        Solves done in C++ that repeated an earlier one with other numbers.
    fallen_back : Counter of str
        Solves asked for with ``compile="solve"`` that torch did, by reason.
    graphs : int
        Graphs of ``torch.compile`` made for ``compile="step"``; torch compiles each at its first call.

    Examples
    --------
    >>> before = pynode.compile_stats().solves
    >>> sol = pynode.solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0])
    >>> pynode.compile_stats().solves - before  # compile="solve" was not asked for
    0
    """

    compiled: int = 0
    from_disk: int = 0
    seconds: float = 0.0
    solves: int = 0
    repeated: int = 0
    fallen_back: Counter[str] = field(default_factory=Counter)
    graphs: int = 0


#: Of this process.
COUNTS = CompileStats()


def compile_stats() -> CompileStats:
    """What ``compile=`` has cost and done in this process, as it is now.

    Examples
    --------
    >>> pynode.compile_stats().seconds >= 0.0
    True
    """
    return copy.deepcopy(COUNTS)


def announce(what: str) -> None:
    """Say on a terminal that something is being compiled: it takes some seconds."""
    if sys.stderr.isatty():
        print(f"pynode: {what}", file=sys.stderr, flush=True)
