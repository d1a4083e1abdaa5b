"""The polynomial of the emitted exponential.

``x = k ln 2 + r``, ``|r| <= ln 2 / 2``, ``exp(x) - 1 = 2^k (exp(r) - 1) + (2^k - 1)`` with a polynomial for
``exp(r) - 1``: no branch, so that loops over it are vectorised. The coefficients are those of the interpolation of
``(exp(r) - 1 - r) / r^2`` in Chebyshev points.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction

from pynode.capture.interpolation import interpolated

#: The natural logarithm of 2.
LN2 = 0.6931471805599453094172321214581765681


def _exact_exp(x: Fraction) -> Fraction:
    total, term = Fraction(0), Fraction(1)
    for k in range(1, 40):
        total += term
        term = term * x / k
    return total


@functools.lru_cache(maxsize=64)
def exponential(degree: int) -> tuple[Fraction, ...]:
    """Coefficients, lowest first, of a polynomial near ``(exp(r) - 1 - r) / r^2`` for ``|r| <= ln 2 / 2``."""
    count = degree + 1
    nodes = [Fraction(math.cos((2 * i + 1) * math.pi / (2 * count)) * LN2 / 2 * 1.0001) for i in range(count)]
    return interpolated(nodes, [(_exact_exp(x) - 1 - x) / x**2 if x else Fraction(1, 2) for x in nodes])
