"""A validated independent solve, as the loop and the adjoints receive it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pynode.backends import Request
from pynode.events import Event
from pynode.native.independent.problem import RowProblem


@dataclass(frozen=True)
class Start:
    """What is known of rows that go on after an event.

    ``sizes`` (B,): magnitudes of their first steps; ``budget`` (B,): attempts that they have left; ``noise`` (B, k):
    values of the root functions that are zero as far as one can tell.
    """

    sizes: NDArray[np.float64]
    budget: NDArray[np.int64]
    noise: NDArray[np.float64]


@dataclass(frozen=True)
class RowRequest(Request):
    """``times`` of :class:`pynode.backends.Request` is empty; instead there are

    ``rows``: the problem; ``save_values``: save times (1 or B, M) in float64, NaN where a row has fewer; ``keeps``:
    whether the states of all accepted steps are kept; ``events``: the first of which rows stop at; ``start``: where
    they go on after one.
    """

    rows: RowProblem
    save_values: NDArray[np.float64]
    keeps: bool
    events: tuple[Event, ...] = ()
    start: Start | None = None
