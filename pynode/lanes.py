"""Solves that repeat an earlier one with other values, as every iteration of a training loop does.

What there is to check and to prepare is the same every time, and takes several times as long as a small solve. A lane
keeps what was found out the first time and tells whether it still holds: the options are the same, the state is of the
same form, and the field is what it was (:mod:`pynode.watch`). Only the numbers are new. What goes wrong on a lane is
done again in full, so that errors come from one place.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from pynode.algorithms import Algorithm
from pynode.autograd import Evaluation, differentiated, modified, single
from pynode.backends import Backend, Record, Request
from pynode.controllers import PIDController
from pynode.errors import foreign_stays
from pynode.interrupts import puts_back
from pynode.known_fields import Entry
from pynode.problem import ODEProblem
from pynode.queries import queried
from pynode.read_parameters import ReadParameters
from pynode.sensealg import SensitivityAlgorithm
from pynode.solution import End, ReturnCode, Solution, Stats
from pynode.transforms import active, dual_level

_KEPT = 4  # of one field and signature: with gradients and without, at other tolerances
_TENSORS = (Tensor, torch.nn.Parameter)
_PLAIN = (int, float, str, Algorithm, SensitivityAlgorithm, PIDController, type(None))


class FailedError(Exception):
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
    shape : tuple of int
        Of the states at the times, (T, *shape).
    request : Request
        What was asked, without the problem.
    """

    def __init__(self, request: Request) -> None:
        layout = request.problem.layout
        self.question, self.times = request.question, request.problem.times
        self.form = _form(request.problem.y0, layout.shapes[0])
        self.shape = (len(self.times), *layout.shapes[0])
        self.request: Request = dataclasses.replace(
            request,
            problem=None,  # type: ignore[arg-type]
            dependencies=None,
            times_tensor=None,  # type: ignore[arg-type]
            stats=None,  # type: ignore[arg-type]
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


L = TypeVar("L", bound=Lane)


class Repetition(ABC, Generic[L]):
    """A repeated solve: a record whose request is made where somebody asks for more than values and gradient."""

    #: Of the step that would be next, where known.
    size: float | None = None

    def __init__(self, backend: Backend, lane: L, inputs: Sequence[Tensor], entry: Entry, asked: Any) -> None:
        self.backend, self.lane, self.inputs, self.entry, self.asked = backend, lane, inputs, entry, asked
        self.stats, self.t, self.retcode, self.detail = Stats(), lane.times[-1], ReturnCode.Success, ""
        self.read = ReadParameters(inputs)

    def __reduce__(self) -> Any:
        raise foreign_stays()

    @property
    @abstractmethod
    def whole(self) -> Record:
        """The record of the same solve in full."""

    @abstractmethod
    def solved(self) -> Tensor:
        """States at the times, (T, *shape). Raises FailedError where the solve failed."""

    @abstractmethod
    def gradients(self, cotangents: Tensor) -> list[Tensor]:
        """Gradients of ``<values, cotangents>`` with respect to y0 and the parameters."""

    def again(self, y0: Tensor) -> Request:
        """What was asked, for a problem that begins at ``y0``."""
        f, _, t = self.asked
        problem = ODEProblem(f, y0, t)
        dependencies = None
        if self.lane.request.differentiable:
            dependencies = copy.copy(self.entry.dependencies)
            dependencies.problem, dependencies.arguments = problem, []
        return dataclasses.replace(
            self.lane.request, problem=problem, dependencies=dependencies, times_tensor=problem.t, stats=self.stats
        )


class _Repeated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, record: Repetition[Any], y0: Tensor, *inputs: Tensor) -> Tensor:
        ctx.record = record
        ctx.save_for_backward(y0)  # notices changes in place
        return record.solved()

    @staticmethod
    @puts_back
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        record: Repetition[Any] = ctx.record
        (y0,) = ctx.saved_tensors
        needed = ctx.needs_input_grad[1:]
        changed = record.read.changed()
        if changed is not None:
            raise modified(changed)
        gradients: Sequence[Tensor | None]
        if torch.is_grad_enabled():
            gradients = _in_full(record, grad_outputs[0], y0, needed)
        else:
            gradients = record.gradients(single(grad_outputs[0], record))  # type: ignore[arg-type]
        return (None, *[g if need else None for g, need in zip(gradients, needed, strict=True)])


def _in_full(record: Repetition[Any], cotangents: Tensor, y0: Tensor, needed: tuple[bool, ...]) -> list[Tensor | None]:
    """The gradients with every check, and differentiable themselves."""
    whole = record.whole
    request = whole.request
    evaluation = Evaluation(record.backend, whole, request.times, torch.empty(0), own_times=False)
    evaluation.versions = record.read.versions
    saved = (request.problem.t, request.times_tensor, y0.reshape(-1))
    flat = cotangents.reshape(len(request.times), -1)
    _, _, first, *others = differentiated(evaluation, flat, saved, (False, False, *needed))
    return [None if first is None else first.view_as(y0), *others]


def _form(y0: Tensor, shape: torch.Size) -> tuple[Any, ...]:
    return (shape, y0.dtype, y0.layout, y0.requires_grad, torch.is_grad_enabled())


def plain(request: Request, inputs: Sequence[Tensor]) -> bool:
    """Whether a solve can have a lane: one real tensor on the CPU, options that are numbers, parameters ``inputs``
    that count what is written into them."""
    problem, layout, algorithm = request.problem, request.problem.layout, request.algorithm
    return (
        all(isinstance(x, _PLAIN) or x == () for x in request.question)
        and layout.is_tensor
        and layout.is_real
        and layout.device.type == "cpu"
        and not (request.time_gradient or problem.autocast.enabled or torch.is_inference_mode_enabled())
        and problem.cost_layout is None
        and not any(x.is_inference() for x in inputs)
        and len(request.times) == len(problem.times)
        and getattr(algorithm, "mesh", None) is None  # a function, whose answer may be another one next time
        and (not algorithm.adaptive or float(request.rtol) >= torch.finfo(layout.dtype).eps / 2)
    )


def keep(entry: Entry, who: str, lane: Lane) -> None:
    """Remember a lane, in the place of the one for the same solve."""
    lanes = entry.lanes.setdefault(who, [])
    others = [x for x in lanes if (x.form, x.times) != (lane.form, lane.times) or not x.asked(lane.question)]
    lanes[:] = [*others, lane][-_KEPT:]


def lane_for(
    entries: Iterable[Entry], who: str, y0: Any, t: Any, question: tuple[Any, ...]
) -> tuple[Entry, Any] | None:
    """The lane of a solve and the entry it belongs to; None where there is none."""
    if not entries or type(y0) not in _TENSORS or active() or dual_level():
        return None
    if torch.is_autocast_enabled("cpu") or torch.is_inference_mode_enabled() or not y0.is_cpu:
        return None
    form = _form(y0, y0.shape)
    for entry in entries:
        for lane in entry.lanes.get(who, ()):
            if lane.form == form and lane.asked(question) and lane.at(t) and entry.current():
                return entry, lane
    return None


def _queried(record: Repetition[Any], at: Tensor, derivative: bool) -> Any:
    return queried(record.backend, record.whole, at, derivative)


def solution(record: Repetition[Any]) -> Solution | None:
    """The solution of a repeated solve; None where it failed."""
    lane, (_, y0, t) = record.lane, record.asked
    request = lane.request
    try:
        values: Tensor = (
            _Repeated.apply(record, y0, *record.inputs)  # type: ignore[no-untyped-call]
            if request.differentiable
            else record.solved()
        )
    except FailedError:
        return None
    ts = t if type(t) is Tensor else torch.tensor(lane.times, dtype=torch.float64)
    return Solution(
        ts=ts,
        ys=values,
        retcode=ReturnCode.Success,
        stats=record.stats,
        algorithm=request.algorithm,
        sensealg=request.sensealg if request.differentiable else None,
        evaluate=functools.partial(_queried, record),
        span=(lane.times[0], lane.times[-1]),
        end=functools.partial(End, ts[-1], values[-1], record.size),
    )
