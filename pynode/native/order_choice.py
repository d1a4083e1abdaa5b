"""Which order a variable-order multistep method takes next, and how far its step size may move.

The rules of DE/STEP and DASSL (Shampine and Gordon 1975; Brenan, Campbell and Petzold 1996, section 5.2.5): in a first
phase the order rises with every step; later it falls whenever the errors do not fall with the order, and rises only
behind as many equal steps as the order needs for the estimate.
"""

from __future__ import annotations

import math
from collections.abc import Callable

#: A step is lengthened only if it may grow by so much, and by no more than so much: many equal steps keep matrices
#: and estimates valid.
LEAST_GROWTH, MOST_GROWTH = 1.5, 2.0
#: Rejections of one step after which the order falls to one.
PATIENCE = 3


class OrderChoice:
    """The order of the coming attempt and the state of its search.

    Parameters
    ----------
    most : int
        The highest order.
    weight : callable
        ``weight(k)``: what errors at order k are multiplied by to be compared between orders. By default the inverse
        of the error constant of the backward differentiation formula.

    Attributes
    ----------
    order : int
        Of the coming attempt.
    """

    def __init__(self, most: int, weight: Callable[[int], float] = lambda k: k + 1.0) -> None:
        self._most, self._weight = most, weight
        self.restart()

    def restart(self) -> None:
        """At the first order, with nothing behind."""
        self.order = 1
        self._starting = True
        self._rejections = 0
        self._equal = 0
        self._known = math.inf

    def accepted(self, known: Callable[[int], float], deeper: int) -> tuple[float, int]:
        """Choose behind an accepted step.

        Parameters
        ----------
        known : callable
            ``known(k)``: the error ratio of the step at order k, from 1 to one above the order.
        deeper : int
            The largest order that the states behind allow next.

        Returns
        -------
        ratio : float
            That of the step at the order chosen.
        order : int
        """
        k, most = self.order, min(self._most, deeper)
        self._rejections = 0
        self._equal += 1
        own = known(k)
        size = self._weight(k) * own
        lower = k > 1 and self._falls(known, k, size)
        self._known = own
        if lower:
            self._starting = False
            return self._take(k - 1, known(k - 1))
        if k >= most:
            self._starting = self._starting and k < self._most
            return self._take(k, own)
        if self._starting:
            return self._take(k + 1, own)
        if self._equal <= k + 1:
            return self._take(k, own)
        higher = self._weight(k + 1) * known(k + 1)
        if k > 1 and self._weight(k - 1) * known(k - 1) <= min(size, higher):
            return self._take(k - 1, known(k - 1))
        if higher < (size if k > 1 else 0.5 * size):
            return self._take(k + 1, known(k + 1))
        return self._take(k, own)

    def rejected(self, known: Callable[[int], float], ratio: float) -> tuple[float, int]:
        """Choose behind a rejected step of error ``ratio``."""
        k = self.order
        self._starting = False
        self._rejections += 1
        if not math.isfinite(ratio):  # Newton's iteration failed, or f is not finite there: nothing is known
            return ratio, k
        if self._rejections >= PATIENCE:
            return self._take(1, ratio)
        if k > 1 and self._falls(known, k, self._weight(k) * known(k)):
            return self._take(k - 1, min(ratio, known(k - 1)))
        return ratio, k

    def steer(self, factor: float, accepted: bool) -> float:
        """The factor of the step size, where the controller proposes ``factor``."""
        if not accepted:
            self._equal = 0
            return factor
        # Half the tolerance is aimed at, in growing as in shrinking: a step that grew to more than that would shrink
        # at once, never be equal to the one behind it, and so never allow a higher order.
        wanted: float = (2.0 * self._known) ** (-1.0 / (self.order + 1)) if self._known else math.inf
        if min(factor, wanted) >= LEAST_GROWTH:
            self._equal = 0
            return min(factor, wanted, MOST_GROWTH)
        if wanted < 1.0:
            # As the next error is likely to be above the tolerance.
            self._equal = 0
            return max(0.5, min(0.9, wanted))
        return 1.0

    def _falls(self, known: Callable[[int], float], k: int, size: float) -> bool:
        below = self._weight(k - 1) * known(k - 1)
        if k == 2:
            return below <= 0.5 * size
        return max(below, self._weight(k - 2) * known(k - 2)) <= size

    def _take(self, order: int, ratio: float) -> tuple[float, int]:
        if order != self.order:
            self._equal = 0
        self.order, self._known = order, ratio
        return ratio, order
