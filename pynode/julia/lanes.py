"""Solves that repeat an earlier one with other values, as every iteration of a training loop does.

What there is to check and to prepare is the same every time, and takes several times as long as Julia takes to solve a
small problem. A lane keeps what was found out the first time and tells whether it still holds: the options are the
same, the state is of the same form, and the field is what it was (:mod:`pynode.watch`). Only the numbers are new.
What goes wrong on a lane is done again in full, so that errors come from one place.
"""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.algorithms import Algorithm
from pynode.autograd import Evaluation, check_finite, differentiated, single
from pynode.backends import Request, backend_from_name
from pynode.controllers import PIDController
from pynode.julia.crossing import PullBackCall, Reply, SolveCall
from pynode.julia.emitted import EmittedRoute
from pynode.julia.pulling_back import reverse, reverse_call
from pynode.julia.record import JuliaRecord
from pynode.julia.routes import known_entries
from pynode.julia.solving import count
from pynode.known_fields import Entry
from pynode.problem import ODEProblem
from pynode.queries import queried
from pynode.sensealg import ContinuousAdjoint, SensitivityAlgorithm
from pynode.solution import ReturnCode, Solution, Stats
from pynode.transforms import active, dual_level

_KEPT = 4  # of one field and signature: with gradients and without, at other tolerances
_TENSORS = (Tensor, torch.nn.Parameter)
_PLAIN = (int, float, str, Algorithm, SensitivityAlgorithm, PIDController, type(None))

_parted: Callable[[Tensor, Sequence[Tensor]], Sequence[Tensor]] = torch._utils._unflatten_dense_tensors


class _FailedError(Exception):
    """A repeated solve did not reach its end."""


class Lane:
    """What holds for all repetitions of a solve. It holds neither the field nor the tensors of that one solve.

    Attributes
    ----------
    question : tuple
        Every option as the user gave it.
    form : tuple
        Of the state, and whether gradients are recorded.
    times : list of float
    forward, backward : SolveCall, PullBackCall or None
        What Julia is told, without addresses; ``backward`` from the first gradient on.
    """

    def __init__(self, record: JuliaRecord, call: SolveCall) -> None:
        request, route = record.request, record.route
        assert isinstance(route, EmittedRoute)
        layout, self.route = request.problem.layout, route
        self.question, self.times = request.question, request.problem.times
        self.form = _form(request.problem.y0, layout.shapes[0])
        self.shape = (len(self.times), *layout.shapes[0])
        self.engine, self.forward = record.engine, call
        self.backward: PullBackCall | None = None
        self.request = dataclasses.replace(request, problem=None, dependencies=None, times_tensor=None, stats=None)  # type: ignore[arg-type]

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

    def solution(self, entry: Entry, f: Any, y0: Tensor, t: Any) -> Solution | None:
        """The solve from ``y0``; None where it failed."""
        record = LaneRecord(self, entry, f, y0, t)
        request = self.request
        try:
            inputs = record.route.inputs
            values = _Repeated.apply(record, y0, *inputs) if request.differentiable else record.solved()  # type: ignore[no-untyped-call]
        except _FailedError:
            return None
        return Solution(
            ts=t if type(t) is Tensor else torch.tensor(self.times, dtype=torch.float64),
            ys=values,
            retcode=ReturnCode.Success,
            stats=record.stats,
            algorithm=request.algorithm,
            sensealg=request.sensealg if request.differentiable else None,
            evaluate=functools.partial(queried, backend_from_name("julia"), record),
            span=(self.times[0], self.times[-1]),
        )


class LaneRecord(JuliaRecord):
    """A repeated solve. Its request is made where somebody asks for it."""

    def __init__(self, lane: Lane, entry: Entry, f: Any, y0: Tensor, t: Any) -> None:
        self.lane, self.entry, self.asked = lane, entry, (f, y0, t)
        self.engine, self.route = lane.engine, lane.route.again()
        self.stats, self.device = Stats(), y0.device
        self.t, self.retcode, self.detail, self.solution = lane.times[-1], ReturnCode.Success, "", 0
        self.versions: list[int] = []

    @functools.cached_property
    def request(self) -> Request:
        """What was asked, the problem included, which no repetition needs."""
        problem = ODEProblem(*self.asked)
        dependencies = None
        if self.lane.request.differentiable:
            dependencies = copy.copy(self.entry.dependencies)
            dependencies.problem, dependencies.arguments = problem, []
        return dataclasses.replace(
            self.lane.request,
            problem=problem,
            dependencies=dependencies,
            times_tensor=problem.t,
            stats=self.stats,
        )

    def solved(self) -> Tensor:
        """States at the times, (T, *shape). Raises _FailedError where the solve failed."""
        # Copies: who asks for dense output after a solve without gradients gets it by solving again.
        self.start = self.asked[1].detach().clone(memory_format=torch.contiguous_format)
        self.parameters = self.route.vector()
        values = torch.empty(self.lane.shape, dtype=self.start.dtype)
        reply = self._solve(values, self.lane.request.differentiable)
        count(self.stats.forward, reply)
        if reply.retcode:
            raise _FailedError
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
        """Gradients of ``<values, cotangents>`` with respect to y0 and the parameters."""
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
        inputs = record.route.inputs
        cotangents = single(grad_outputs[0], record)
        gradients: Sequence[Tensor | None]
        if torch.is_grad_enabled() or record.versions != [x._version for x in inputs]:
            gradients = _in_full(record, grad_outputs[0], y0, ctx.needs_input_grad[1:])
        else:
            gradients = record.gradients(cotangents)
        return (None, *[g if need else None for g, need in zip(gradients, ctx.needs_input_grad[1:], strict=True)])


def _in_full(record: LaneRecord, cotangents: Tensor, y0: Tensor, needed: tuple[bool, ...]) -> list[Tensor | None]:
    """The gradients with every check, and differentiable themselves."""
    request = record.request
    evaluation = Evaluation(backend_from_name("julia"), record, request.times, torch.empty(0), own_times=False)
    evaluation.versions = record.versions
    saved = (request.problem.t, request.times_tensor, request.problem.y0)
    flat = cotangents.reshape(len(request.times), -1)
    _, _, first, *others = differentiated(evaluation, flat, saved, (False, False, *needed))
    return [None if first is None else first.view_as(y0), *others]


def _form(y0: Tensor, shape: torch.Size) -> tuple[Any, ...]:
    return (shape, y0.dtype, y0.layout, y0.requires_grad, torch.is_grad_enabled())


def learn(record: JuliaRecord, call: SolveCall) -> None:
    """Remember a solve for those that repeat it, if it is of the plain kind: a real tensor on the CPU, no further
    arguments, options that are numbers."""
    request, route = record.request, record.route
    problem, layout = request.problem, request.problem.layout
    if not isinstance(route, EmittedRoute) or route.entry is None or not all(route.used):
        return
    if (
        all(isinstance(x, _PLAIN) or x == () for x in request.question)
        and record.retcode is ReturnCode.Success
        and layout.is_tensor
        and layout.is_real
        and layout.device.type == "cpu"
        and not (request.time_gradient or problem.autocast.enabled or torch.is_inference_mode_enabled())
        and (not request.algorithm.adaptive or float(request.rtol) >= torch.finfo(layout.dtype).eps / 2)
    ):
        new, lanes = Lane(record, call), route.entry.lanes.setdefault("julia", [])
        lanes[:] = [*[x for x in lanes if (x.form, x.times) != (new.form, new.times) or not x.asked(new.question)], new]
        del lanes[:-_KEPT]


def repeated(f: Any, y0: Any, t: Any, question: tuple[Any, ...]) -> Solution | None:
    """The solution of a problem for which there is a lane, None where there is none."""
    entries = known_entries(f)
    if not entries or type(y0) not in _TENSORS or active() or dual_level():
        return None
    if torch.is_autocast_enabled("cpu") or torch.is_inference_mode_enabled() or not y0.is_cpu:
        return None
    form = _form(y0, y0.shape)
    for entry in entries:
        for lane in entry.lanes.get("julia", ()):
            if lane.form == form and lane.asked(question) and lane.at(t) and entry.current():
                found: Solution | None = lane.solution(entry, f, y0, t)
                return found
    return None
