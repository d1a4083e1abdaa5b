"""Times at equal measured error, read off work-precision lines."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

#: No error counts as smaller: below it there is rounding only, and no logarithm.
FLOOR = 1e-16


@dataclass(frozen=True)
class Point:
    """What a tolerance costs and what it yields."""

    error: float
    seconds: float


@dataclass(frozen=True)
class Reached:
    """The time that an error takes.

    ``how`` is "interpolated"; or "at most", where even the quickest run is more accurate than asked, so that a looser
    tolerance may be quicker still; or "never", where no run is accurate enough (``seconds`` is then infinite).
    """

    seconds: float
    how: str


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both time and error, from the quickest to the most accurate."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.seconds, p.error)):
        if not kept or point.error < kept[-1].error:
            kept.append(point)
    return kept


def time_at(points: Sequence[Point], error: float, floor: float = FLOOR) -> Reached:
    """The time at which a contestant reaches ``error``: linear between the front's points, in logarithms.

    Parameters
    ----------
    points : sequence of Point
        At least one.
    error : float
    floor : float
        Errors below it are rounding: none is smaller than another.
    """
    line = front([Point(max(p.error, floor), p.seconds) for p in points])
    error = max(error, floor)
    if error >= line[0].error:
        return Reached(line[0].seconds, "interpolated" if error == line[0].error else "at most")
    for quick, accurate in itertools.pairwise(line):
        if error >= accurate.error:
            share = math.log(quick.error / error) / math.log(quick.error / accurate.error)
            return Reached(quick.seconds * (accurate.seconds / quick.seconds) ** share, "interpolated")
    return Reached(math.inf, "never")
