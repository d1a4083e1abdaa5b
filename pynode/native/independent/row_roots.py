"""The roots at which rows stopped."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class RowCrossings:
    """Roots that were found, ordered by row and time, those of one row at the same time as far as one can tell.

    ``ids``, ``which``, ``rank`` (m,): row, root function, and the place among the roots of the row; ``noise``,
    ``scale``: what :class:`pynode.events.Crossing` has of each.
    """

    ids: Indices
    which: Indices
    rank: Indices
    noise: Floats
    scale: Floats

    def part(self, places: Bools) -> RowCrossings:
        """Those at ``places`` (m,)."""
        ids, which, rank = self.ids[places], self.which[places], self.rank[places]
        return RowCrossings(ids, which, rank, self.noise[places], self.scale[places])


class RowRoots:
    """Where the rows stopped at events: ``t`` (B,) when, NaN where at none; ``h`` the length of the step that holds it,
    ``tolerance`` what times there differ by at least; ``states`` and their time derivatives ``rates`` (B, n).

    ``owner``, ``component`` (k,): of every root function, its event and its place there.
    """

    def __init__(self, y0: Tensor) -> None:
        batch = len(y0)
        self.t, self.h, self.tolerance = (np.full(batch, math.nan) for _ in range(3))
        self.states, self.rates = (torch.full_like(y0, math.nan) for _ in range(2))
        self.owner: Indices = np.zeros(0, dtype=np.int64)
        self.component: Indices = np.zeros(0, dtype=np.int64)
        self._found: list[RowCrossings] = []

    def add(self, ids: Indices, which: Indices, noise: Floats, scale: Floats) -> None:
        """Roots of rows that had none before."""
        places = np.arange(len(ids))
        begins = np.append(True, ids[1:] != ids[:-1])
        rank = places - np.maximum.accumulate(np.where(begins, places, 0))
        self._found.append(RowCrossings(ids, which, rank, noise, scale))

    def crossings(self) -> RowCrossings:
        """All roots."""
        names = ("ids", "which", "rank", "noise", "scale")
        return RowCrossings(*(np.concatenate([getattr(one, name) for one in self._found]) for name in names))

    def noise(self) -> Floats:
        """Values (B, k) of the root functions that are zero as far as one can tell where the rows stopped; 0 where a
        function had no root."""
        found, crossings = np.zeros((len(self.t), len(self.owner))), self.crossings()
        found[crossings.ids, crossings.which] = crossings.noise
        return found
