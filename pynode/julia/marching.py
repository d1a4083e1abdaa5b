"""A solve that Python follows step by step, to find its first event (:mod:`pynode.native.root_finding`).

Julia takes one step at a time and evaluates nothing behind the step that holds the event; conditions are looked at on
the dense output of that step, as on the torch backend. No callback of SciML's is involved: the steps are those of a
solve without events.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from pynode.events import Watch
from pynode.julia.crossing import Reply, SolveCall
from pynode.julia.record import JuliaRecord
from pynode.native.root_finding import Search
from pynode.problem import Field
from pynode.solution import ReturnCode


class _Step:
    """The last step of a solve under way, as far as the search for events looks at it."""

    def __init__(self, record: JuliaRecord) -> None:
        self._record = record
        self.field = record.request.problem.field(record.stats.forward)
        self.t = self.t1 = record.request.problem.times[0]

    def interpolate(self, thetas: Sequence[float], derivative: bool = False) -> Tensor:
        """States (m, n) at fractions of the step, or their time derivatives."""
        return states(self._record, [self.t + theta * (self.t1 - self.t) for theta in thetas], derivative)

    def piece(self) -> Callable[[Sequence[float], Field], Tensor]:
        """The dense output of the step."""
        return lambda times, field: states(self._record, times)


def states(record: JuliaRecord, times: Sequence[float], derivative: bool = False) -> Tensor:
    """States (m, n) at ``times``, or their time derivatives, as far as the solve has come."""
    at, problem = np.array(times, dtype=np.float64), record.request.problem
    values = problem.y0.detach().new_empty(len(at), problem.layout.size)
    record.call("evaluate", record.solution, at.ctypes.data, len(at), int(derivative), values.data_ptr())
    return values


def march(record: JuliaRecord, call: SolveCall, watch: Watch) -> Reply:
    """Solve up to the first event, if there is one: ``record`` then has what was saved, and ``watch`` the event.

    The reply is that to the whole solve; it knows nothing of the event.
    """
    request = record.request
    problem = request.problem
    record.solution = int(record.call("solve", ctypes.byref(call)).solution)
    # The search asks a stepper for no more than what such a step has.
    search, step = Search(watch, problem), _Step(record)
    y, at, over = problem.y0.detach(), None, False
    while at is None and not over:
        reply = record.call("advance", record.solution)
        over = bool(reply.saved)
        if reply.retcode or reply.t == step.t1:
            continue
        step.t, step.t1 = step.t1, float(reply.t)
        y1 = states(record, [step.t1])[0]
        at = search(step, step.t, step.t1, y, y1)  # type: ignore[arg-type]
        y = y1
    reply = record.call("finish", record.solution)
    record.steps = int(reply.steps)
    record.t = float(reply.t) if at is None else at
    sign = math.copysign(1.0, problem.times[-1] - problem.times[0])
    if request.save_steps:
        ends = np.empty(record.steps)
        every = problem.y0.detach().new_empty(record.steps, problem.layout.size)
        record.call("steps", record.solution, ends.ctypes.data, every.data_ptr())
        record.saved = ends.tolist()
    else:
        record.saved = list(request.times)
    if at is None:
        record.saved = [x for x in record.saved if (record.t - x) * sign >= 0.0]
    else:
        record.saved = [x for x in record.saved if (at - x) * sign > watch.tolerance]
        record.retcode = ReturnCode.Terminated
        record.saved.append(at)
        watch.rate = states(record, [at], derivative=True)[0]
    record.values = states(record, record.saved)
    record.end = states(record, [record.t])[0]
    return reply
