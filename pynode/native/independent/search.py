"""Where rows meet their events: sign changes on the dense output of all steps of a round, and the roots there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pynode.native.independent.brackets import Brackets
from pynode.native.independent.conditions import Conditions
from pynode.native.independent.record import RowRecord
from pynode.native.independent.roots import roots
from pynode.native.independent.row_roots import RowRoots
from pynode.native.independent.steps import RowRungeKutta, extend, interpolated

if TYPE_CHECKING:
    from pynode.native.independent.running import Running

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Bools = NDArray[np.bool_]


class RowSearch:
    """Looks for events in the accepted steps of every round, and writes what it finds into ``record.roots``.

    What :class:`pynode.native.root_finding.Search` does for one solve, decision by decision.

    Parameters
    ----------
    record : RowRecord
    running : Running
        The rows at their starts.
    y, k1 : Tensor (b, n)
        Their states, and ``f`` there.
    """

    def __init__(self, record: RowRecord, running: Running, y: Tensor, k1: Tensor) -> None:
        self._record, self._problem = record, record.problem
        events = record.request.events
        self._conditions = Conditions(events, record.problem.rows)
        points = max(event.interp_points for event in events)
        self._inner = [k / (points + 1) for k in range(1, points + 1)]
        self._found = record.roots = RowRoots(record.problem.y0.detach())
        ids, times = running.ids.copy(), running.real(running.t).copy()
        field = self._problem.field_of(record.rows(ids), record.request.stats.forward)
        stamp = field.time(times)
        values = self._conditions.all(stamp, y, field.args).cpu().numpy()
        self._conditions.check_numbers(values, times, ids)
        owner = self._conditions.owner
        self._found.owner, self._found.component = owner, self._conditions.component
        self._wanted = np.array([event.direction for event in events])[owner]
        self._width = np.array([event.root_tol or 0.0 for event in events])[owner]
        batch = record.problem.rows.batch
        #: Of every row and root function: its last value, the sign that it last had (0 where it touched zero), and the
        #: one that it takes on where it starts at zero.
        self._last = np.full((batch, len(owner)), math.nan)
        self._last[ids] = values
        self._signs = np.sign(self._last)
        self._leaving = np.zeros_like(self._last)
        #: Rows that begin with a zero, up to the end of their first step.
        self._at_zero = np.zeros(batch, dtype=np.bool_)
        start = record.request.start
        zero = np.abs(values) <= (0.0 if start is None else start.noise[ids])
        if zero.any():
            self._signs[ids] = np.where(zero, 0.0, self._signs[ids])
            places = zero.any(axis=1).nonzero()[0]
            self._at_zero[ids[places]] = True
            slopes = self._slopes(ids[places], times[places], y, k1, record.rows(places))
            ahead = np.where(zero[places], np.sign(slopes * running.sign[places, None]), 0.0)
            self._leaving[ids[places]] = ahead

    def _slopes(self, ids: Indices, times: Floats, y: Tensor, k1: Tensor, places: Tensor) -> Floats:
        """Rates (b, k) at which the root functions change along the solution; 0 where that is unknown."""
        record, conditions = self._record, self._conditions
        field = self._problem.field_of(record.rows(ids), record.request.stats.forward)
        rate = k1.index_select(0, places)
        found = np.zeros((len(ids), len(conditions.owner)))
        with torch.enable_grad():
            stamp = field.time(times).requires_grad_()
            state = y.detach().index_select(0, places).requires_grad_()
            for which, (event, component) in enumerate(zip(conditions.owner, conditions.component, strict=True)):
                value = conditions(int(event), stamp, state, field.args)[:, int(component)]
                found[:, which] = slope(value, stamp, state, rate).cpu().numpy()
        return found

    def __call__(
        self, stepper: RowRungeKutta, running: Running, t1: Floats, states: tuple[Tensor, Tensor], accepted: Bools
    ) -> tuple[Bools, Floats] | None:
        """Look at the steps just accepted, of the rows ``running`` to ``t1`` (b,), multiplied by their directions, from
        and to ``states`` (b, n).

        Returns
        -------
        Which rows (b,) met an event, and up to where each step counts (b,); None where no row met one.
        """
        places = accepted.nonzero()[0]
        fired, until = np.zeros(len(accepted), dtype=np.bool_), t1.copy()
        if not len(places):
            return None
        fresh = self._at_zero[running.ids[places]]
        groups = [(places, False)] if not fresh.any() else [(places[~fresh], False), (places[fresh], True)]
        for group, first in groups:
            if len(group):
                step = _Steps(self._record, stepper, running, group, t1, states)
                at, times = self._look(step, first)
                fired[group[at]] = True
                until[group[at]] = times * running.sign[group[at]]
        return (fired, until) if fired.any() else None

    def _look(self, step: _Steps, first: bool) -> tuple[Indices, Floats]:
        """Places of the steps in which an event comes, and when."""
        ids, thetas = step.ids, self._inner
        if first:
            # Looked at in ever smaller distances from the start, to see short ways back to zero.
            start = thetas[0] if thetas else 1.0
            count = np.ceil(np.log(start * np.abs(step.h) / step.resolution) / math.log(4.0)).max()
            thetas = [*(start * 4.0**-k for k in range(int(max(count, 0)), 0, -1)), *thetas]
            self._at_zero[ids] = False
        values = self._values(step, thetas)
        thetas = [*thetas, 1.0]
        brackets = Brackets(
            thetas, values, self._last[ids], self._signs[ids], self._leaving[ids] if first else None, self._wanted
        )
        self._last[ids], self._signs[ids] = values[-1], brackets.signs
        rows, which = brackets.first()
        if not len(rows):
            return rows, np.zeros(0)
        (theta, noise), scale = self._roots(step, brackets, rows, which), np.abs(values).max(axis=0)[rows, which]
        order = np.lexsort((which, theta, rows))
        rows, which = rows[order], which[order]
        theta, noise, scale = theta[order], noise[order], scale[order]
        begins = np.append(True, rows[1:] != rows[:-1])
        first_of = np.maximum.accumulate(np.where(begins, np.arange(len(rows)), 0))
        tolerance = 4.0 * step.resolution
        together = (theta - theta[first_of]) * np.abs(step.h[rows]) <= tolerance[rows]
        noise = np.maximum(4.0 * noise, 16.0 * torch.finfo(step.y.dtype).eps * scale)
        self._found.add(step.ids[rows[together]], which[together], noise[together], scale[together])
        rows, theta = rows[begins], theta[begins]
        self._found.tolerance[step.ids[rows]] = tolerance[rows]
        return rows, self._note(step, rows, theta)

    def _values(self, step: _Steps, thetas: Sequence[float]) -> Floats:
        """Of all root functions, (m + 1, b, k), at fractions ``thetas`` (m,) of the steps, and at their ends."""
        times = [step.t + theta * step.h for theta in thetas]
        states = [*step.at_common(thetas), step.y1] if thetas else [step.y1]
        times.append(step.t1)
        field, conditions = step.field, self._conditions
        found = [conditions.all(field.time(t), y, field.args) for t, y in zip(times, states, strict=True)]
        values: Floats = torch.stack(found).cpu().numpy()
        conditions.check_numbers(values, np.stack(times), step.ids)
        return values

    def _roots(self, step: _Steps, brackets: Brackets, rows: Indices, which: Indices) -> tuple[Floats, Floats]:
        """Fractions of steps ``rows`` at which the root functions ``which`` are zero, and their values around them."""
        conditions, record = self._conditions, self._record
        owner, component = conditions.owner[which], conditions.component[which]

        def value(at: Indices, thetas: Floats) -> Floats:
            # At a time that there is: what the values around the root are tells what is zero as far as one can tell.
            times = step.t[rows[at]] + thetas * step.h[rows[at]]
            states = step.at(rows[at], (times - step.t[rows[at]]) / step.h[rows[at]])
            found = np.empty(len(at))
            for event in np.unique(owner[at]):
                own = (owner[at] == event).nonzero()[0]
                ids = step.ids[rows[at[own]]]
                field = self._problem.field_of(record.rows(ids), record.request.stats.forward)
                chosen = record.rows(own)
                value = conditions(int(event), field.time(times[own]), states.index_select(0, chosen), field.args)
                places = record.rows(component[at[own]])[:, None]
                found[own] = value.gather(1, places)[:, 0].double().cpu().numpy()
            conditions.check_numbers(found, times, step.ids[rows[at]], which[at])
            return found

        low, high, at_low, at_high = (x[rows, which] for x in brackets.ends)
        width = np.maximum(self._width[which], step.resolution[rows]) / np.abs(step.h[rows])
        return roots(value, low, high, at_low, at_high, width)

    def _note(self, step: _Steps, rows: Indices, theta: Floats) -> Floats:
        """Write down the events of steps ``rows``; returns their times."""
        found, ids = self._found, step.ids[rows]
        begin, end = step.t[rows], step.t1[rows]
        t = np.where(theta == 1.0, end, begin + theta * step.h[rows])
        # In this step, not at the end of the one before it.
        t = np.where(t == begin, np.nextafter(begin, end), t)
        theta = (t - begin) / step.h[rows]
        found.t[ids], found.h[ids] = t, step.h[rows]
        chosen = self._record.rows(ids)
        states, at_end = step.at(rows, theta), torch.from_numpy(t == end).to(step.y.device)[:, None]
        ends = step.y1.index_select(0, self._record.rows(rows))
        found.states.index_copy_(0, chosen, torch.where(at_end, ends, states))
        found.rates.index_copy_(0, chosen, step.at(rows, theta, True))
        return t


class _Steps:
    """Steps of some running rows, at ``places`` among them: times ``t``, ``t1`` and lengths ``h`` (b,) as the user
    counts them, states ``y`` and ``y1`` (b, n). ``resolution``: what times differ by at least."""

    def __init__(
        self,
        record: RowRecord,
        stepper: RowRungeKutta,
        running: Running,
        places: Indices,
        t1: Floats,
        states: tuple[Tensor, Tensor],
    ) -> None:
        self._record, self._stepper, self._chosen = record, stepper, record.rows(places)
        self.ids = running.ids[places]
        self.t, self.t1 = running.real(running.t)[places], running.real(t1)[places]
        self.h = self.t1 - self.t
        self.resolution = 2.0 * np.spacing(np.maximum(np.abs(self.t), np.abs(self.t1)))
        self.y, self.y1 = (x if len(places) == len(x) else x.index_select(0, self._chosen) for x in states)
        self.field = record.problem.field_of(record.rows(self.ids), record.request.stats.forward)
        self._kept: list[Tensor] | None = None
        self._h: Any = torch.from_numpy(self.h).to(self.y.device)

    @property
    def _stages(self) -> list[Tensor]:
        """All stages, those of dense output included."""
        if self._kept is None:
            k = self._stepper.coefficients
            self._kept = self._stepper.stages(self._chosen)
            if k.all > k.main:
                self._record.nfe[self.ids] += k.all - k.main
                t, t1 = (torch.from_numpy(x).to(k.device) for x in (self.t, self.t1))
                extend(self._record.tableau, self.field, t, t1, self.y, self._kept, k.all)
        return self._kept

    def at_common(self, thetas: Sequence[float]) -> list[Tensor]:
        """States (b, n) of all rows at each of the fractions ``thetas`` (m,)."""
        k = self._stepper.coefficients
        weights = k.dense_weights(torch.tensor(thetas, dtype=torch.float64, device=k.device), False)
        stages = torch.stack(self._stages[: k.all]).view(k.all, -1)
        return list((self.y + (weights @ stages).view(-1, *self.y.shape)).unbind())

    def at(self, places: Indices, thetas: Floats, derivative: bool = False) -> Tensor:
        """States (m, n), or their time derivatives, at fractions ``thetas`` (m,) of the steps at ``places`` (m,)."""
        at, points = self._record.rows(places), torch.from_numpy(thetas).to(self.y.device)
        return interpolated(self._record.tableau, self._stages, self.y, self._h, at, points, derivative)


def slope(value: Tensor, t: Tensor, y: Tensor, rate: Tensor) -> Tensor:
    """Rates (b,), float64, at which values (b,) of one root function, computed from ``t`` (b, 1, ..., 1) and ``y``
    (b, n) row by row, change along solutions that change at ``rate`` (b, n)."""
    total = rate.new_zeros(len(rate), dtype=torch.float64)
    if value.requires_grad:
        by_time, by_state = torch.autograd.grad(value.sum(), [t, y], retain_graph=True, allow_unused=True)
        if by_time is not None:
            total += by_time.reshape(-1)
        if by_state is not None:
            total += (by_state * rate).sum(dim=1)
    return total
