"""Whether a series of measurements grows: least squares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: Standard errors that a slope has to be away from zero: one in a thousand by chance, for a few dozen points.
SIGNIFICANT = 3.5


@dataclass(frozen=True)
class Slope:
    """A slope with its standard error."""

    value: float
    error: float

    def grows(self, bound: float) -> bool:
        """Whether it is larger than ``bound``, and not by chance."""
        return self.value > bound and self.value > SIGNIFICANT * self.error


def slope(x: Sequence[float], y: Sequence[float]) -> Slope:
    """The slope of the straight line through points, by least squares, and its standard error.

    Parameters
    ----------
    x, y : sequence of float
        Three points or more.
    """
    count = len(x)
    mx, my = math.fsum(x) / count, math.fsum(y) / count
    sxx = math.fsum((a - mx) ** 2 for a in x)
    value = math.fsum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sxx
    left = math.fsum((b - my - value * (a - mx)) ** 2 for a, b in zip(x, y, strict=True))
    return Slope(value, math.sqrt(left / (count - 2) / sxx))
