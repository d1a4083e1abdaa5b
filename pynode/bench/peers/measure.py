"""Errors over several draws and times in alternating slots, of all contestants at all tolerances together."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from pynode.bench.distance import error, root_mean_square
from pynode.bench.fields import Case
from pynode.bench.overhead import each
from pynode.bench.own_tier import own_tier
from pynode.bench.peers.contestant import Contestant, tensors
from pynode.bench.peers.lines import Line
from pynode.bench.reference import Reference
from pynode.bench.stages import Stages
from pynode.bench.timing import alternate

#: Seconds that a slot lasts at least, and over which a contestant's cores are counted.
SLOT = 0.02


def at(case: Case, rtol: float) -> Case:
    """The case at another tolerance, atol in proportion."""
    return dataclasses.replace(case, rtol=rtol, atol=rtol * case.atol / case.rtol)


def lines(
    contestants: Sequence[Contestant],
    draws: Sequence[Case],
    references: Sequence[Reference],
    rtols: Sequence[float],
    rounds: int,
    differentiated: bool,
    progress: Stages,
) -> list[Line]:
    """The line of every contestant; the first draw is timed, errors are root mean squares over all.

    A contestant that fails is left out of the timing at that tolerance, and its line tells why.
    """
    found = [Line(one.name) for one in contestants]
    ready: dict[str, Callable[[], Any]] = {}
    for contestant, line in zip(contestants, found, strict=True):
        for rtol in rtols:
            progress.show(f"{draws[0].name}: error of {contestant.name} at {rtol:g}")
            try:
                with own_tier():
                    line.errors[rtol] = _error(contestant, draws, references, rtol, differentiated)
                ready[_key(contestant.name, rtol)] = contestant.prepare(at(draws[0], rtol))
            except Exception as raised:  # a library may raise anything; whatever it is, the row says so
                line.errors.pop(rtol, None)
                line.failures[rtol] = f"{type(raised).__name__}: {raised}".splitlines()[0]
        progress.step(f"{draws[0].name}: errors of {contestant.name}")
    between = functools.partial(progress.step, f"{draws[0].name}: rounds of {len(ready)} contestants")
    timings = alternate(ready, rounds, slot=SLOT, warmup=1, between=between) if ready else {}
    for line in found:
        line.timings = {rtol: timings[_key(line.name, rtol)] for rtol in line.errors}
        if line.timings:
            line.cores = cores(ready[_key(line.name, min(line.timings))])
    return found


def _key(name: str, rtol: float) -> str:
    return f"{name} {rtol!r}"


def _error(
    contestant: Contestant, draws: Sequence[Case], references: Sequence[Reference], rtol: float, differentiated: bool
) -> float:
    errors = []
    for case, exact in zip(each(draws), references, strict=True):
        values = tensors(contestant.prepare(at(case, rtol))())
        errors.append(error(values, exact.gradient if differentiated else [exact.final]))
    found = root_mean_square(errors)
    if not math.isfinite(found):
        raise FloatingPointError("what it returned is not finite")
    return found


def cores(call: Callable[[], Any]) -> float:
    """Processor time of this process over wall time during ``call``."""
    start, used = time.perf_counter(), time.process_time()
    while time.perf_counter() - start < SLOT:
        call()
    return (time.process_time() - used) / (time.perf_counter() - start)
