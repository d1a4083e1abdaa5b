"""Looking at a solve that is over: states at times, connected to autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pynode.autograd import Evaluation
from pynode.backends import Backend, Record
from pynode.interrupts import puts_back
from pynode.sensealg import DirectAdjoint
from pynode.transforms import numbers, refuse_queries


def taped(record: Record) -> bool:
    """Whether torch's own tape has the solve."""
    return record.request.differentiable and isinstance(record.request.sensealg, DirectAdjoint)


def connected(
    engine: Backend, record: Record, times: list[float], tensor: Tensor, values: Tensor, **query: bool
) -> Tensor:
    """States ``values`` (m, n) at ``times``, whose gradient goes to ``tensor`` (the same times) and to what the solve
    depends on; ``query``: see :class:`pynode.autograd.Evaluation`."""
    if not record.request.differentiable or taped(record):
        return values
    return Evaluation(engine, record, times, values, **query).connected(tensor)


@puts_back
def queried(engine: Backend, record: Record, at: Tensor, derivative: bool) -> Any:
    """The state at times ``at``, of shape () or (m,), or its derivative: what calling a Solution gives."""
    request = record.request
    problem = request.problem
    flat_times = at.reshape(-1)
    if not taped(record):
        refuse_queries(at)
    floats = numbers("sol(t)'s t", flat_times)
    wants_gradient = request.differentiable and torch.is_grad_enabled()
    with problem.autocast():
        values = engine.evaluate(record, floats, flat_times, derivative)
    if wants_gradient:
        values = connected(engine, record, floats, flat_times, values, derivative=derivative)
    if problem.cost_layout is not None:
        values = values[..., : problem.state_layout.size]
    return problem.state_layout.unpack(values if at.ndim else values[0])
