"""Rounds of step attempts of all running rows. Knows a tableau's stepper and a controller, no method by name.

Each row goes through what :func:`pynode.native.loop.integrate_adaptive` does for a single solve, decision by decision,
so that its steps are those it would take alone, up to rounding.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pynode.native.independent.control import initial_steps, propose, refined_steps
from pynode.native.independent.departed import Departed
from pynode.native.independent.norm import RowNorm, blended
from pynode.native.independent.record import CODES, SUCCESS, TERMINATED, Round, RowRecord
from pynode.native.independent.running import Running
from pynode.native.independent.saver import Saver
from pynode.native.independent.search import RowSearch
from pynode.native.independent.steps import RowRungeKutta
from pynode.problem import check_pure
from pynode.solution import ReturnCode

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Bools = NDArray[np.bool_]


def integrate(record: RowRecord, derivative: Tensor | None = None) -> None:
    """Integrate all rows of ``record``. ``derivative`` (B, n): ``f`` at their starts where it is known already."""
    times = record.problem.row_times
    starts, ends = times.starts, times.ends
    sign = np.where(ends < starts, -1.0, 1.0)
    y0 = record.problem.y0.detach()
    saver = Saver(record, sign)
    saver.start(starts, ends, y0)
    if derivative is not None:
        record.nfe += 1  # the probing evaluation was one of all rows
    moving = np.flatnonzero(starts != ends)
    if len(moving):
        loop = _Loop(record, saver, Running(moving, starts, ends, sign))
        before = np.geterr()
        try:
            with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
                loop.run(y0, derivative)
        except KeyboardInterrupt:  # which may have cut the end of that context short
            np.seterr(**before)
            raise
        if loop.stepper.coefficients.all > loop.stepper.coefficients.main:
            _close_gaps(record)


def _close_gaps(record: RowRecord) -> None:
    """Rows whose states between the steps are not finite (methods that evaluate f once more to interpolate) have
    ended before the first of them."""
    values, times = record.values, record.request.save_values
    places = np.arange(len(values))[:, None]
    wrong = torch.isfinite(values).all(dim=2).logical_not().cpu().numpy() & (places < record.passed)
    for row in (wrong.any(axis=0) & (record.codes == SUCCESS)).nonzero()[0]:
        first = int(wrong[:, row].argmax())
        record.codes[row] = CODES.index(ReturnCode.Unstable)
        record.passed[row], record.at_fault[row] = first, True
        values[first:, int(row)] = math.nan
        own = times[0 if len(times) == 1 else row]
        record.reached[row] = own[first - 1] if first else record.problem.row_times.starts[row]


class _Loop:
    """Takes rows from their starts to their ends."""

    def __init__(self, record: RowRecord, saver: Saver, running: Running) -> None:
        self.record, self.saver, self.running = record, saver, running
        self.request = request = record.request
        self.counts = request.stats.forward
        self.norm = RowNorm(request.rtol, request.atol, request.norm, record.problem.rows)
        self.departed = Departed()
        running.following[:] = record.passed[running.ids]
        running.upcoming[:] = saver.upcoming(running.ids, running.following)
        self._stops = np.unique(np.array(request.tstops, dtype=np.float64))
        self._aim(np.arange(len(running)))
        self._all = len(running) == record.problem.rows.batch
        self._select()
        self.stepper = RowRungeKutta(record.tableau, self.field, len(running))
        #: Of every row that is still running.
        self._nfe = self._attempts = 0
        #: How many attempts rows may make, and the least of these.
        self._budget = np.full(record.problem.rows.batch, request.max_steps, dtype=np.int64)
        if request.start is not None:
            self._budget = request.start.budget
        self._least = int(self._budget.min())
        self._search: RowSearch | None = None
        # No row's smallest step is larger than this.
        furthest = np.maximum(np.abs(running.t), np.abs(running.end)).max()
        self._coarse_floor = max(request.dtmin, 4.0 * float(np.spacing(furthest)))

    def _select(self) -> None:
        """The field of the running rows."""
        self.rows = self.record.rows(self.running.ids)
        self.field = self.record.problem.field_of(None if self._all else self.rows, self.counts)

    def _aim(self, places: Indices) -> None:
        """Make the next stop of rows, or else their end, what their steps must meet."""
        running = self.running
        running.target[places] = running.end[places]
        for sign in (1.0, -1.0) if len(self._stops) else ():
            ahead = np.append(np.sort(sign * self._stops), np.inf)
            own = places[running.sign[places] == sign]
            stop = ahead[np.searchsorted(ahead, running.t[own], side="right")]
            running.target[own] = np.minimum(stop, running.end[own])

    def run(self, y0: Tensor, derivative: Tensor | None) -> None:
        """All rounds, to the record."""
        request = self.request
        self._start(y0, derivative)
        if request.events and len(self.running):
            self._search = RowSearch(self.record, self.running, self.y, self.k1)
        while len(self.running):
            if self._attempts < self._least:
                self._round()
                continue
            exhausted = self._budget[self.running.ids] <= self._attempts
            if exhausted.any():
                self._leave(exhausted, ReturnCode.MaxIters)
            self._least = int(self._budget[self.running.ids].min(initial=request.max_steps))
        self.departed.write(self.record, self.counts)

    def _start(self, y0: Tensor, derivative: Tensor | None) -> None:
        running, request = self.running, self.request
        self.y = y0 if self._all else y0.index_select(0, self.rows)
        if derivative is None:
            self.k1 = check_pure(self.field, self.field.time(running.real(running.t)), self.y)
            self._nfe += 1
        else:
            self.k1 = derivative if self._all else derivative.index_select(0, self.rows)
        wrong = ~torch.isfinite(self.k1).all(dim=1).cpu().numpy()
        running.size[:] = np.nan
        if wrong.any():
            self._leave(wrong, ReturnCode.InitialFailure)
            running = self.running
        if len(running):
            running.size[:] = np.maximum(np.minimum(self._initial(), request.dtmax), self._floor())

    def _initial(self) -> Floats:
        """Magnitudes of the first steps (Hairer, Norsett and Wanner 1993, section II.4); one more evaluation."""
        running, request = self.running, self.request
        if request.start is not None:
            return request.start.sizes[running.ids]
        if request.dt0 is not None:
            return np.full(len(running), request.dt0)
        y, f0 = self.y, self.k1
        scale = self.norm.scale(y.abs())
        d0, d1 = self.norm(torch.stack([y, f0]), scale)
        span = running.end - running.t
        h0 = initial_steps(d0, d1, span)
        moved = torch.addcmul(y, f0, torch.from_numpy(running.real(h0)).to(y)[:, None])
        f1 = self.field(self.field.time(running.real(running.t + h0)), moved)
        self._nfe += 1
        d2 = self.norm((f1 - f0)[None], scale)[0] / h0
        return refined_steps(h0, d1, d2, self.stepper.error_order, span)

    def _round(self) -> None:
        """Attempt one step of every running row; none where a row has to leave first."""
        running, request, stepper = self.running, self.request, self.stepper
        t, size, target = running.t, running.size, running.target
        if request.force_dtmin:
            np.maximum(size, request.dtmin, out=size)
        left = target - t
        # A step that would leave a sliver before the target is stretched over it: not beyond dtmax, and not after a
        # rejection.
        clipped = size * running.stretch >= left
        if request.dtmax < math.inf:
            clipped &= (left <= request.dtmax * (1.0 + 1e-9)) | (size >= left)
        if size.min() < self._coarse_floor:
            small = (size < self._floor()) & ~clipped
            if small.any():
                self._too_small(small)
                return
        t1 = t + size
        some_clipped = bool(clipped.any())
        if some_clipped:
            t1 = np.where(clipped, target, t1)
        taken = t1 - t
        y, k1, real = self.y, self.k1, running.real
        y1, last = stepper.attempt(self.field, real(t), real(t1), real(taken), y, k1)
        self._nfe += stepper.coefficients.main - 1
        self._attempts += 1
        scale = self.norm.scale(torch.maximum(y.abs(), y1.abs()))
        ratio = blended(self.norm(stepper.errors(y1), scale))
        accepted, factor = propose(request.controller, ratio, stepper.error_order, running.first, running.second)
        if request.force_dtmin:
            accepted |= (taken <= 1.02 * request.dtmin) & np.isfinite(ratio)
        factor *= taken
        everyone = bool(accepted.all())
        if some_clipped:  # a step cut short by a target says nothing against the size proposed before
            np.maximum(factor, size, out=factor, where=clipped & accepted)
        if request.dtmax < math.inf:
            np.minimum(factor, request.dtmax, out=factor, where=accepted)
        events = None if self._search is None else self._search(stepper, running, t1, (y, y1), accepted)
        fired, until = (None, t1) if events is None else events
        passes = running.upcoming <= until
        if not everyone:
            passes &= accepted
        passed = passes.nonzero()[0]
        if len(passed):
            ids, following = running.ids, running.following
            following[passed] = self.saver.save(stepper, ids, passed, following, t, t1, until, y, y1)
            running.upcoming[passed] = self.saver.upcoming(ids[passed], following[passed])
        if self.record.rounds is not None:
            self._keep(None if everyone else accepted.nonzero()[0], real(t), real(t1), real(until))
        stuck = None
        if everyone:
            self.y = y1
            # A copy, as f may write its next result into the same memory.
            self.k1 = last.clone() if stepper.fsal else k1
            running.stretch[:] = 1.01
        else:
            stuck = self._stuck(accepted, clipped, taken)
            t1, until = np.where(accepted, t1, t), np.where(accepted, until, t)
            mask = torch.from_numpy(accepted).to(y.device)[:, None]
            self.y = torch.where(mask, y1, y)
            if stepper.fsal:
                self.k1 = torch.where(mask, last, k1)
            running.stretch[:] = np.where(accepted, 1.01, 1.0)
        running.t[:], running.size[:], running.ratio[:] = until, factor, ratio
        running.accepted += accepted
        if some_clipped or fired is not None:
            accepted = self._arrive(t1, accepted, taken, stuck, fired)
        if not stepper.fsal and len(self.running) and accepted.any():
            self._begin(accepted.nonzero()[0])

    def _floor(self) -> Floats:
        """The smallest steps that still advance time."""
        floor: Floats = np.maximum(self.request.dtmin, 4.0 * np.spacing(np.abs(self.running.t)))
        return floor

    def _stuck(self, accepted: Bools, clipped: Bools, taken: Floats) -> Bools | None:
        """Rows rejected in a step to their target that is as small as steps can be; None where there are none."""
        if taken.min() >= self._coarse_floor:
            return None
        stuck: Bools = ~accepted & clipped & (taken < self._floor())
        return stuck if stuck.any() else None

    def _arrive(self, t1: Floats, accepted: Bools, taken: Floats, stuck: Bools | None, fired: Bools | None) -> Bools:
        """Rows at their ends leave, and rows that are ``stuck`` or that an event ``fired`` in; returns ``accepted`` of
        those that go on."""
        running = self.running
        done = t1 == running.end if fired is None else (t1 == running.end) | fired
        if len(self._stops):
            self._aim(((t1 == running.target) & ~done).nonzero()[0])
        if stuck is not None:
            running.size[stuck] = taken[stuck]
            self._too_small(stuck, done, fired)
            done |= stuck
        elif done.any():
            self._leave(done, _codes(fired, len(done)))
        going_on: Bools = accepted[~done]
        return going_on

    def _keep(self, places: Indices | None, t: Floats, t1: Floats, until: Floats) -> None:
        """Remember the steps that were accepted, at ``places`` (everywhere where None)."""
        ids = self.running.ids
        assert self.record.rounds is not None
        if places is None:
            # The loop writes into its numbers, but replaces the states.
            self.record.rounds.append(Round(ids.copy(), t.copy(), t1, self.y, until))
        elif len(places):
            states = self.y.index_select(0, self.record.rows(places))
            self.record.rounds.append(Round(ids[places], t[places], t1[places], states, until[places]))

    def _begin(self, places: Indices) -> None:
        """Evaluate ``f`` at the new states of rows whose last stage it was not."""
        running, record = self.running, self.record
        time = self.field.time(running.real(running.t)[places])
        if len(places) == len(running):
            self.k1 = self.field(time, self.y).clone()
        else:
            chosen = record.rows(places)
            field = record.problem.field_of(record.rows(running.ids[places]), self.counts)
            self.k1 = self.k1.index_copy(0, chosen, field(time, self.y.index_select(0, chosen)))
        record.nfe[running.ids[places]] += 1

    def _too_small(self, small: Bools, done: Bools | None = None, fired: Bools | None = None) -> None:
        """Rows whose steps can shrink no further leave, and rows that are ``done`` with them, some by an event."""
        unstable = small & ~np.isfinite(self.running.ratio)
        leaving = small if done is None else small | done
        codes = _codes(fired, len(small))
        codes[small] = CODES.index(ReturnCode.DtLessThanMin)
        codes[unstable] = CODES.index(ReturnCode.Unstable)
        self._leave(leaving, codes)

    def _leave(self, leaving: Bools, code: ReturnCode | NDArray[np.int8]) -> None:
        """Rows end; the others go on without them."""
        record, running = self.record, self.running
        out, places = leaving.nonzero()[0], (~leaving).nonzero()[0]
        gone = record.rows(out)
        codes = np.full(len(out), CODES.index(code)) if isinstance(code, ReturnCode) else code[out]
        at_fault = np.zeros(len(out), dtype=np.bool_)
        if ((codes != SUCCESS) & (codes != TERMINATED)).any():
            at_fault = ~torch.isfinite(self.k1.index_select(0, gone)).all(dim=1).cpu().numpy()
        state = self.y.index_select(0, gone)
        self.departed.add(running.part(out), codes, at_fault, self._attempts, self._nfe, state)
        self.running = running.part(places)
        self._all = False
        if len(places):
            chosen = record.rows(places)
            self.y, self.k1 = self.y.index_select(0, chosen), self.k1.index_select(0, chosen)
            self._select()
            self.stepper.resize(len(places))


def _codes(fired: Bools | None, count: int) -> NDArray[np.int8]:
    """Of so many rows that have done well, some by an event."""
    codes = np.full(count, SUCCESS, dtype=np.int8)
    if fired is not None:
        codes[fired] = TERMINATED
    return codes
