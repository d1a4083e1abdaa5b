"""Rows over their events: from one to the next, each stretch an independent solve of the rows that go on.

What :mod:`pynode.segments` does for a joint solve. In a stretch every row goes to its next event, or to its end; the
rows that met one which does not end them have its effect applied, all in the same calls, and are the rows of the next
stretch. Each stretch starts from times and states that are differentiable functions of all that came before, so the
gradient of the whole is put together by autograd.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pynode.native.independent.firing import Fired, fire
from pynode.native.independent.looking import connected_states
from pynode.native.independent.problem import RowProblem
from pynode.native.independent.record import CODES, SUCCESS, TERMINATED, Floats, Indices, RowRecord
from pynode.native.independent.request import Start
from pynode.native.independent.row_roots import RowRoots
from pynode.native.independent.stretch import RowOptions, SaveTimes, solve_stretch
from pynode.per_sample import selected
from pynode.segments import ACCUMULATED
from pynode.solution import ReturnCode

_TOO_MANY, _MAX_ITERS = CODES.index(ReturnCode.TooManyEvents), CODES.index(ReturnCode.MaxIters)


@dataclass(frozen=True)
class Firings:
    """Events, elements of their conditions, times (m,) and states ``before`` and ``after`` (m, n), at places (m,) in
    (events, B)."""

    places: Indices
    event: Indices
    component: Indices
    t: Tensor
    before: Tensor
    after: Tensor


class Course:
    """The course of one solve over the events of its rows.

    Parameters
    ----------
    problem : RowProblem
    args : tuple
        As the user gave them.
    options : RowOptions
    save : SaveTimes
    max_events : int
        Of each row.
    """

    def __init__(
        self, problem: RowProblem, args: tuple[Any, ...], options: RowOptions, save: SaveTimes, max_events: int
    ) -> None:
        self.problem, self.args, self.options, self.save, self.max_events = problem, args, options, save, max_events
        batch = problem.rows.batch
        #: Every stretch, and its rows.
        self.parts: list[tuple[RowRecord, Indices]] = []
        #: Of each row: events, work, how it ended and when.
        self.fired: Indices = np.zeros(batch, dtype=np.int64)
        self.nfe, self.accepted, self.rejected = self.fired, self.fired, self.fired
        self.codes, self.reached = np.full(batch, SUCCESS, dtype=np.int8), np.zeros(0)
        #: Save times that have their states.
        self._passed: Indices = np.zeros(batch, dtype=np.int64)
        #: When each root function last fired; of rows in which one did again at once, what is said about it.
        self._last: Floats | None = None
        self.details: dict[int, str] = {}
        #: States at save times, at places in (M, B); all of them, where no row met an event.
        self.saved: list[tuple[Indices, Tensor]] = []
        self.values: Tensor | None = None
        self.firings: list[Firings] = []
        self._go()

    def _go(self) -> None:
        problem, save, start = self.problem, self.save, None
        ids = np.arange(problem.rows.batch)
        while True:
            record = solve_stretch(problem, self.options, save, start)
            self._count(record, ids)
            roots = record.roots
            if roots is None or np.isnan(roots.t).all():
                if len(self.parts) == 1:
                    self.values = connected_states(
                        record, save.values, save.tensor, record.values, derivative=False, own_times=save.own
                    )
                else:
                    self._pass(record, ids, save, record.passed)
                return
            columns = self._passed[ids]
            before = (roots.t[:, None] - save.values) * self._sign(ids) > roots.tolerance[:, None]
            passed = np.where(np.isnan(roots.t), record.passed, np.minimum(record.passed, before.sum(axis=1)))
            fired = fire(record, self._pass(record, ids, save, passed, roots))
            ended, going = self._outcomes(roots, ids, fired)
            self._close(roots, ids, ended, columns, save, fired.after)
            if not len(going):
                return
            rows = record.rows(going)
            start = Start(record.size[going], self._budget()[ids[going]], roots.noise()[going])
            ids = ids[going]
            problem = self._problem(ids, fired.times.index_select(0, rows), fired.after.index_select(0, rows))
            save = self._due(ids, problem.row_times.starts)

    def _sign(self, ids: Indices) -> Floats:
        """Directions (b, 1) of rows."""
        times = self.problem.row_times
        return np.where(times.ends < times.starts, -1.0, 1.0)[ids, None]

    def _budget(self) -> Indices:
        """Attempts of steps that rows have left."""
        left: Indices = self.options.stepping["max_steps"] - self.accepted - self.rejected
        return left

    def _count(self, record: RowRecord, ids: Indices) -> None:
        first = not self.parts
        self.parts.append((record, ids))
        self.codes[ids] = record.codes
        self.reached = record.reached if first else _put(self.reached, ids, record.reached)
        for name in ("nfe", "accepted", "rejected"):
            before, new = getattr(self, name), getattr(record, name)
            setattr(self, name, new if first else _put(before, ids, before[ids] + new))

    def _pass(
        self, record: RowRecord, ids: Indices, save: SaveTimes, passed: Indices, roots: RowRoots | None = None
    ) -> Tensor:
        """Keep the states at the first ``passed`` (b,) save times of a stretch; returns those (b, n) at its ``roots``.
        One query for both is one sweep backward."""
        most = int(passed.max(initial=0))
        here = np.arange(most) < passed[:, None]
        times = np.where(here, save.values[:, :most], math.nan)
        mask = torch.from_numpy(here).to(save.tensor.device)
        tensor = torch.where(mask, save.tensor[..., :most].double(), math.nan)
        values = record.values[:most]
        if roots is not None:
            at = roots.t[:, None]
            times = np.concatenate([times, at], axis=1)
            tensor = torch.cat([tensor, torch.from_numpy(at).to(tensor.device)], dim=1)
            values = torch.cat([values, roots.states[None]])
        # Times of their own: where they are those of t, their gradients and those of the steps' ends add up to these.
        found = connected_states(record, times, tensor, values, derivative=False, own_times=True)
        rows, columns = here.nonzero()
        self._keep(ids[rows], self._passed[ids[rows]] + columns, found[record.rows(columns), record.rows(rows)])
        self._passed[ids] += passed
        return found[-1] if roots is not None else found

    def _keep(self, rows: Indices, columns: Indices, states: Tensor) -> None:
        if len(rows):
            self.saved.append((columns * len(self.codes) + rows, states))

    def _outcomes(self, roots: RowRoots, ids: Indices, fired: Fired) -> tuple[Indices, Indices]:
        """Write down what fired; returns the places of rows that are at their ends, and of those that go on."""
        terminal = np.array([event.terminal for event in self.options.events])
        ends = np.zeros(len(ids), dtype=np.bool_)
        again = np.zeros(len(ids), dtype=np.bool_)
        if self._last is None:
            self._last = np.full((len(self.codes), len(roots.owner)), math.nan)
        earlier = self._last.copy()
        for one in fired.fires:
            rows, owner = ids[one.ids], roots.owner[one.which]
            places = self.fired[rows] * len(self.codes) + rows
            self.firings.append(Firings(places, owner, roots.component[one.which], one.t, one.before, one.after))
            self.fired[rows] += 1
            ends[one.ids] |= terminal[owner]
            now = roots.t[one.ids]
            gap = np.abs(now - earlier[rows, one.which])
            at_once = gap <= ACCUMULATED * np.spacing(np.abs(now))
            again[one.ids] |= at_once
            for place in at_once.nonzero()[0]:
                self.details[int(rows[place])] = f"events[{owner[place]}] fired {gap[place]:.3g} after it had fired"
            self._last[rows, one.which] = now
        stopped = ~np.isnan(roots.t)
        at_end = stopped & (np.abs(self.problem.row_times.ends[ids] - roots.t) <= roots.tolerance)
        codes = self.codes[ids]
        codes[stopped] = np.where(again, _TOO_MANY, SUCCESS)[stopped]
        codes[ends] = TERMINATED
        going = stopped & ~at_end & (codes == SUCCESS)
        codes[going & (self._budget()[ids] <= 0)] = _MAX_ITERS
        codes[going & (self.fired[ids] >= self.max_events)] = _TOO_MANY
        self.codes[ids] = codes
        return (at_end | ends).nonzero()[0], (going & (codes == SUCCESS)).nonzero()[0]

    def _close(
        self, roots: RowRoots, ids: Indices, ended: Indices, columns: Indices, save: SaveTimes, after: Tensor
    ) -> None:
        """Give the save times at the end of the rows at places ``ended`` their states behind the events. ``columns``
        (b,): how many save times each row had passed before its stretch."""
        due = np.broadcast_to(save.values, (len(ids), save.values.shape[1]))[ended]
        at, own = (np.abs(due - roots.t[ended, None]) <= roots.tolerance[ended, None]).nonzero()
        places = ended[at]
        self._keep(ids[places], columns[places] + own, after.index_select(0, torch.from_numpy(places).to(after.device)))

    def _problem(self, ids: Indices, t: Tensor, y: Tensor) -> RowProblem:
        """That of rows ``ids`` from times (b,) and states (b, n) on."""
        whole = self.problem
        ends = whole.row_times.span(whole.t)[1]
        times = torch.stack([t.to(ends.device), ends[torch.from_numpy(ids).to(ends.device)]], dim=1)
        args = selected(self.args, torch.from_numpy(ids).to(whole.rows.device))
        return RowProblem(whole.f, whole.rows.unpack(y), times, args)

    def _due(self, ids: Indices, starts: Floats) -> SaveTimes:
        """The save times that rows ``ids`` have ahead of them, none of which is before ``starts`` (b,) by rounding."""
        values, tensor = self.save.values, self.save.tensor
        count = values.shape[1]
        columns = self._passed[ids][:, None] + np.arange(count - int(self._passed[ids].min()))
        there, columns = columns < count, np.minimum(columns, count - 1)
        asked = values[0 if len(values) == 1 else ids[:, None], columns]
        late = np.where((asked - starts[:, None]) * self._sign(ids) < 0.0, starts[:, None], asked)
        late = np.where(there, late, math.nan)
        chosen = torch.from_numpy(columns).to(tensor.device)
        own = tensor[chosen] if tensor.ndim == 1 else tensor[torch.from_numpy(ids).to(tensor.device)[:, None], chosen]
        own = own.double()
        return SaveTimes(late, own + (torch.from_numpy(late).to(own.device) - own.detach()), own=True)


def _put(before: NDArray[Any], ids: Indices, values: NDArray[Any]) -> NDArray[Any]:
    """A copy with ``values`` in rows ``ids``: what is written over belongs to the record of a stretch."""
    found = before.copy()
    found[ids] = values
    return found
