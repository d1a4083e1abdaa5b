"""The states of a stretch of rows at any times, connected to autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode.errors import GradientError, InputError, explain
from pynode.native.independent.engine import ENGINE
from pynode.native.independent.problem import RowProblem
from pynode.native.independent.record import Floats, RowRecord
from pynode.native.independent.replay import evaluate, taped
from pynode.queries import connected
from pynode.sensealg import DirectAdjoint
from pynode.transforms import finite


def connected_states(record: RowRecord, times: Any, tensor: Tensor, values: Tensor, **query: bool) -> Tensor:
    """``values`` (M, B, n) at ``times``, on torch's tape where something requires a gradient. ``tensor``: the same
    times, connected to the user's; ``query``: ``derivative`` and ``own_times`` of :class:`pynode.backends.Query`."""
    request = record.request
    if not request.differentiable or not torch.is_grad_enabled():
        return values
    if tensor.ndim == 1 and len(times) > 1:
        tensor = tensor.expand(len(times), -1)  # the gradients of rows whose times were rounded apart add up
    elif tensor.ndim == 2 and len(times) == 1:
        tensor = tensor[0]
    if isinstance(request.sensealg, DirectAdjoint):
        with record.problem.autocast():
            found = taped(record, times, tensor, **query)
        record.parameters.check_solved()
        # An f with noise of its own may give other values than before, but none that are not finite.
        if not finite(found.detach().masked_fill(~values.isfinite(), 0.0)):
            raise GradientError(
                explain(
                    "the accepted steps, taken once more for DirectAdjoint's tape, met a NaN or an infinity",
                    "an f that is finite where it was in the solve",
                    "check that f is deterministic, and that no other thread changes what it uses",
                )
            )
        return found
    return connected(ENGINE, record, times, tensor, values, **query)


def look(record: RowRecord, times: Floats, tensor: Tensor, derivative: bool) -> Tensor:
    """Dense output (M, B, n) at times (1 or B, M); NaN where a row was not integrated or the time is NaN."""
    record.parameters.check()
    with torch.no_grad(), record.problem.autocast():
        values = evaluate(record, times, derivative, record.request.stats.forward)
    return connected_states(record, times, tensor, values, derivative=derivative, own_times=True)


def times_within(problem: RowProblem, tensor: Tensor) -> Floats:
    """The times (1 or B, M) that ``sol(t)`` is asked for, from a tensor (M,) or (B, M).

    Raises
    ------
    InputError
        For a time outside the span of a row.
    """
    times = tensor.detach().to("cpu", torch.float64).numpy()
    times = times if times.ndim == 2 else times[None]
    starts, ends = problem.row_times.starts[:, None], problem.row_times.ends[:, None]
    low, high = np.minimum(starts, ends), np.maximum(starts, ends)
    inside = np.clip(times, low, high)
    # The ends of the span may have been rounded to the dtype of the times.
    slack = float(torch.finfo(tensor.dtype).eps) * np.maximum(np.abs(low), np.abs(high))
    outside = (np.abs(inside - times) > slack).any(axis=1)
    if outside.any():
        row = int(outside.argmax())
        raise InputError(
            explain(
                f"sol(t) got times from {np.nanmin(times):.9g} to {np.nanmax(times):.9g}",
                f"times within the span of every row, in row {row} [{low[row, 0]:.9g}, {high[row, 0]:.9g}]",
                "solve over a longer span, or give each row times of its own, (B, M)",
            )
        )
    return times if (inside == times).all() else inside
