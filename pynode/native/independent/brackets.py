"""Sign changes of root functions along steps, for all rows at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


class Brackets:
    """The first crossing in every step of every root function, of a kind that its event asks for.

    Parameters
    ----------
    thetas : sequence of float
        Fractions of the steps, ascending, the last of which is 1.
    values : ndarray (m, b, k)
        Of k root functions in b rows there.
    last, signs : ndarray (b, k)
        Their values at the start of the steps, and the signs that they last had; 0 where they touched zero.
    leaving : ndarray (b, k), or None
        Where a function is zero at the start: the sign that it takes on. 0 elsewhere.
    wanted : ndarray (k,)
        Directions, as :class:`pynode.events.Event` has them.

    Attributes
    ----------
    found : ndarray (b, k) of bool
    ends : tuple of ndarray (b, k)
        Of the brackets that were found: both ends, and the values there.
    signs : ndarray (b, k)
        Afterwards.
    """

    def __init__(
        self,
        thetas: Sequence[float],
        values: Floats,
        last: Floats,
        signs: Floats,
        leaving: Floats | None,
        wanted: Indices,
    ) -> None:
        found = np.zeros(last.shape, dtype=np.bool_)
        lows, highs, at_lows, at_highs = (np.zeros(last.shape) for _ in range(4))
        sign, low, at_low = signs.copy(), np.zeros(last.shape), last.copy()
        waiting = np.zeros_like(found) if leaving is None else leaving != 0.0
        for theta, value in zip(thetas, values, strict=True):
            here = np.sign(value)
            changed = (sign != 0.0) & (here != sign) & ~waiting & ~found
            crossed = changed & ((wanted == 0) | (wanted == -sign))
            for array, x in ((lows, low), (highs, theta), (at_lows, at_low), (at_highs, value)):
                np.copyto(array, x, where=crossed)
            found |= crossed
            np.copyto(sign, here, where=(changed | (sign == 0.0)) & ~waiting & ~found)
            if leaving is not None:
                # What comes before its first value on the side it leaves to is noise.
                arrived = waiting & (here == leaving)
                np.copyto(sign, here, where=arrived)
                waiting &= ~arrived
            np.copyto(low, theta, where=~waiting)
            np.copyto(at_low, value, where=~waiting)
        if leaving is not None and waiting.any():
            # They were on that side for a shorter time than can be told, and are on the other now.
            present = values != 0.0
            other = np.take_along_axis(np.sign(values), present.argmax(axis=0)[None], axis=0)[0]
            at_once = waiting & (other != 0.0) & ((wanted == 0) | (wanted == -leaving))
            for array in (lows, highs):
                np.copyto(array, 0.0, where=at_once)
            for array in (at_lows, at_highs):
                np.copyto(array, last, where=at_once)
            found |= at_once
            np.copyto(sign, other, where=waiting)
        self.found, self.signs = found, sign
        self.ends = lows, highs, at_lows, at_highs

    def first(self) -> tuple[Indices, Indices]:
        """Rows and functions of the brackets that may hold the first root of their row."""
        nearest = np.where(self.found, self.ends[1], np.inf).min(axis=1, keepdims=True)
        rows, which = (self.found & (self.ends[0] <= nearest)).nonzero()
        return rows, which
