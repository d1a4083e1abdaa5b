"""A contestant's work-precision line, and how much faster one line is than another at the same error."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from pynode.bench.equal_error import FLOOR, Point, time_at
from pynode.bench.timing import Spread, Timing, spread


@dataclass
class Line:
    """Error and times of a contestant by rtol.

    ``failures`` tells why there is nothing at an rtol. ``cores`` is processor time over wall time: above 1 a library
    runs on more threads than it was told to.
    """

    name: str
    errors: dict[float, float] = field(default_factory=dict)
    timings: dict[float, Timing] = field(default_factory=dict)
    failures: dict[float, str] = field(default_factory=dict)
    cores: float = math.nan

    def points(self, round_: int | None = None) -> list[Point]:
        """Its points by the medians, or by the times of one round."""
        return [
            Point(self.errors[rtol], timing.median if round_ is None else timing.samples[round_])
            for rtol, timing in self.timings.items()
        ]

    def plain(self) -> dict[str, Any]:
        """What ``--json`` writes."""
        runs = [
            {"rtol": rtol, "error": self.errors[rtol], "median": timing.median, "samples": list(timing.samples)}
            for rtol, timing in self.timings.items()
        ]
        failures = {f"{rtol:g}": why for rtol, why in self.failures.items()}
        return {"runs": runs, "failures": failures, "cores": None if math.isnan(self.cores) else self.cores}


@dataclass(frozen=True)
class Comparison:
    """How many times as fast ours is as a peer: its time over ours, within the same rounds.

    ``same``: at the same tolerance, None where the peer failed there. ``equal``: at the error that ours has there, each
    at the tolerance that gets it cheapest, with ``how`` of :class:`pynode.bench.equal_error.Reached` for the peer; None
    where the peer never reaches it.
    """

    same: Spread | None
    equal: Spread | None
    how: str

    @property
    def judged(self) -> float:
        """The figure a promise is held against: at equal error; at the same tolerance where the peer never reaches
        our error, which is then the smaller one; 0 where it cannot be said.

        Under "at most" the peer is the more accurate, so the figure is one that a looser peer would lower.
        """
        if self.equal is not None:
            return self.equal.median
        return 0.0 if self.same is None else self.same.median


def compare(ours: Line, peer: Line, rtol: float, floor: float = FLOOR) -> Comparison:
    """``peer`` beside ``ours`` at ``rtol``, which ours must have been timed at; errors below ``floor`` are equal."""
    timing, error = ours.timings[rtol], ours.errors[rtol]
    theirs = peer.timings.get(rtol)
    same = None if theirs is None else spread([a / b for a, b in zip(theirs.samples, timing.samples, strict=True)])
    if not peer.timings:
        return Comparison(same, None, "never")
    how = time_at(peer.points(), error, floor).how
    if how == "never":
        return Comparison(same, None, how)
    ratios = [
        time_at(peer.points(i), error, floor).seconds / time_at(ours.points(i), error, floor).seconds
        for i in range(len(timing.samples))
    ]
    return Comparison(same, spread([x for x in ratios if math.isfinite(x)]), how)
