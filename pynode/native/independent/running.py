"""The rows that are still running: the numbers that steer each, on the host."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


class Running:
    """One column a row in two arrays, so that rows which finish leave all numbers at once.

    Times are kept multiplied by the row's direction: they ascend in every row.

    Attributes
    ----------
    t, end, target, upcoming : ndarray (b,)
        Time reached, final time, the next time that must be met (a stop, or the final one), and the next save time.
    sign : ndarray
        1 or -1: where time goes.
    size, stretch : ndarray
        Magnitude of the coming step, and by how much it may be stretched to the target.
    ratio : ndarray
        Last error over its tolerance.
    first, second : ndarray
        The controller's history.
    ids, following, accepted : ndarray (b,) of int
        Which row; how many save times it has passed; its accepted steps.
    forward : bool
        Whether all rows go forward.
    """

    def __init__(self, ids: Indices, starts: Floats, ends: Floats, sign: Floats) -> None:
        self._numbers = np.empty((10, len(ids)))
        self._integers = np.zeros((3, len(ids)), dtype=np.int64)
        self._name()
        self.ids[:], self.sign[:] = ids, sign[ids]
        self.t[:], self.end[:] = (starts * sign)[ids], (ends * sign)[ids]
        self.target[:] = self.end
        self.stretch[:], self.first[:], self.second[:], self.ratio[:] = 1.01, 1.0, 1.0, np.nan
        self.forward = bool((self.sign > 0).all())

    def _name(self) -> None:
        self.t, self.end, self.target, self.upcoming, self.sign = self._numbers[:5]
        self.size, self.stretch, self.ratio, self.first, self.second = self._numbers[5:]
        self.ids, self.following, self.accepted = self._integers

    def __len__(self) -> int:
        return self._numbers.shape[1]

    def real(self, times: Floats) -> Floats:
        """Times of all rows as the user counts them."""
        return times if self.forward else times * self.sign

    def part(self, places: Indices) -> Running:
        """The rows at ``places``."""
        part: Running = object.__new__(Running)
        part._numbers = self._numbers[:, places]
        part._integers = self._integers[:, places]
        part._name()
        part.forward = self.forward
        return part
