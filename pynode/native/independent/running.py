"""The rows that are still running: the numbers that steer each, on the host."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


class Running:
    """One column a row in two arrays, so that rows which finish leave all numbers at once.

    Attributes
    ----------
    t, end, target : ndarray (b,)
        Time reached, final time, and the next time that must be met (a stop, or the final one).
    sign : ndarray
        1 or -1: where time goes.
    size, stretch : ndarray
        Magnitude of the coming step, and by how much it may be stretched to the target.
    ratio : ndarray
        Last error over its tolerance.
    first, second : ndarray
        The controller's history.
    upcoming : ndarray
        The next save time, times ``sign``.
    ids, following, accepted, rejected : ndarray (b,) of int
        Which row; how many save times it has passed; its steps.
    """

    def __init__(self, ids: Indices, starts: Floats, ends: Floats, sign: Floats) -> None:
        self._numbers = np.empty((10, len(ids)))
        self._integers = np.zeros((4, len(ids)), dtype=np.int64)
        self._name()
        self.ids[:] = ids
        self.t[:], self.end[:], self.target[:], self.sign[:] = starts[ids], ends[ids], ends[ids], sign[ids]
        self.stretch[:], self.first[:], self.second[:], self.ratio[:] = 1.01, 1.0, 1.0, np.nan

    def _name(self) -> None:
        (self.t, self.end, self.target, self.sign, self.size) = self._numbers[:5]
        (self.stretch, self.ratio, self.first, self.second, self.upcoming) = self._numbers[5:]
        self.ids, self.following, self.accepted, self.rejected = self._integers

    def __len__(self) -> int:
        return self._numbers.shape[1]

    def keep(self, places: Indices) -> None:
        """Only the rows at ``places`` go on."""
        self._numbers = self._numbers[:, places]
        self._integers = self._integers[:, places]
        self._name()
