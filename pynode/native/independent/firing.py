"""The events that rows stopped at, and what they make of them, as differentiable functions of all they depend on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode.errors import FieldError, GradientError, explain
from pynode.layout import _branches
from pynode.native.independent.conditions import Conditions
from pynode.native.independent.record import Floats, Indices, RowRecord
from pynode.native.independent.row_roots import RowCrossings
from pynode.native.independent.search import slope


@dataclass(frozen=True)
class _Roots:
    """Roots of rows ``ids`` at times ``t`` (m,), where the conditions change at the rates ``slope`` (m,) and the states
    at ``rate`` (m, n). ``least``: slopes this small are none. ``event``: which."""

    ids: Indices
    t: Tensor
    slope: Tensor
    rate: Tensor
    least: Tensor
    event: Indices


class _Moved(torch.autograd.Function):
    """What :class:`pynode.event_time._Moved` is, for many rows: ``t*`` (m,) and ``y(t*)`` (m, n) from the conditions'
    values ``g`` (m,) and the states (m, n) at the fixed times of the roots."""

    @staticmethod
    def forward(ctx: Any, root: _Roots, g: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        ctx.root, ctx.like = root, g
        return root.t.clone(), y.clone()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[None, Tensor, Tensor]:
        along_t, along_y = cotangents
        root: _Roots = ctx.root
        if torch.is_grad_enabled():
            raise GradientError(
                explain(
                    "the gradient through the times of events was differentiated again (create_graph=True)",
                    "one differentiation through an event",
                    "differentiate once, or solve to fixed times",
                )
            )
        moved = along_t + (along_y * root.rate).sum(dim=1).to(along_t)
        grazing = (moved != 0.0) & ~(root.slope.abs() > root.least)
        if bool(grazing.any()):
            at = int(grazing.nonzero()[0])
            raise GradientError(
                explain(
                    f"the condition of events[{root.event[at]}] grazes zero in row {root.ids[at]} at "
                    f"t = {root.t[at].item():.9g}: it changes at the rate {root.slope[at].item():.3g} there, which is "
                    f"zero as far as one can tell ({int(grazing.sum())} such row(s))",
                    "a condition that crosses zero, so that the event's time is differentiable",
                    "use a condition with a simple root (g instead of g**3), that depends on t or y by differentiable "
                    "operations, or leave such rows out of the loss",
                )
            )
        along_g = torch.where(moved == 0.0, 0.0, -moved / root.slope)
        return None, along_g.to(ctx.like), along_y


@dataclass(frozen=True)
class Fires:
    """Events that fired in rows ``ids`` (m,), one in each: root function ``which`` (m,), times ``t`` (m,), and the
    states ``before`` and ``after`` (m, n)."""

    ids: Indices
    which: Indices
    t: Tensor
    before: Tensor
    after: Tensor


@dataclass(frozen=True)
class Fired:
    """What fired in the rows of a stretch: in order, and the times (B,) and the states (B, n) from which they go on."""

    fires: list[Fires]
    times: Tensor
    after: Tensor


def fire(record: RowRecord, states: Tensor) -> Fired:
    """Apply the effects of the events at which the rows of a stretch stopped: :meth:`pynode.segments._Run._fire`, for
    many rows.

    Parameters
    ----------
    record : RowRecord
    states : Tensor (B, n)
        At the fixed times of the events, connected to autograd.

    Raises
    ------
    FieldError
        If an effect returns what is no state.
    """
    roots = record.roots
    assert roots is not None
    crossings = roots.crossings()
    times = states.new_full((len(states),), math.nan, dtype=torch.float64)
    after, fires = states, list[Fires]()
    for rank in range(int(crossings.rank.max()) + 1):
        own = crossings.part(crossings.rank == rank)
        if rank:
            # An effect at the same time may have led away from this root.
            with torch.no_grad():
                values = _values(record, own, after.index_select(0, record.rows(own.ids))).cpu().numpy()
            own = own.part(np.abs(values) <= own.noise)
        rows = record.rows(own.ids)
        before = after.index_select(0, rows)
        t, moved = _moved(record, own, before)
        if rank == 0:
            times, before = times.index_copy(0, rows, t), moved
        changed = _after(record, own, t, before)
        after = after.index_copy(0, rows, changed)
        fires.append(Fires(own.ids, own.which, t, before, changed))
    return Fired(fires, times, after)


def _groups(record: RowRecord, which: Indices) -> list[tuple[int, int, Indices]]:
    """Events and elements of their conditions, and the places in ``which`` of each."""
    roots = record.roots
    assert roots is not None
    return [(int(roots.owner[i]), int(roots.component[i]), np.flatnonzero(which == i)) for i in np.unique(which)]


def _values(record: RowRecord, crossings: RowCrossings, y: Tensor) -> Tensor:
    """Root functions (m,) at the fixed times of their roots and states (m, n), float64."""
    problem, roots = record.problem, record.roots
    assert roots is not None
    conditions = Conditions(record.request.events, problem.rows)
    found = torch.zeros(len(y), dtype=torch.float64, device=y.device)
    for event, component, own in _groups(record, crossings.which):
        ids, places = crossings.ids[own], record.rows(own)
        field = problem.field_of(record.rows(ids), record.request.stats.forward)
        value = conditions(event, field.time(roots.t[ids]), y.index_select(0, places).clone(), field.args)
        found = found.index_copy(0, places, value[:, component].double())
    return found


def _moved(record: RowRecord, crossings: RowCrossings, y: Tensor) -> tuple[Tensor, Tensor]:
    """Times (m,) and states (m, n) of events, differentiable once; from the states at their fixed times."""
    problem, roots, ids = record.problem, record.roots, crossings.ids
    assert roots is not None
    t = torch.from_numpy(roots.t[ids]).to(y.device)
    if not torch.is_grad_enabled() or not len(ids):
        return t, y
    g = _values(record, crossings, y)
    if not (g.requires_grad or y.requires_grad):
        return t, y
    conditions = Conditions(record.request.events, problem.rows)
    slopes = torch.zeros_like(t)
    rate = roots.rates.index_select(0, record.rows(ids))
    for event, component, own in _groups(record, crossings.which):
        places = record.rows(own)
        field = problem.field_of(record.rows(ids[own]), record.request.stats.forward)
        at = field.time(t.index_select(0, places)).clone().requires_grad_()
        state = y.detach().index_select(0, places).requires_grad_()
        value = conditions(event, at, state.clone(), field.args)[:, component]
        slopes.index_copy_(0, places, slope(value, at, state, rate.index_select(0, places)))
    least: Floats = math.sqrt(torch.finfo(y.dtype).eps) * crossings.scale / np.abs(roots.h[ids])
    root = _Roots(ids, t, slopes, rate, torch.from_numpy(least).to(y.device), roots.owner[crossings.which])
    found: tuple[Tensor, Tensor] = _Moved.apply(root, g, y)  # type: ignore[no-untyped-call]
    return found


def _after(record: RowRecord, crossings: RowCrossings, times: Tensor, before: Tensor) -> Tensor:
    """States (m, n) after the effects, at times (m,)."""
    problem, roots, after = record.problem, record.roots, before
    assert roots is not None
    owner = roots.owner[crossings.which]
    for index, event in enumerate(record.request.events):
        own = np.flatnonzero(owner == index)
        if event.effect is None or not len(own):
            continue
        places = record.rows(own)
        field = problem.field_of(record.rows(crossings.ids[own]), record.request.stats.forward)
        state = problem.rows.unpack(before.index_select(0, places).clone())  # the effect may write into it
        found = event.effect(field.time(times.index_select(0, places)), state, *field.args)
        _check_state(record, found, len(own), f"the effect of events[{index}]")
        after = after.index_copy(0, places, problem.rows.pack(found))
    return after


def _check_state(record: RowRecord, tree: Any, rows: int, source: str) -> None:
    """Raise FieldError unless ``tree``, which ``source`` returned, is a state of so many rows."""
    row = record.problem.rows.row
    for path, leaf, shape, dtype in zip(
        row.paths, _branches(row.template, tree, "y", source), row.shapes, row.dtypes, strict=True
    ):
        fits = isinstance(leaf, Tensor) and leaf.shape == (rows, *shape) and leaf.dtype is dtype
        if not fits or leaf.device != row.device:
            came = f"{tuple(leaf.shape)} and dtype {leaf.dtype}" if isinstance(leaf, Tensor) else type(leaf).__name__
            raise FieldError(
                explain(
                    f"{source} returned {came} for {path.replace('y0', 'y', 1)}, called with {rows} rows",
                    f"the states of these rows after the event, {(rows, *shape)} of {dtype} on {row.device}",
                    "compute it from y row by row",
                )
            )
