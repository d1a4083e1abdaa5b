"""Lanes (:mod:`pynode.lanes`) of solves in Julia."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.autograd import check_finite
from pynode.backends import Record, Request, backend_from_name
from pynode.julia.crossing import PullBackCall, Reply, SolveCall
from pynode.julia.emitted import EmittedRoute
from pynode.julia.pulling_back import reverse, reverse_call
from pynode.julia.record import JuliaRecord
from pynode.julia.routes import known_entries
from pynode.julia.solving import count
from pynode.known_fields import Entry
from pynode.lanes import FailedError, Lane, Repetition, keep, lane_for, plain, solution
from pynode.sensealg import ContinuousAdjoint
from pynode.solution import ReturnCode, Solution

_parted: Callable[[Tensor, Sequence[Tensor]], Sequence[Tensor]] = torch._utils._unflatten_dense_tensors


class JuliaLane(Lane):
    """A lane with what Julia is told, but for addresses; ``backward`` from the first gradient on."""

    def __init__(self, record: JuliaRecord, call: SolveCall) -> None:
        super().__init__(record.request)
        assert isinstance(record.route, EmittedRoute)
        self.route, self.engine, self.forward = record.route, record.engine, call
        self.backward: PullBackCall | None = None


class LaneRecord(Repetition[JuliaLane], JuliaRecord):
    """A repeated solve."""

    def __init__(self, lane: JuliaLane, entry: Entry, f: Any, y0: Tensor, t: Any) -> None:
        self.engine, self.route, self.solution = lane.engine, lane.route.again(), 0
        super().__init__(backend_from_name("julia"), lane, self.route.inputs, entry, (f, y0, t))
        self.device = y0.device

    @functools.cached_property
    def request(self) -> Request:
        """What was asked, the problem included, which no repetition needs."""
        return self.again(self.asked[1])

    @property
    def whole(self) -> Record:
        return self

    def solved(self) -> Tensor:
        # Copies: who asks for dense output after a solve without gradients gets it by solving again.
        self.start = self.asked[1].detach().clone(memory_format=torch.contiguous_format)
        self.parameters = self.route.vector()
        values = torch.empty(self.lane.shape, dtype=self.start.dtype)
        reply = self._solve(values, self.lane.request.differentiable)
        count(self.stats.forward, reply)
        if reply.retcode:
            raise FailedError
        return values

    def kept(self) -> int:
        if not self.solution:
            self._solve(torch.empty(self.lane.shape, dtype=self.start.dtype), hold=True)
        return self.solution

    def _solve(self, values: Tensor, hold: bool) -> Reply:
        call = SolveCall.from_buffer_copy(self.lane.forward)
        call.y0, call.p, call.hold = self.start.data_ptr(), self.parameters.data_ptr(), hold
        call.values = values.data_ptr()
        # The last time is the end.
        call.final = call.values + (values.numel() - self.start.numel()) * values.element_size()
        reply = self.call("solve", ctypes.byref(call))
        self.solution, self.steps = int(reply.solution), int(reply.steps)
        return reply

    def gradients(self, cotangents: Tensor) -> list[Tensor]:
        lane, request = self.lane, self.lane.request
        assert isinstance(request.sensealg, ContinuousAdjoint)
        if lane.backward is None:
            lane.backward = reverse_call(self)
        y0 = self.asked[1]
        cotangents = cotangents.contiguous()
        found = torch.empty(y0.numel() + (self.parameters.numel() if self.route.inputs else 0), dtype=y0.dtype)
        call = PullBackCall.from_buffer_copy(lane.backward)
        call.solution, call.times, call.ntimes = self.solution, lane.forward.times, lane.forward.ntimes
        call.cotangents, call.dy0 = cotangents.data_ptr(), found.data_ptr()
        call.dp = call.dy0 + y0.numel() * y0.element_size() if self.route.inputs else None
        reply = reverse(self, request.sensealg, call)
        parts = list(_parted(found, [y0, *self.route.inputs]))
        if not reply.finite:
            check_finite([parts[0], None, None, *parts[1:]], self)
        return parts


def learn(record: JuliaRecord, call: SolveCall) -> None:
    """Remember a solve for those that repeat it, if it is of the plain kind."""
    route = record.route
    if not isinstance(route, EmittedRoute) or route.entry is None or not all(route.used):
        return
    if record.retcode is ReturnCode.Success and plain(record.request, route.inputs):
        keep(route.entry, "julia", JuliaLane(record, call))


def repeated(f: Any, y0: Any, t: Any, question: tuple[Any, ...]) -> Solution | None:
    """The solution of a problem for which there is a lane, None where there is none."""
    found = lane_for(known_entries(f), "julia", y0, t, question)
    if found is None:
        return None
    entry, lane = found
    return solution(LaneRecord(lane, entry, f, y0, t))
