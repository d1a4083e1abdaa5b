"""Roots of many functions at once, each in a bracket of its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


def roots(
    f: Callable[[Indices, Floats], Floats], a: Floats, b: Floats, at_a: Floats, at_b: Floats, width: Floats
) -> tuple[Floats, Floats]:
    """:func:`pynode.native.root_finding.root` for every bracket, decision by decision: ITP (Oliveira and Takahashi
    2021), never more than one evaluation beyond those of bisection.

    Parameters
    ----------
    f : callable
        ``f(which, points)``: values of the functions at places ``which`` (m,) in the arrays, at ``points`` (m,). A
        bracket that is narrow enough is not asked about again.
    a, b : ndarray (p,)
        The brackets.
    at_a, at_b : ndarray (p,)
        Values there, of different signs.
    width : ndarray (p,)
        How narrow a bracket has to become.

    Returns
    -------
    ndarray (p,)
        The ends of the last brackets, no wider than ``width``, where ``f`` is smaller.
    ndarray (p,)
        The larger of the magnitudes of ``f`` at both ends.
    """
    a, b, at_a, at_b = a.copy(), b.copy(), at_a.copy(), at_b.copy()
    at_start = (at_a == 0.0) | (b <= a)
    at_end = ~at_start & (at_b == 0.0)
    b[at_start], at_b[at_start] = a[at_start], at_a[at_start]
    a[at_end], at_a[at_end] = b[at_end], 0.0
    with np.errstate(all="ignore"):
        truncation = 0.2 / (b - a)
        most = np.maximum(np.ceil(np.log2((b - a) / width)), 0.0) + 1.0
        done = 0
        while True:
            middle = 0.5 * (a + b)
            going = (b - a > width) & (done <= most) & (a < middle) & (middle < b)
            which = going.nonzero()[0]
            if not len(which):
                break
            low, high, at_low, at_high, centre = (x[which] for x in (a, b, at_a, at_b, middle))
            # Regula falsi, pulled towards the middle, and no farther from it than bisection would be by now.
            secant = (high * at_low - low * at_high) / (at_low - at_high)
            secant = np.where(np.isfinite(secant), secant, centre)  # a condition may be infinite
            side = np.copysign(1.0, centre - secant)
            nudge = truncation[which] * (high - low) ** 2
            point = np.where(nudge <= np.abs(centre - secant), secant + side * nudge, centre)
            radius = np.maximum(0.5 * width[which] * 2.0 ** (most[which] - done) - 0.5 * (high - low), 0.0)
            point = np.where(np.abs(point - centre) > radius, centre - side * radius, point)
            point = np.where((low < point) & (point < high), point, centre)
            value = f(which, point)
            hit = value == 0.0
            before = (value > 0.0) == (at_low > 0.0)
            up, down = which[before | hit], which[~before | hit]
            a[up], at_a[up] = point[before | hit], value[before | hit]
            b[down], at_b[down] = point[~before | hit], value[~before | hit]
            done += 1
    return np.where(np.abs(at_a) < np.abs(at_b), a, b), np.maximum(np.abs(at_a), np.abs(at_b))
