"""The events that ended rows, as differentiable functions of all they depend on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode.errors import FieldError, GradientError, explain
from pynode.events import RowFiring
from pynode.layout import _branches
from pynode.native.independent.conditions import Conditions
from pynode.native.independent.record import Floats, Indices, RowRecord
from pynode.native.independent.search import Fired, slope


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


def firing(record: RowRecord, states: Tensor) -> RowFiring:
    """What ended the rows of a solve that is over.

    Parameters
    ----------
    record : RowRecord
    states : Tensor (B, n)
        At the fixed times of the events, connected to autograd; NaN elsewhere.

    Raises
    ------
    FieldError
        If an effect returns what is no state.
    """
    fired, problem = record.fired, record.problem
    assert fired is not None
    batch, layout = problem.rows.batch, problem.rows
    times = torch.full((batch,), math.nan, dtype=torch.float64, device=layout.device)
    ids = np.flatnonzero(fired.event >= 0)
    before = states
    if len(ids):
        rows = record.rows(ids)
        t, y = _moved(record, fired, ids, states.index_select(0, rows))
        times, before = times.index_copy(0, rows, t), states.index_copy(0, rows, y)
    return RowFiring(
        t=times,
        event=torch.from_numpy(fired.event.copy()),
        component=torch.from_numpy(fired.component.copy()),
        before=layout.unpack(before),
        after=layout.unpack(_after(record, fired, times, before)),
    )


def _moved(record: RowRecord, fired: Fired, ids: Indices, y: Tensor) -> tuple[Tensor, Tensor]:
    """Times (m,) and states (m, n) of the events of rows ``ids``, differentiable once."""
    problem = record.problem
    t = torch.from_numpy(fired.t[ids]).to(y.device)
    if not torch.is_grad_enabled():
        return t, y
    conditions = Conditions(record.request.events, problem.rows)
    g: Tensor = torch.zeros_like(t)
    slopes = torch.zeros_like(t)
    rate = fired.rates.index_select(0, record.rows(ids))
    for event, component in sorted(set(zip(fired.event[ids].tolist(), fired.component[ids].tolist(), strict=True))):
        own = np.flatnonzero((fired.event[ids] == event) & (fired.component[ids] == component))
        places = record.rows(own)
        field = problem.field_of(record.rows(ids[own]), record.request.stats.forward)
        stamp = field.time(t.index_select(0, places))
        value = conditions(event, stamp, y.index_select(0, places).clone(), field.args)[:, component]
        g = g.index_copy(0, places, value.double())
        at, state = stamp.clone().requires_grad_(), y.detach().index_select(0, places).requires_grad_()
        again = conditions(event, at, state.clone(), field.args)[:, component]
        slopes.index_copy_(0, places, slope(again, at, state, rate.index_select(0, places)))
    if not (g.requires_grad or y.requires_grad):
        return t, y
    least: Floats = math.sqrt(torch.finfo(y.dtype).eps) * fired.scale[ids] / np.abs(fired.h[ids])
    root = _Roots(ids, t, slopes, rate, torch.from_numpy(least).to(y.device), fired.event[ids])
    found: tuple[Tensor, Tensor] = _Moved.apply(root, g, y)  # type: ignore[no-untyped-call]
    return found


def _after(record: RowRecord, fired: Fired, times: Tensor, before: Tensor) -> Tensor:
    """States (B, n) after the effects."""
    problem, after = record.problem, before
    for index, event in enumerate(record.request.events):
        ids = np.flatnonzero(fired.event == index)
        if event.effect is None or not len(ids):
            continue
        rows = record.rows(ids)
        field = problem.field_of(rows, record.request.stats.forward)
        own = problem.rows.unpack(before.index_select(0, rows).clone())  # the effect may write into it
        found = event.effect(field.time(times.index_select(0, rows)), own, *field.args)
        _check_state(record, found, len(ids), f"the effect of events[{index}]")
        after = after.index_copy(0, rows, problem.rows.pack(found))
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
