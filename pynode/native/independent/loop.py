"""Rounds of step attempts of all running rows. Knows a tableau's stepper and a controller, no method by name.

Each row goes through what :func:`pynode.native.loop.integrate_adaptive` does for a single solve, decision by decision,
so that its steps are those it would take alone, up to rounding.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pynode.native.independent.control import initial_steps, propose, refined_steps
from pynode.native.independent.norm import RowNorm, blended
from pynode.native.independent.record import CODES, Round, RowRecord
from pynode.native.independent.running import Running
from pynode.native.independent.saver import Saver
from pynode.native.independent.steps import RowRungeKutta
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
        _Loop(record, saver, Running(moving, starts, ends, sign)).run(y0, derivative)


class _Loop:
    """Takes rows from their starts to their ends."""

    def __init__(self, record: RowRecord, saver: Saver, running: Running) -> None:
        self.record, self.saver, self.running = record, saver, running
        self.request = record.request
        self.counts = self.request.stats.forward
        self.norm = RowNorm(self.request.rtol, self.request.atol, self.request.norm, record.problem.rows)
        running.following[:] = record.passed[running.ids]
        running.upcoming[:] = saver.upcoming(running.ids, running.following)
        self._stops = np.unique(np.array(self.request.tstops, dtype=np.float64))
        self._aim(np.arange(len(running)))
        self._all = len(running) == record.problem.rows.batch
        self._select()
        self.stepper = RowRungeKutta(record.tableau, self.field, len(running))
        #: Evaluations of f for every running row.
        self._nfe = 0

    def _select(self) -> None:
        """The field of the running rows."""
        self.rows = self.record.rows(self.running.ids)
        self.field = self.record.problem.field_of(None if self._all else self.rows, self.counts)

    def _aim(self, places: Indices) -> None:
        """Make the next stop of rows, or else their end, what their steps must meet."""
        running = self.running
        running.target[places] = running.end[places]
        if not len(self._stops) or not len(places):
            return
        stops = self._stops
        t, end, forward = running.t[places], running.end[places], running.sign[places] > 0
        after = np.where(forward, np.searchsorted(stops, t, side="right"), np.searchsorted(stops, t, side="left") - 1)
        there = (after >= 0) & (after < len(stops))
        stop = stops[np.clip(after, 0, len(stops) - 1)]
        before_end = np.where(forward, stop < end, stop > end)
        running.target[places] = np.where(there & before_end, stop, end)

    def run(self, y0: Tensor, derivative: Tensor | None) -> None:
        running, request = self.running, self.request
        self.y = y0 if self._all else y0.index_select(0, self.rows)
        if derivative is None:
            self.k1 = self.field.check_pure(self.field.time(running.t), self.y)
            self._nfe += 1
        else:
            self.k1 = derivative if self._all else derivative.index_select(0, self.rows)
        wrong = ~torch.isfinite(self.k1).all(dim=1).cpu().numpy()
        if wrong.any():
            running.size[:] = np.nan
            self._leave(wrong, ReturnCode.InitialFailure, wrong)
        if not len(running):
            return
        least = np.maximum(request.dtmin, 4.0 * np.spacing(np.abs(running.t)))
        running.size[:] = np.maximum(np.minimum(self._initial(), request.dtmax), least)
        rounds = 0
        with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
            while len(running):
                if rounds == request.max_steps:
                    self._leave(np.ones(len(running), dtype=np.bool_), ReturnCode.MaxIters)
                    return
                rounds += self._round()

    def _initial(self) -> Floats:
        """Magnitudes of the first steps (Hairer, Norsett and Wanner 1993, section II.4); one more evaluation."""
        running, request = self.running, self.request
        if request.dt0 is not None:
            return np.full(len(running), request.dt0)
        y, f0 = self.y, self.k1
        scale = self.norm.scale(y.abs())
        d0, d1 = self.norm(torch.stack([y, f0]), scale)
        span = np.abs(running.end - running.t)
        h0 = initial_steps(d0, d1, span)
        h = running.sign * h0
        moved = torch.addcmul(y, f0, torch.from_numpy(h).to(y)[:, None])
        f1 = self.field(self.field.time(running.t + h), moved)
        self._nfe += 1
        d2 = self.norm((f1 - f0)[None], scale)[0] / h0
        return refined_steps(h0, d1, d2, self.stepper.error_order, span)

    def _round(self) -> int:
        """Attempt one step of every running row; returns 0 where a row had to leave first."""
        running, request, stepper = self.running, self.request, self.stepper
        t, size = running.t, running.size
        floor = np.maximum(request.dtmin, 4.0 * np.spacing(np.abs(t)))
        if request.force_dtmin:
            np.maximum(size, request.dtmin, out=size)
        left = np.abs(running.target - t)
        # A step that would leave a sliver before the target is stretched over it: not beyond dtmax, and not after a
        # rejection.
        clipped = (size * running.stretch >= left) & ((left <= request.dtmax * (1.0 + 1e-9)) | (size >= left))
        small = (size < floor) & ~clipped
        if small.any():
            self._too_small(small)
            return 0
        t1 = np.where(clipped, running.target, t + running.sign * size)
        y, k1 = self.y, self.k1
        y1, last = stepper.attempt(self.field, t, t1, y, k1)
        self._nfe += stepper.coefficients.main - 1
        scale = self.norm.scale(torch.maximum(y.abs(), y1.abs()))
        running.ratio[:] = ratio = blended(self.norm(stepper.errors(y1), scale))
        accepted, factor, running.first[:], running.second[:] = propose(
            request.controller, ratio, stepper.error_order, running.first, running.second
        )
        taken = np.abs(t1 - t)
        if request.force_dtmin:
            accepted = accepted | ((taken <= 1.02 * request.dtmin) & np.isfinite(ratio))
        proposed = taken * factor
        # A step cut short by a target says nothing against the size proposed before.
        longer = np.where(clipped, np.maximum(proposed, size), proposed)
        size[:] = np.where(accepted, np.minimum(longer, request.dtmax), proposed)
        running.stretch[:] = np.where(accepted, 1.01, 1.0)
        running.accepted += accepted
        running.rejected += ~accepted
        everyone = bool(accepted.all())
        passed = np.flatnonzero(accepted & (running.upcoming <= running.sign * t1))
        if len(passed):
            running.following[passed] = self.saver.save(
                stepper, running.ids, passed, running.following, t, t1, running.sign, y, y1
            )
            running.upcoming[passed] = self.saver.upcoming(running.ids[passed], running.following[passed])
        places = None if everyone else np.flatnonzero(accepted)
        if self.record.rounds is not None:
            self._keep(places, t, t1)
        arrived = accepted & (t1 == running.target)
        done = arrived & (t1 == running.end)
        stuck = ~accepted & clipped & (taken < floor)
        if everyone:
            running.t[:], self.y = t1, y1
            # A copy, as f may write its next result into the same memory.
            self.k1 = last.clone() if stepper.fsal else k1
        else:
            running.t[:] = np.where(accepted, t1, t)
            mask = torch.from_numpy(accepted).to(y.device)[:, None]
            self.y = torch.where(mask, y1, y)
            if stepper.fsal:
                self.k1 = torch.where(mask, last, k1)
        if len(self._stops):
            self._aim(np.flatnonzero(arrived & ~done))
        if stuck.any():
            fresh = accepted[~(stuck | done)]
            size[stuck] = taken[stuck]
            self._too_small(stuck, done)
        elif done.any():
            fresh = accepted[~done]
            self._leave(done, ReturnCode.Success)
        else:
            fresh = accepted
        if not stepper.fsal and len(running) and fresh.any():
            self._begin(np.flatnonzero(fresh))
        return 1

    def _keep(self, places: Indices | None, t: Floats, t1: Floats) -> None:
        """Remember the steps that were accepted, at ``places`` (everywhere where None)."""
        ids = self.running.ids
        assert self.record.rounds is not None
        if places is None:
            self.record.rounds.append(Round(ids.copy(), t.copy(), t1, self.y))
        elif len(places):
            states = self.y.index_select(0, self.record.rows(places))
            self.record.rounds.append(Round(ids[places], t[places], t1[places], states))

    def _begin(self, places: Indices) -> None:
        """Evaluate ``f`` at the new states of rows whose last stage it was not."""
        running, record = self.running, self.record
        if len(places) == len(running):
            self.k1 = self.field(self.field.time(running.t), self.y).clone()
        else:
            chosen = record.rows(places)
            field = record.problem.field_of(record.rows(running.ids[places]), self.counts)
            found = field(field.time(running.t[places]), self.y.index_select(0, chosen))
            self.k1 = self.k1.index_copy(0, chosen, found)
        record.nfe[running.ids[places]] += 1

    def _too_small(self, small: Bools, done: Bools | None = None) -> None:
        """Rows whose steps can shrink no further leave, and rows that are ``done`` with them."""
        unstable = small & ~np.isfinite(self.running.ratio)
        at_fault = ~torch.isfinite(self.k1).all(dim=1).cpu().numpy()
        leaving = small if done is None else small | done
        codes = np.full(len(small), CODES.index(ReturnCode.Success), dtype=np.int8)
        codes[small] = CODES.index(ReturnCode.DtLessThanMin)
        codes[unstable] = CODES.index(ReturnCode.Unstable)
        self._leave(leaving, codes, at_fault)

    def _leave(self, leaving: Bools, code: ReturnCode | NDArray[np.int8], at_fault: Bools | None = None) -> None:
        """Rows end: note how, and go on without them."""
        record, running = self.record, self.running
        ids = running.ids[leaving]
        record.codes[ids] = CODES.index(code) if isinstance(code, ReturnCode) else code[leaving]
        record.reached[ids], record.size[ids] = running.t[leaving], running.size[leaving]
        record.ratio[ids], record.passed[ids] = running.ratio[leaving], running.following[leaving]
        record.accepted[ids], record.rejected[ids] = running.accepted[leaving], running.rejected[leaving]
        record.nfe[ids] += self._nfe
        if at_fault is not None:
            record.at_fault[ids] = at_fault[leaving]
        self.counts.accepted += int(running.accepted[leaving].sum())
        self.counts.rejected += int(running.rejected[leaving].sum())
        record.ends.index_copy_(0, record.rows(ids), self.y.index_select(0, record.rows(np.flatnonzero(leaving))))
        places = np.flatnonzero(~leaving)
        running.keep(places)
        self._all = False
        if len(places):
            chosen = record.rows(places)
            self.y, self.k1 = self.y.index_select(0, chosen), self.k1.index_select(0, chosen)
            self._select()
            if hasattr(self, "stepper"):
                self.stepper.resize(len(places))
