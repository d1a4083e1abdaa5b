"""Lanes (:mod:`pynode.lanes`) of solves in C++."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pynode.autograd import check_finite
from pynode.backends import Record
from pynode.compile_stats import COUNTS
from pynode.cpp.backend import CompiledSolution, addressed, counted, parted
from pynode.cpp.driver import SUCCESS, SolveCall, driver
from pynode.errors import GradientError, explain
from pynode.known_fields import Entry, entries_of
from pynode.lanes import FailedError, Lane, Repetition, keep, lane_for, plain, solution
from pynode.solution import Solution, Stats

if TYPE_CHECKING:
    from pynode.cpp.backend import CompiledBackend
    from pynode.cpp.program import Program
    from pynode.native.record import NativeRecord


class CompiledLane(Lane):
    """A lane with what C++ is told, but for addresses; ``held`` is what that points to."""

    def __init__(self, record: NativeRecord, program: Program, call: SolveCall, held: list[Any]) -> None:
        super().__init__(dataclasses.replace(record.request, compile="solve"))
        assert program.field is not None
        self.field, self.inputs = program.field, program.inputs
        self.call, self._held = call, held
        self.solver = driver(self.field.dtype)


class LaneRecord(Repetition[CompiledLane]):
    """A repeated solve. The record in full is made by solving again."""

    backend: CompiledBackend

    def __init__(self, backend: CompiledBackend, lane: CompiledLane, entry: Entry, f: Any, y0: Tensor, t: Any) -> None:
        super().__init__(backend, lane, lane.inputs, entry, (f, y0, t))
        self._version = y0._version
        self._compiled: CompiledSolution | None = None

    def solved(self) -> Tensor:
        lane = self.lane
        # A copy: who asks for dense output gets it by solving again.
        self._start = self.asked[1].detach().clone(memory_format=torch.contiguous_format)
        values = torch.empty(lane.shape, dtype=self._start.dtype)
        call = SolveCall.from_buffer_copy(lane.call)
        parts = lane.field.parts(lane.inputs)
        addresses = addressed(call, parts)
        call.y0, call.values = self._start.data_ptr(), values.data_ptr()
        lane.solver.solve(ctypes.byref(call))
        del addresses
        if call.ended != SUCCESS:
            raise FailedError
        self._compiled = CompiledSolution(lane.field, call)
        counted(self.stats.forward, call)
        COUNTS.repeated += 1
        self.size = call.size if lane.request.algorithm.adaptive else None
        return values

    @property
    def whole(self) -> Record:
        return self._whole

    @functools.cached_property
    def _whole(self) -> NativeRecord:
        differentiable = self.lane.request.differentiable
        self.read.check()
        y0 = self.asked[1]
        if differentiable and y0._version != self._version:
            raise GradientError(
                explain(
                    "y0 was modified in place between the solve and what is asked of it now",
                    "y0 as it was in the solve",
                    "clone it before it is changed",
                )
            )
        # What the solve cost is counted already.
        request = dataclasses.replace(self.again(y0 if differentiable else self._start), stats=Stats())
        record = self.backend.solve(request)
        record.request = dataclasses.replace(record.request, stats=self.stats)
        return record

    def gradients(self, cotangents: Tensor) -> list[Tensor]:
        assert self._compiled is not None
        lane = self.lane
        dy0, dp, finite = self._compiled.pulled_back(cotangents, self.stats.backward)
        others = zip(parted(dp, lane.inputs), lane.inputs, strict=True)
        parts = [dy0.view(self._start.shape), *(g if g.dtype == x.dtype else g.to(x.dtype) for g, x in others)]
        if not finite:
            check_finite([parts[0], None, None, *parts[1:]], self.whole)
        return parts


def learn(record: NativeRecord, program: Program, call: SolveCall, held: list[Any]) -> None:
    """Remember a solve for those that repeat it, if it is of the plain kind."""
    if program.entry is None or program.field is None or not all(program.field.used):
        return
    if plain(record.request, program.inputs):
        keep(program.entry, "cpp", CompiledLane(record, program, call, held))


def repeated(backend: CompiledBackend, f: Any, y0: Any, t: Any, question: tuple[Any, ...]) -> Solution | None:
    """The solution of a problem for which there is a lane, None where there is none."""
    found = lane_for(entries_of(f), "cpp", y0, t, question)
    if found is None:
        return None
    entry, lane = found
    return solution(LaneRecord(backend, lane, entry, f, y0, t))
