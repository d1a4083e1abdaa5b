"""Solves in C++ that repeat an earlier one with other numbers, as every iteration of a training loop does.

As in :mod:`pynode.julia.lanes`: what there is to check and to prepare is the same every time, and takes longer than a
small solve. A lane keeps what was found out the first time and tells whether it still holds. What goes wrong on a lane
is done again in full, so that errors come from one place.
"""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pynode.algorithms import Algorithm
from pynode.autograd import Evaluation, check_finite, differentiated, single
from pynode.backends import Request
from pynode.compile_stats import COUNTS
from pynode.controllers import PIDController
from pynode.cpp.backend import CompiledSolution, addressed, counted, parted
from pynode.cpp.driver import SUCCESS, SolveCall, driver
from pynode.errors import GradientError, explain
from pynode.known_fields import Entry, entries_of
from pynode.problem import ODEProblem
from pynode.queries import queried
from pynode.sensealg import SensitivityAlgorithm
from pynode.solution import End, ReturnCode, Solution, Stats
from pynode.transforms import active, dual_level

if TYPE_CHECKING:
    from pynode.cpp.backend import CompiledBackend
    from pynode.cpp.program import Program
    from pynode.native.backend import NativeRecord

_KEPT = 4  # of one field and signature: with gradients and without, at other tolerances
_TENSORS = (Tensor, torch.nn.Parameter)
_PLAIN = (int, float, str, Algorithm, SensitivityAlgorithm, PIDController, type(None))


class _FailedError(Exception):
    """A repeated solve did not reach its end."""


class Lane:
    """What holds for all repetitions of a solve. It holds neither the field nor the tensors of that one solve."""

    def __init__(self, record: NativeRecord, program: Program, call: SolveCall, held: list[Any]) -> None:
        request = record.request
        layout = request.problem.layout
        assert program.field is not None
        self.question, self.times = request.question, request.problem.times
        self.form = _form(request.problem.y0, layout.shapes[0])
        self.shape = (len(self.times), *layout.shapes[0])
        self.field, self.inputs = program.field, program.inputs
        self.call, self._held = call, held
        self.solver = driver(self.field.dtype)
        self.request: Request = dataclasses.replace(
            request,
            problem=None,  # type: ignore[arg-type]
            dependencies=None,
            times_tensor=None,  # type: ignore[arg-type]
            stats=None,  # type: ignore[arg-type]
            compile="solve",
        )

    def asked(self, question: tuple[Any, ...]) -> bool:
        """Whether the options are those of this lane."""
        try:
            return self.question == question
        except (RuntimeError, TypeError, ValueError):  # an array where this lane has a number
            return False

    def at(self, t: Any) -> bool:
        """Whether the times are those of this lane."""
        if type(t) is Tensor:
            return not t.requires_grad and t.is_floating_point() and t.tolist() == self.times
        return type(t) in (tuple, list) and list(t) == self.times


class LaneRecord:
    """A repeated solve. The record of a solve in full is made where somebody asks for more than values and gradient,
    by solving again."""

    def __init__(self, backend: CompiledBackend, lane: Lane, entry: Entry, f: Any, y0: Tensor, t: Any) -> None:
        self.backend, self.lane, self.entry, self.asked = backend, lane, entry, (f, y0, t)
        self.stats, self.t, self.retcode, self.detail = Stats(), lane.times[-1], ReturnCode.Success, ""
        self.versions: list[int] = []
        self.version = y0._version
        self.compiled: CompiledSolution | None = None

    def solved(self) -> Tensor:
        """States at the times, (T, *shape). Raises _FailedError where the solve failed."""
        lane = self.lane
        # A copy: who asks for dense output gets it by solving again.
        self.start = self.asked[1].detach().clone(memory_format=torch.contiguous_format)
        values = torch.empty(lane.shape, dtype=self.start.dtype)
        call = SolveCall.from_buffer_copy(lane.call)
        parts = lane.field.parts(lane.inputs)
        addresses = addressed(call, parts)
        call.y0, call.values = self.start.data_ptr(), values.data_ptr()
        lane.solver.solve(ctypes.byref(call))
        del addresses
        self.compiled = CompiledSolution(lane.field, call)
        if call.ended != SUCCESS:
            raise _FailedError
        counted(self.stats.forward, call)
        COUNTS.repeated += 1
        self.size = call.size if lane.request.algorithm.adaptive else None
        return values

    @functools.cached_property
    def full(self) -> NativeRecord:
        """The record of the same solve in full."""
        f, y0, t = self.asked
        differentiable = self.lane.request.differentiable
        if differentiable and y0._version != self.version:
            raise GradientError(
                explain(
                    "y0 was modified in place between the solve and what is asked of it now",
                    "y0 as it was in the solve",
                    "clone it before it is changed",
                )
            )
        problem = ODEProblem(f, y0 if differentiable else self.start, t)
        dependencies = None
        if differentiable:
            dependencies = copy.copy(self.entry.dependencies)
            dependencies.problem, dependencies.arguments = problem, []
        request = dataclasses.replace(
            self.lane.request, problem=problem, dependencies=dependencies, times_tensor=problem.t, stats=Stats()
        )
        record = self.backend.solve(request)
        record.request = dataclasses.replace(record.request, stats=self.stats)
        return record

    def gradients(self, cotangents: Tensor) -> list[Tensor]:
        """Gradients of ``<values, cotangents>`` with respect to y0 and the parameters."""
        assert self.compiled is not None
        lane = self.lane
        dy0, dp, finite = self.compiled.pulled_back(cotangents, self.stats.backward)
        others = zip(parted(dp, lane.inputs), lane.inputs, strict=True)
        parts = [dy0.view(self.start.shape), *(g if g.dtype == x.dtype else g.to(x.dtype) for g, x in others)]
        if not finite:
            check_finite([parts[0], None, None, *parts[1:]], self.full)
        return parts


class _Repeated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, record: LaneRecord, y0: Tensor, *inputs: Tensor) -> Tensor:
        ctx.record = record
        ctx.save_for_backward(y0)  # notices changes in place
        record.versions = [x._version for x in inputs]
        return record.solved()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        record: LaneRecord = ctx.record
        (y0,) = ctx.saved_tensors
        inputs = record.lane.inputs
        gradients: Sequence[Tensor | None]
        if torch.is_grad_enabled() or record.versions != [x._version for x in inputs]:
            gradients = _in_full(record, grad_outputs[0], y0, ctx.needs_input_grad[1:])
        else:
            gradients = record.gradients(single(grad_outputs[0], record))  # type: ignore[arg-type]
        return (None, *[g if need else None for g, need in zip(gradients, ctx.needs_input_grad[1:], strict=True)])


def _in_full(record: LaneRecord, cotangents: Tensor, y0: Tensor, needed: tuple[bool, ...]) -> list[Tensor | None]:
    """The gradients with every check, and differentiable themselves."""
    full = record.full
    request = full.request
    evaluation = Evaluation(record.backend, full, request.times, torch.empty(0), own_times=False)
    evaluation.versions = record.versions
    problem = request.problem
    with torch.set_grad_enabled(torch.is_grad_enabled()):
        saved = (problem.t, request.times_tensor, y0.reshape(-1))
        flat = cotangents.reshape(len(request.times), -1)
        _, _, first, *others = differentiated(evaluation, flat, saved, (False, False, *needed))
    return [None if first is None else first.view_as(y0), *others]


def _form(y0: Tensor, shape: torch.Size) -> tuple[Any, ...]:
    return (shape, y0.dtype, y0.layout, y0.requires_grad, torch.is_grad_enabled())


def learn(record: NativeRecord, program: Program, call: SolveCall, held: list[Any]) -> None:
    """Remember a solve for those that repeat it, if it is of the plain kind: one real tensor, no further arguments,
    options that are numbers."""
    request = record.request
    problem, layout = request.problem, request.problem.layout
    if program.entry is None or program.field is None or not all(program.field.used):
        return
    if (
        all(isinstance(x, _PLAIN) or x == () for x in request.question)
        and layout.is_tensor
        and not request.time_gradient
        and problem.cost_layout is None
        and not torch.is_inference_mode_enabled()
        and (not request.algorithm.adaptive or float(request.rtol) >= torch.finfo(layout.dtype).eps / 2)
        and len(request.times) == len(problem.times)
    ):
        new, lanes = Lane(record, program, call, held), program.entry.lanes.setdefault("cpp", [])
        lanes[:] = [*[x for x in lanes if (x.form, x.times) != (new.form, new.times) or not x.asked(new.question)], new]
        del lanes[:-_KEPT]


def repeated(backend: CompiledBackend, f: Any, y0: Any, t: Any, question: tuple[Any, ...]) -> Solution | None:
    """The solution of a problem for which there is a lane, None where there is none."""
    entries = entries_of(f)
    if not entries or type(y0) not in _TENSORS or active() or dual_level():
        return None
    if torch.is_autocast_enabled("cpu") or torch.is_inference_mode_enabled() or not y0.is_cpu:
        return None
    form = _form(y0, y0.shape)
    for entry in entries:
        for lane in entry.lanes.get("cpp", ()):
            if lane.form == form and lane.asked(question) and lane.at(t) and entry.current():
                return _solution(LaneRecord(backend, lane, entry, f, y0, t), t)
    return None


def _solution(record: LaneRecord, t: Any) -> Solution | None:
    """The solution of a repeated solve; None where it failed."""
    lane = record.lane
    request = lane.request
    try:
        values: Tensor = (
            _Repeated.apply(record, record.asked[1], *lane.inputs)  # type: ignore[no-untyped-call]
            if request.differentiable
            else record.solved()
        )
    except _FailedError:
        return None
    ts = t if type(t) is Tensor else torch.tensor(lane.times, dtype=torch.float64)
    return Solution(
        ts=ts,
        ys=values,
        retcode=ReturnCode.Success,
        stats=record.stats,
        algorithm=request.algorithm,
        sensealg=request.sensealg if request.differentiable else None,
        evaluate=lambda *query: queried(record.backend, record.full, *query),
        span=(lane.times[0], lane.times[-1]),
        end=lambda: End(ts[-1], values[-1], record.size),
    )
