"""What is told about rows that failed."""

from __future__ import annotations

from collections.abc import Callable

from pynode.native.independent.record import CODES, RowRecord
from pynode.solution import ReturnCode

_DETAILS: dict[ReturnCode, Callable[[RowRecord, int], str]] = {
    ReturnCode.InitialFailure: lambda record, row: "f(t0, y0) has a NaN or an infinity",
    ReturnCode.MaxIters: lambda record, row: (
        f"max_steps = {record.request.max_steps} attempted steps, the last of {record.size[row]:.3g}"
    ),
    ReturnCode.Unstable: lambda record, row: (
        "f is not finite there" if record.at_fault[row] else "f is finite there, but not just ahead"
    ),
    ReturnCode.DtLessThanMin: lambda record, row: (
        f"|dt| = {record.size[row]:.3g}; the error was {record.ratio[row]:.3g} times the tolerance"
    ),
}


def detail(record: RowRecord, row: int) -> str:
    """What went wrong in a row of a stretch, in a clause."""
    return _DETAILS[CODES[record.codes[row]]](record, row)
