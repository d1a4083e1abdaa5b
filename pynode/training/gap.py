"""How far two values of a metric are apart."""

from __future__ import annotations

import math


def gap_between(a: float, b: float, relative: bool) -> float:
    """``|b - a|``, or relative to ``|a|``; infinite where one of them is not finite."""
    if not (math.isfinite(a) and math.isfinite(b)):
        return math.inf
    if not relative:
        return abs(b - a)
    return 0.0 if a == b else abs(b - a) / max(abs(a), 1e-300)
