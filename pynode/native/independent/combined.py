"""The solution of rows over their events, put together from all stretches."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode.batch_solution import BatchSolution, RowCounts, rows_message
from pynode.events import RowFiring
from pynode.native.independent.course import Course
from pynode.native.independent.failures import detail
from pynode.native.independent.gathered import Piece, gathered
from pynode.native.independent.looking import look, times_within
from pynode.native.independent.record import CODES, outcome, unsuccessful
from pynode.native.independent.times import RowTimes
from pynode.solution import ReturnCode


def combined(course: Course, series: RowTimes) -> BatchSolution:
    """The solution of a solve that is over. ``series``: its save times."""
    problem, options = course.problem, course.options
    batch = problem.rows.batch
    values = course.values
    if values is None:
        values = gathered(course.saved, course.save.values.shape[1], batch, "save time", problem.y0)
    if batch == 0 and torch.is_grad_enabled():
        values = problem.y0[None].expand(values.shape[0], -1, -1).clone()  # of no row, but on the tape
    tensor = series.tensor if course.save.own else problem.t
    differentiable = any(record.request.differentiable for record, _ in course.parts)
    return BatchSolution(
        ts=tensor if series.shared else tensor.t(),
        ys=problem.rows.unpack(values),
        retcode=outcome(course.codes),
        stats=options.stats,
        algorithm=options.algorithm,
        sensealg=options.sensealg if differentiable and values.requires_grad else None,
        evaluate=functools.partial(_queried, course),
        span=(torch.from_numpy(problem.row_times.starts.copy()), torch.from_numpy(course.reached.copy())),
        message=_message(course),
        retcodes=[CODES[code] for code in course.codes],
        row_stats=RowCounts(*(torch.from_numpy(x) for x in (course.nfe, course.accepted, course.rejected))),
        firings=_firings(course),
    )


def _firings(course: Course) -> tuple[RowFiring, ...]:
    """What fired in each row first, what second, and so on; at least the first, if events were asked for."""
    if not course.options.events:
        return ()
    layout, batch = course.problem.rows, len(course.codes)
    count = max(int(course.fired.max(initial=0)), 1)
    event, component = np.full((2, count * batch), -1, dtype=np.int64)
    times, before, after = list[Piece](), list[Piece](), list[Piece]()
    for one in course.firings:
        event[one.places], component[one.places] = one.event, one.component
        times.append((one.places, one.t[:, None]))
        before.append((one.places, one.before))
        after.append((one.places, one.after))
    y0 = course.problem.y0
    t = gathered(times, count, batch, "event", y0.new_empty((0, 1), dtype=torch.float64))
    before_, after_ = (gathered(pieces, count, batch, "event", y0) for pieces in (before, after))
    return tuple(
        RowFiring(
            t=t[i, :, 0],
            event=torch.from_numpy(event[i * batch : (i + 1) * batch].copy()),
            component=torch.from_numpy(component[i * batch : (i + 1) * batch].copy()),
            before=layout.unpack(before_[i]),
            after=layout.unpack(after_[i]),
        )
        for i in range(count)
    )


def _queried(course: Course, at: Tensor, derivative: bool) -> Any:
    """What calling the solution gives: the dense output of the stretch that each time lies in, at an event of the one
    that starts there."""
    tensor = at if at.ndim == 2 else at.reshape(-1)
    times = times_within(course.problem, tensor)
    if len(course.parts) == 1:
        values = look(course.parts[0][0], times, tensor, derivative)
    else:
        values = _over_stretches(
            course, np.broadcast_to(times, (len(course.codes), times.shape[1])), tensor, derivative
        )
    return course.problem.rows.unpack(values if at.ndim else values[0])


def _over_stretches(course: Course, times: Any, tensor: Tensor, derivative: bool) -> Tensor:
    """Dense output (M, B, n) at times (B, M)."""
    batch, row_times = len(course.codes), course.problem.row_times
    sign = np.where(row_times.ends < row_times.starts, -1.0, 1.0)[:, None]
    stretch = np.zeros(times.shape, dtype=np.int64)
    for record, ids in course.parts[1:]:
        starts = record.problem.row_times.starts[:, None]
        stretch[ids] += (times[ids] - starts) * sign[ids] >= 0.0
    pieces = list[Piece]()
    for number, (record, ids) in enumerate(course.parts):
        mine = (stretch[ids] == number) & ((record.reached[:, None] - times[ids]) * sign[ids] >= 0.0)
        if not mine.any():
            continue
        asked = np.where(mine, times[ids], math.nan)
        chosen = torch.from_numpy(ids).to(tensor.device)
        own = tensor.double() if tensor.ndim == 1 else tensor.double().index_select(0, chosen)
        found = look(record, asked, torch.where(torch.from_numpy(mine).to(tensor.device), own, math.nan), derivative)
        rows, columns = mine.nonzero()
        pieces.append((columns * batch + ids[rows], found[record.rows(columns), record.rows(rows)]))
    return gathered(pieces, times.shape[1], batch, "time", course.problem.y0)


def _message(course: Course, shown: int = 3) -> str:
    failed = np.flatnonzero(unsuccessful(course.codes))
    if not len(failed):
        return ""
    described = [(int(row), float(course.reached[row]), _detail(course, int(row))) for row in failed[:shown]]
    return rows_message(described, [CODES[code] for code in course.codes])


def _detail(course: Course, row: int) -> str:
    code = CODES[course.codes[row]]
    if code is ReturnCode.TooManyEvents:
        return course.details.get(row, f"max_events = {course.max_events} events")
    if code is ReturnCode.MaxIters and course.fired[row]:
        return f"max_steps = {course.options.stepping['max_steps']} attempted steps, {course.fired[row]} events"
    record, ids = next((record, ids) for record, ids in reversed(course.parts) if row in ids)
    return detail(record, int(np.searchsorted(ids, row)))
