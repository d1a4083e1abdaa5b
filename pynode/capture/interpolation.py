"""Polynomials through given points, in exact arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction


def interpolated(nodes: Sequence[Fraction], values: Sequence[Fraction]) -> tuple[Fraction, ...]:
    """Coefficients, lowest first, of the polynomial with these values at these nodes."""
    table, count = list(values), len(nodes)
    # Newton's divided differences, then powers.
    for order in range(1, count):
        for i in range(count - 1, order - 1, -1):
            table[i] = (table[i] - table[i - 1]) / (nodes[i] - nodes[i - order])
    powers = [Fraction(0)] * count
    for i in range(count - 1, -1, -1):
        powers = [(powers[k - 1] if k else Fraction(0)) - nodes[i] * powers[k] for k in range(count)]
        powers[0] += table[i]
    return tuple(powers)
