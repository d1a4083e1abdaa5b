"""Timing several contestants in one process so that what disturbs one disturbs all.

Every round gives each contestant one slot; the order rotates from round to round. Ratios are taken within a round
and their median over rounds, so that a drift of the machine cancels.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one contestant, one sample a round."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def minimum(self) -> float:
        return min(self.samples)

    def over(self, other: Timing) -> float:
        """Median over rounds of this contestant's time divided by the other's in the same round."""
        return statistics.median(a / b for a, b in zip(self.samples, other.samples, strict=True))

    @property
    def spread(self) -> Spread:
        return spread(self.samples)


@dataclass(frozen=True)
class Spread:
    """Median of several values with their lower and upper quartiles."""

    median: float
    lower: float
    upper: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.lower:.2f}, {self.upper:.2f}]"


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles, linear between the sorted values; of a single value, it three times."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, lower, upper)


def alternate(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    calls: Mapping[str, int] | None = None,
    slot: float = 0.0,
    warmup: int = 3,
    clock: Callable[[], float] = time.perf_counter,
    between: Callable[[], object] = lambda: None,
) -> dict[str, Timing]:
    """Time every contestant once in each of ``rounds`` rounds.

    Parameters
    ----------
    contestants : mapping of name to callable
    rounds : int
    calls : mapping of name to int, optional
        Calls per slot, 1 by default: raise it for a contestant too quick for the clock.
    slot : float
        Seconds that a slot lasts at least: a contestant that is quicker is called several times in it, as a training
        loop would, so that it is not timed on caches that the slower ones have filled.
    warmup : int
        Untimed calls of each contestant before the first round.
    clock : callable
        Seconds, monotone.
    between : callable
        Called after every round, while no clock runs.

    Returns
    -------
    dict of name to Timing
        Seconds per call. The garbage collector runs between rounds, never within a slot.
    """
    names: Sequence[str] = list(contestants)
    repeat = {name: (calls or {}).get(name, 1) for name in names}
    for name, call in contestants.items():
        quickest = math.inf
        for _ in range(warmup):
            start = clock()
            call()
            quickest = min(quickest, clock() - start)
        if slot and quickest > 0:
            repeat[name] = max(repeat[name], math.ceil(slot / quickest))
    samples: dict[str, list[float]] = {name: [] for name in names}
    enabled = gc.isenabled()
    gc.disable()
    try:
        for round_ in range(rounds):
            gc.collect()
            first = round_ % len(names)
            for name in (*names[first:], *names[:first]):
                call, times = contestants[name], range(repeat[name])
                start = clock()
                for _ in times:
                    call()
                samples[name].append((clock() - start) / repeat[name])
            between()
    finally:
        if enabled:
            gc.enable()
    return {name: Timing(tuple(values)) for name, values in samples.items()}
