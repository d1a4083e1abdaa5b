"""Saved states of rows, each at its own times, interpolated for all rows of a round at once."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pynode.native.independent.record import RowRecord
from pynode.native.independent.steps import RowRungeKutta, extend, interpolated

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


class Saver:
    """Fills ``record.values``.

    Parameters
    ----------
    record : RowRecord
    sign : ndarray (B,)
        Direction of every row, 1 or -1.
    """

    def __init__(self, record: RowRecord, sign: Floats) -> None:
        request, problem = record.request, record.problem
        self._record = record
        self._times = times = request.save_values
        self._moving = request.time_gradient
        self.values = record.values = problem.y0.new_full(
            (times.shape[1], problem.rows.batch, problem.rows.size), float("nan")
        )
        # In the direction of integration they ascend, and one of infinity follows the last.
        common = len(times) == 1 and (len(sign) == 0 or bool((sign == sign[0]).all()))
        own = times * sign[:1, None] if common else times * sign[:, None]
        own = np.where(np.isnan(own), np.inf, own)
        self._ahead = np.concatenate([own, np.full((len(own), 1), np.inf)], axis=1)
        self._common, self._sign = common, sign
        self._ends = problem.row_times.ends * sign

    def start(self, starts: Floats, ends: Floats, y0: Tensor) -> None:
        """Save the initial states: of rows of zero length at all their times."""
        record, request = self._record, self._record.request
        times = np.broadcast_to(self._times, (len(starts), self._times.shape[1]))
        at_start = times == starts[:, None]
        if self._moving and request.own_times:
            at_start &= (starts == ends)[:, None]  # elsewhere they have a gradient of their own
        rows, columns = np.nonzero(at_start)
        self._put(columns, rows, y0.index_select(0, record.rows(rows)))
        record.passed += at_start.sum(axis=1)

    def upcoming(self, ids: Indices, following: Indices) -> Floats:
        """The next save time of rows, signed by their direction."""
        found: Floats = self._ahead[0 if self._common else ids, following]
        return found

    def save(
        self,
        stepper: RowRungeKutta,
        ids: Indices,
        hit: Indices,
        following: Indices,
        t: Floats,
        t1: Floats,
        until: Floats,
        y: Tensor,
        y1: Tensor,
    ) -> Indices:
        """Save what rows at places ``hit`` pass in the step just attempted, from ``t`` and ``y`` to ``t1`` and ``y1``,
        which counts ``until`` a time, all being multiplied by the rows' direction.

        Returns the numbers of save times that they have then passed.
        """
        record, request = self._record, self._record.request
        limit = until[hit]
        first = following[hit]
        own = ids[hit]
        if self._common:
            last = np.searchsorted(self._ahead[0], limit, side="right")
        else:
            last = first + 1
            further = np.arange(len(hit))
            while len(further):  # as often as a row has save times in this step
                further = further[self._ahead[own[further], last[further]] <= limit[further]]
                last[further] += 1
        count = last - first
        pairs = np.repeat(np.arange(len(hit)), count)
        columns = np.arange(len(pairs)) - np.repeat(np.cumsum(count) - count - first, count)
        places = hit[pairs]
        times = self._ahead[0 if self._common else own[pairs], columns]
        plain = times == t1[places]
        if self._moving:
            plain &= (not request.own_times) & (t1[places] == self._ends[own[pairs]])
        if plain.all():
            self._put(columns, own[pairs], y1.index_select(0, record.rows(places)))
            return last
        if plain.any():
            self._put(columns[plain], own[pairs][plain], y1.index_select(0, record.rows(places[plain])))
        inner = ~plain
        places, columns, times = places[inner], columns[inner], times[inner]
        rows, at = np.unique(places, return_inverse=True)
        chosen = record.rows(rows)
        stages = stepper.stages(chosen)
        start, k = y.index_select(0, chosen), stepper.coefficients
        if k.all > k.main:
            field = record.problem.field_of(record.rows(ids[rows]), request.stats.forward)
            record.nfe[ids[rows]] += k.all - k.main
            begin, end = (torch.from_numpy((x * self._sign[ids])[rows]).to(k.device) for x in (t, t1))
            extend(record.tableau, field, begin, end, start, stages, k.all)
        thetas = torch.from_numpy((times - t[places]) / (t1 - t)[places]).to(k.device)
        h = torch.from_numpy((t1 - t)[rows]).to(k.device)
        found = interpolated(record.tableau, stages, start, h, record.rows(at), thetas, False)
        self._put(columns, ids[places], found)
        return last

    def _put(self, columns: Indices, rows: Indices, states: Tensor) -> None:
        if len(columns):
            self.values[self._record.rows(columns), self._record.rows(rows)] = states
