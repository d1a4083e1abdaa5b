"""What is remembered of independent stepping: the accepted steps, round by round, and how every row ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pynode.native.tableaus import Tableau
from pynode.read_parameters import ReadParameters
from pynode.solution import ReturnCode

if TYPE_CHECKING:
    from pynode.native.independent.problem import RowProblem
    from pynode.native.independent.request import RowRequest
    from pynode.native.independent.row_roots import RowRoots

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Bools = NDArray[np.bool_]

#: Return codes by the number that stands for them in an array.
CODES = tuple(ReturnCode)
SUCCESS = CODES.index(ReturnCode.Success)
TERMINATED = CODES.index(ReturnCode.Terminated)


def unsuccessful(codes: NDArray[np.int8]) -> Bools:
    """Which of the rows failed."""
    found: Bools = (codes != SUCCESS) & (codes != TERMINATED)
    return found


def outcome(codes: NDArray[np.int8]) -> ReturnCode:
    """Of all rows: that of the first one that failed; otherwise Terminated where events ended all, or Success."""
    failed = np.flatnonzero(unsuccessful(codes))
    if len(failed):
        return CODES[int(codes[failed[0]])]
    ended = len(codes) > 0 and bool((codes == TERMINATED).all())
    return ReturnCode.Terminated if ended else ReturnCode.Success


@dataclass
class Round:
    """Steps accepted in one round: of rows ``ids`` (a,), from times ``t`` and states ``y`` (a, n) to times ``t1``.

    They count up to ``until`` (a,): to their ends, or to an event within.
    """

    ids: Indices
    t: Floats
    t1: Floats
    y: Tensor
    until: Floats

    def within(self, times: Floats, starts: Floats | None) -> tuple[Indices, Indices]:
        """Which of times (1 or B, M) lie in which of these steps: places in ``ids``, and columns of ``times``.

        A step holds the time until which it counts; its start only where the row begins there, given by ``starts``
        (B,), if that is given.
        """
        asked = times if len(times) == 1 else times[self.ids]
        sign = np.copysign(1.0, self.t1 - self.t)[:, None]
        behind = (asked - self.t[:, None]) * sign
        inside = (behind > 0.0) & ((asked - self.until[:, None]) * sign <= 0.0)
        if starts is not None:
            inside |= (behind == 0.0) & (self.t == starts[self.ids])[:, None]
        places, columns = np.nonzero(inside)
        return places, columns


class RowRecord:
    """An independent solve.

    Attributes
    ----------
    rounds : list of Round, or None
        None where no states are kept.
    codes : ndarray (B,)
        Of return codes, by their number.
    reached, size, ratio : ndarray (B,)
        Time that each row reached, its last step size and error ratio.
    at_fault : ndarray (B,)
        Whether ``f`` was not finite at the time reached itself.
    values : Tensor (M, B, n)
        States at the save times, NaN where they were not reached.
    passed : ndarray (B,)
        How many of its save times each row reached.
    ends : Tensor (B, n)
        The states where the rows' last steps ended.
    roots : RowRoots or None
        The events that rows stopped at.
    nfe, accepted, rejected : ndarray (B,)
    """

    def __init__(self, request: RowRequest, tableau: Tableau) -> None:
        self.request, self.tableau = request, tableau
        problem = request.rows
        batch = problem.rows.batch
        self.rounds: list[Round] | None = [] if request.keeps else None
        self.codes = np.full(batch, SUCCESS, dtype=np.int8)
        self.reached = problem.row_times.starts.copy()
        self.size, self.ratio = np.full(batch, np.nan), np.full(batch, np.nan)
        self.at_fault = np.zeros(batch, dtype=np.bool_)
        self.values = torch.empty(0)
        self.passed = np.zeros(batch, dtype=np.int64)
        self.ends = problem.y0.detach().clone()
        self.nfe, self.accepted, self.rejected = (np.zeros(batch, dtype=np.int64) for _ in range(3))
        self.roots: RowRoots | None = None
        self.parameters = ReadParameters.of(request)
        # What the rest of pynode asks every record.
        self.t, self.end, self.detail, self.saved = 0.0, self.ends, "", list[float]()
        self.retcode = ReturnCode.Success

    @property
    def problem(self) -> RowProblem:
        return self.request.rows

    def rows(self, indices: Indices) -> Tensor:
        """Indices on the state's device."""
        return torch.from_numpy(indices).to(self.problem.rows.device)

    def initial(self, times: Floats, derivative: bool, own_times: bool, moving: bool) -> Bools:
        """Which of times (1 or B, M) are answered by the initial states, (B, M): all starts of rows without a step,
        and other starts where they have no gradient of their own and no slope is asked for."""
        starts, ends = self.problem.row_times.starts, self.problem.row_times.ends
        still = (starts == ends) | (self.accepted == 0)
        whole = not (derivative or (moving and own_times))
        at_start = np.broadcast_to(times, (len(starts), times.shape[1])) == starts[:, None]
        found: Bools = at_start & (still | whole)[:, None]
        return found

    def is_boundary(self, times: Floats, ends: Floats, ids: Indices, own_times: bool, moving: bool) -> Bools:
        """Whether times (m,) that rows ``ids`` passed are the ``ends`` (m,) of their steps, with the gradient of
        these: of the steps themselves where times have gradients of their own."""
        boundary: Bools = times == ends
        if not moving:
            return boundary
        if own_times:
            return np.zeros_like(boundary)
        boundary &= ends == self.problem.row_times.ends[ids]
        return boundary
