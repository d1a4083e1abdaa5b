"""Rows that have left an independent solve, until the last one has: only then they are written into the record."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pynode.native.independent.record import CODES, SUCCESS, RowRecord
from pynode.native.independent.running import Running
from pynode.solution import Counts, ReturnCode

_UNSTABLE = CODES.index(ReturnCode.Unstable)


class Departed:
    """Collects rows, a few at a time."""

    def __init__(self) -> None:
        self._groups: list[tuple[Running, NDArray[np.int8], NDArray[np.bool_], int, int]] = []
        self._states: list[Tensor] = []

    def add(
        self,
        rows: Running,
        codes: NDArray[np.int8],
        at_fault: NDArray[np.bool_],
        attempts: int,
        nfe: int,
        states: Tensor,
    ) -> None:
        """Rows leave with return codes, after so many attempts and evaluations; ``at_fault``: ``f`` is not finite in
        their last states (b, n)."""
        self._groups.append((rows, codes, at_fault, attempts, nfe))
        self._states.append(states)

    def write(self, record: RowRecord, counts: Counts) -> None:
        """Into the record; a row whose final state is not finite has failed."""
        if not self._groups:
            return
        ids = np.concatenate([rows.ids for rows, *_ in self._groups])
        states = torch.cat(self._states)
        finite = torch.isfinite(states).all(dim=1).cpu().numpy()
        record.ends.index_copy_(0, record.rows(ids), states)
        codes = np.concatenate([codes for _, codes, *_ in self._groups])
        record.codes[ids] = np.where((codes == SUCCESS) & ~finite, _UNSTABLE, codes)
        record.at_fault[ids] = np.concatenate([fault for _, _, fault, *_ in self._groups])
        record.reached[ids] = np.concatenate([rows.t * rows.sign for rows, *_ in self._groups])
        record.size[ids] = np.concatenate([rows.size for rows, *_ in self._groups])
        record.ratio[ids] = np.concatenate([rows.ratio for rows, *_ in self._groups])
        record.passed[ids] = np.concatenate([rows.following for rows, *_ in self._groups])
        record.accepted[ids] = accepted = np.concatenate([rows.accepted for rows, *_ in self._groups])
        attempts = np.concatenate([np.full(len(group[0]), group[3]) for group in self._groups])
        record.rejected[ids] = attempts - accepted
        record.nfe[ids] += np.concatenate([np.full(len(group[0]), group[4]) for group in self._groups])
        counts.accepted += int(accepted.sum())
        counts.rejected += int((attempts - accepted).sum())
