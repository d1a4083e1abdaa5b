"""Looking at an independent solve that is over: its states at any times, from the steps that were kept."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pynode.errors import UnsupportedError, explain
from pynode.native.independent.record import TERMINATED, Round, RowRecord
from pynode.native.independent.steps import extend, interpolated, step
from pynode.native.runge_kutta import coefficients
from pynode.solution import Counts

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


def kept_rounds(record: RowRecord) -> list[Round]:
    """The accepted steps.

    Raises
    ------
    UnsupportedError
        If they were not kept.
    """
    if record.rounds is None:
        raise UnsupportedError(
            explain(
                "sol(t) was called on a solve that kept no states (SaveAt(dense=False))",
                "a solve with dense output",
                "solve with saveat=SaveAt(dense=True), or put the times into t",
            )
        )
    return record.rounds


def evaluate(record: RowRecord, times: Floats, derivative: bool, counts: Counts) -> Tensor:
    """Dense output (M, B, n) at times (1 or B, M), in any order; NaN where a row was not integrated or the time is
    NaN."""
    problem, tableau = record.problem, record.tableau
    starts, ends = problem.row_times.starts, problem.row_times.ends
    y0 = problem.y0.detach()
    values = y0.new_full((times.shape[1], problem.rows.batch, problem.rows.size), float("nan"))
    # Rows without a step: of zero length, or failed at once.
    still = np.flatnonzero((starts == ends) | (record.accepted == 0))
    if len(still):
        asked = np.broadcast_to(times, (len(starts), times.shape[1]))[still]
        at, columns = np.nonzero(asked == starts[still, None])
        chosen = record.rows(still[at])
        found = y0.index_select(0, chosen)
        if derivative and len(at):
            field = problem.field_of(chosen, counts)
            found = field(field.time(starts[still[at]]), found)
        values[record.rows(columns), chosen] = found
    for one in kept_rounds(record):
        at, columns = one.within(times, starts)
        if not len(at):
            continue
        places, pairs = np.unique(at, return_inverse=True)
        ids = one.ids[places]
        chosen = record.rows(ids)
        y = one.y.index_select(0, record.rows(places))
        t, t1 = (torch.from_numpy(x[places]).to(y.device) for x in (one.t, one.t1))
        field = problem.field_of(chosen, counts)
        _, stages, _ = step(tableau, field, t, t1, y)
        extend(tableau, field, t, t1, y, stages, coefficients(tableau, y.dtype, y.device).all)
        asked = times[0 if len(times) == 1 else one.ids[at], columns]
        thetas = torch.from_numpy((asked - one.t[at]) / (one.t1 - one.t)[at]).to(y.device)
        found = interpolated(tableau, stages, y, t1 - t, record.rows(pairs), thetas, derivative)
        values[record.rows(columns), record.rows(one.ids[at])] = found
    return values


def taped(record: RowRecord, times: Floats, tensor: Tensor, derivative: bool, own_times: bool) -> Tensor:
    """The same on torch's tape: all accepted steps once more, from ``y0`` on, without the search for their sizes.

    ``tensor``: ``times`` connected to the user's. Rejected steps are not on the tape, so that what is not finite in
    them cannot reach a gradient.
    """
    problem, tableau, moving = record.problem, record.tableau, record.request.time_gradient
    batch, counts = problem.rows.batch, record.request.stats.forward
    y = problem.y0
    span = problem.row_times.span(problem.t)
    pieces: list[Tensor] = []
    where: list[Indices] = []
    initial = record.initial(times, derivative, own_times, moving)
    rows, columns = np.nonzero(initial)
    if len(rows):
        chosen = record.rows(rows)
        start = y.index_select(0, chosen)
        if derivative:
            field = problem.field_of(chosen, counts)
            start = field(field.time(span[0].index_select(0, chosen)), start)
        pieces.append(start)
        where.append(columns * batch + rows)
    for one in kept_rounds(record):
        chosen = record.rows(one.ids)
        field = problem.field_of(chosen, counts)
        state = y.index_select(0, chosen)
        t, t1 = boundaries(record, one, span)
        y1, stages, _ = step(tableau, field, t, t1, state)
        at, columns = one.within(times, record.problem.row_times.starts)
        fresh = ~initial[one.ids[at], columns]
        at, columns = at[fresh], columns[fresh]
        asked = times[0 if len(times) == 1 else one.ids[at], columns]
        plain = record.is_boundary(asked, one.t1[at], one.ids[at], own_times, moving) & (not derivative)
        if plain.any():
            pieces.append(y1.index_select(0, record.rows(at[plain])))
            where.append(columns[plain] * batch + one.ids[at[plain]])
        at, columns = at[~plain], columns[~plain]
        if len(at):
            extend(tableau, field, t, t1, state, stages, coefficients(tableau, y.dtype, y.device).all)
            places, h, series = record.rows(at), t1 - t, record.rows(columns)
            points = tensor[series] if tensor.ndim == 1 else tensor[record.rows(one.ids[at]), series]
            thetas = (points.to(h) - t.index_select(0, places)) / h.index_select(0, places)
            pieces.append(interpolated(tableau, stages, state, h, places, thetas, derivative))
            where.append(columns * batch + one.ids[at])
        y = y.index_copy(0, chosen, y1)
    flat = y.new_full((times.shape[1] * batch, problem.rows.size), float("nan"))
    if pieces:
        flat = flat.index_copy(0, record.rows(np.concatenate(where)), torch.cat(pieces))
    return flat.view(times.shape[1], batch, -1)


def boundaries(record: RowRecord, one: Round, span: Tensor) -> tuple[Tensor, Tensor]:
    """Ends of a round's steps (a,), those of a row's whole span with the gradient of ``span`` (2, B): the steps within
    are frozen."""
    times = record.problem.row_times
    chosen = record.rows(one.ids)
    t, t1 = (torch.from_numpy(x).to(span.device) for x in (one.t, one.t1))
    if not span.requires_grad:
        return t, t1
    first = torch.from_numpy(one.t == times.starts[one.ids]).to(span.device)
    # A step that an event cut short ends where it was put.
    whole = (one.t1 == times.ends[one.ids]) & (record.codes[one.ids] != TERMINATED)
    last = torch.from_numpy(whole).to(span.device)
    return (
        torch.where(first, span[0].index_select(0, chosen), t),
        torch.where(last, span[1].index_select(0, chosen), t1),
    )
