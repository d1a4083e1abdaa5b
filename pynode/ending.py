"""The end of a solve, connected to autograd: where another one may go on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pynode.backends import Backend
from pynode.queries import connected, taped
from pynode.solution import End


def end_state(engine: Backend, record: Any, times: list[float], values: Tensor) -> Tensor:
    """The state (n,) in which the solve ended, from those at ``times`` where it is among them."""
    if times and times[-1] == record.t:
        return values[-1]
    # The solve failed between two save times, or they do not reach its end.
    t = record.request.problem.t
    at = torch.tensor([record.t], dtype=t.dtype, device=t.device)
    if taped(record):
        return engine.evaluate(record, [record.t], at, False)[0]
    return connected(engine, record, [record.t], at, record.end[None], own_times=False)[0]


def end_of_solve(engine: Backend, record: Any, times: list[float], tensor: Tensor, values: Tensor) -> End:
    """The end of a solve that gave ``values`` at ``times``, for one that goes on from there."""
    problem = record.request.problem
    state = end_state(engine, record, times, values)[: problem.state_layout.size]
    if times and times[-1] == record.t:
        time = tensor[-1]
    else:
        time = problem.t[-1] if record.t == problem.times[-1] else problem.t.new_tensor(record.t)
    return End(time, problem.state_layout.unpack(state), getattr(record, "size", None))
