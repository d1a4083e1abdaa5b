"""The discrete adjoint of reversible steps: their states are run backward from the last one, not stored."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pynode.backends import Gradients, Query
from pynode.errors import GradientError, explain
from pynode.native.adjoints import checkpointed
from pynode.native.checkpoints import State
from pynode.native.stepper import TwoWayStepper
from pynode.problem import Field

if TYPE_CHECKING:
    from pynode.native.record import NativeRecord


def pull_back(record: NativeRecord, query: Query, cotangents: Tensor) -> Gradients:
    """Gradients of ``sum_i <cotangents_i, y(times_i)>``; arguments as for the checkpointed adjoint.

    Raises
    ------
    GradientError
        If running backward does not end in the states where the stepper began.
    """
    return checkpointed.pull_back(record, query, cotangents, source=_reversed)


def _reversed(record: NativeRecord, field: Field, start: int) -> Iterator[tuple[int, Tensor, State]]:
    if start < 0:
        return
    trajectory = record.trajectory
    stepper = record.stepper(field)
    assert isinstance(stepper, TwoWayStepper)
    # What comes after the last step to pull back is run backward no further than needed.
    last = min(boundary for boundary in trajectory.ends if boundary > start)
    state = trajectory.ends[last]
    largest = state[0].abs().max()
    for n in range(last - 1, -1, -1):
        t, t1 = trajectory.mesh[n], trajectory.mesh[n + 1]
        jump = trajectory.jump_after(n)
        state = stepper.reverse(t, t1, state, jump, trajectory.jump_before(n))
        largest = torch.maximum(largest, state[0].abs().max())
        begun = record.request.problem.y0.detach() if n == 0 else trajectory.ends[n][0] if jump else None
        if begun is not None:
            _check(state[0], begun, largest.item(), t, trajectory.mesh[last])
            state = (begun,)
        if n <= start:
            yield n, state[0], state[1:]
        if jump and n:
            state, last = trajectory.ends[n], n
            largest = state[0].abs().max()


def _check(back: Tensor, begun: Tensor, largest: float, t: float, later: float) -> None:
    """Raise GradientError unless the state run ``back`` from time ``later`` is the one in which the stepper had
    ``begun`` at ``t``, up to half the digits of the largest state in between."""
    distance = (back - begun).abs().max().item()
    if not distance <= math.sqrt(torch.finfo(begun.dtype).eps) * max(largest, begun.abs().max().item()):
        raise GradientError(
            explain(
                f"the steps from t = {t:.6g} to t = {later:.6g}, run backward for ReversibleAdjoint, ended "
                f"{distance:.3g} from the state in which they had started: rounding errors grow too much, or f gave "
                "other values than before",
                "steps that can be run backward to half the digits of the state",
                "use CheckpointedAdjoint (exact), take smaller steps or solve in float64; a deterministic f",
            )
        )
