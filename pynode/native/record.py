"""What the torch backend remembers of a solve, and dense output from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pynode.algorithms import Algorithm, FixedStep
from pynode.backends import Query, Request
from pynode.errors import UnsupportedError, explain
from pynode.native.dense import Dense, Pieces, Resolved
from pynode.native.meshes import mesh_of
from pynode.native.methods import carries, stepper_of
from pynode.native.stepper import Stepper, check_solved
from pynode.native.trajectory import Trajectory
from pynode.problem import Field
from pynode.read_parameters import ReadParameters
from pynode.sensealg import DirectAdjoint
from pynode.solution import ReturnCode
from pynode.transforms import moves, numbers, transformed

if TYPE_CHECKING:
    from pynode.native.adjoints import forward

_NOTHING = torch.empty(0)


class NativeRecord:
    """A native solve: its request, how it ended, its trajectory and its saved values."""

    def __init__(self, request: Request, trajectory: Trajectory) -> None:
        self.request = request
        self.trajectory = trajectory
        #: Dense output of every step, where the sensitivity algorithm asked for it.
        self.pieces: Pieces | None = None
        self.retcode = ReturnCode.Success
        self.t = trajectory.mesh[0]
        self.end = _NOTHING
        self.detail = ""
        self.values = _NOTHING
        self.saved: list[float] = []
        #: Where an event ended the solve, the state at the end of the step that holds it.
        self.last: Tensor | None = None
        #: Of the step that would have been next.
        self.size: float | None = None
        #: The first step, had its error been known.
        self.first: float | None = None
        #: Under ForwardSensitivity, what the channels behind the state's are.
        self.columns: forward.Columns | None = None
        self.parameters = ReadParameters.of(request)

    @property
    def taped(self) -> bool:
        """Whether the solve stands on torch's tape."""
        return self.request.differentiable and isinstance(self.request.sensealg, DirectAdjoint)

    def stepper(self, field: Field, algorithm: Algorithm | None = None) -> Stepper:
        """A stepper that records nothing."""
        return stepper_of(algorithm or self.request.algorithm, field, self.request, taped=False)

    def taped_stepper(self, field: Field, compiled: bool = True) -> Stepper:
        """A stepper autograd can record; never a compiled one if not ``compiled``."""
        return stepper_of(self.request.algorithm, field, self.request, taped=True, compiled=compiled)

    def dense(self) -> Dense:
        """The forward solution at any time: kept, or solved again from the states that were."""
        if self.pieces is not None:
            return self.pieces
        field = self.request.problem.field(self.request.stats.backward)
        return Resolved(self.trajectory, self.stepper(field))

    def is_boundary(self, query: Query, n: int) -> bool:
        """Whether a queried time that equals boundary ``n`` is that boundary, also for its gradient."""
        if query.derivative:
            return False
        if not query.time_gradient:
            return True
        if self.request.save_steps and query.times is self.saved:
            return n < self.trajectory.steps or self.retcode is not ReturnCode.Terminated
        return not query.own_times and (n == 0 or self._is_last(n) or self._steps_over_t)

    @property
    def _steps_over_t(self) -> bool:
        """Whether the entries of ``t`` are the boundaries."""
        algorithm = self.request.algorithm
        return (
            isinstance(algorithm, FixedStep)
            and not algorithm.adaptive
            and all(own is None for own in (algorithm.dt, algorithm.steps, algorithm.mesh))
        )

    def _is_last(self, n: int) -> bool:
        # Not so for an event that happens to be there, which is found at a time of its own.
        at_end = n == self.trajectory.steps and self.retcode is not ReturnCode.Terminated
        return at_end and self.trajectory.mesh[n] == self.request.problem.times[-1]

    def free_boundaries(self, gradient: Tensor) -> Tensor:
        """The part of a gradient of all boundaries that belongs to those which depend on ``t``: the ends of an
        adaptive solve (its inner steps are frozen), every boundary of a fixed one."""
        if not self.request.algorithm.adaptive:
            return gradient
        ends = gradient[[0, -1]]
        if not self._is_last(self.trajectory.steps):  # a solve that failed ended at a time of its own
            ends[1] = 0.0
        return ends

    def along_boundaries(self, direction: Tensor) -> Tensor:
        """The transpose of :meth:`free_boundaries`: a direction of all boundaries from one of those that depend on
        ``t``."""
        direction = direction.detach().to("cpu", torch.float64)
        if not self.request.algorithm.adaptive:
            return direction
        along = torch.zeros(self.trajectory.steps + 1, dtype=torch.float64)
        along[0] = direction[0]
        if self._is_last(self.trajectory.steps):
            along[-1] = direction[1]
        return along

    def anchors(self, times: list[float]) -> Tensor:
        """States (m, n) at ``times``."""
        if times is self.request.times or times is self.saved:
            return self.values
        if times == [self.t]:
            return self.end[None]
        return evaluate(self, times, False)

    def whole(self, times: list[float], derivative: bool) -> Tensor:
        """Dense output of all that was integrated, sensitivities included."""
        return evaluate(self, times, derivative, whole=True)

    def backward_mesh(self, algorithm: Algorithm, t: float, t1: float) -> list[float]:
        """Boundaries for a fixed-step solve back from ``t`` to ``t1``."""
        assert isinstance(algorithm, FixedStep)
        ends = torch.tensor([t, t1], dtype=torch.float64)
        if algorithm.mesh is not None and algorithm is not self.request.algorithm:
            own: list[float] = mesh_of(algorithm, ends, self.request.jumps).tolist()
            return own
        if algorithm.dt is None:
            forward = self.trajectory.mesh
            inner = [x for x in forward if min(t, t1) < x < max(t, t1)]
            # The forward solve's boundaries, where it was a fixed one; else a subdivision of this interval alone.
            if not self.request.algorithm.adaptive:
                return [t, *sorted(inner, reverse=t1 < t), t1]
        boundaries: list[float] = mesh_of(dataclasses.replace(algorithm, mesh=None), ends, self.request.jumps).tolist()
        return boundaries


def evaluate(
    record: NativeRecord,
    times: list[float],
    derivative: bool,
    times_tensor: Tensor | None = None,
    whole: bool = False,
) -> Tensor:
    """Dense output (m, n) at ``times``, in any order; differentiable where the solve stands on torch's tape.

    ``whole``: with the channels of forward sensitivities.
    """
    trajectory, request = record.trajectory, record.request
    if not trajectory.kept:
        raise UnsupportedError(
            explain(
                "sol(t) was called on a solve that kept no states "
                f"({'SaveAt(dense=False)' if request.dense is False else request.sensealg.name + ': constant memory'})",
                "a solve with dense output",
                "solve with saveat=SaveAt(dense=True), or put the times into t",
            )
        )
    if record.columns is not None and not whole and carries(request.algorithm):
        # What is carried on belongs to all channels.
        return evaluate(record, times, derivative, times_tensor, whole=True)[:, : request.problem.layout.size]
    taped = record.taped and (torch.is_grad_enabled() or transformed())
    with torch.set_grad_enabled(taped and torch.is_grad_enabled()):
        field, y0 = request.problem.field(request.stats.forward), request.problem.y0
        if whole and record.columns is not None:
            field, y0 = record.columns.field(request.stats.backward), record.columns.start(y0)
        if trajectory.steps == 0:  # the solve failed at once: there is nothing but its start
            return (field(field.time(times[0]), y0) if derivative else y0).expand(len(times), -1)
        stepper = record.taped_stepper(field) if taped else record.stepper(field)
        at_step: dict[int, list[int]] = {}
        for index, t in enumerate(times):
            at_step.setdefault(trajectory.step_at(t), []).append(index)
        rows: list[Tensor | None] = [None] * len(times)
        clock: Callable[[float], Any] = float
        if taped and request.time_gradient:
            mesh = None if request.algorithm.adaptive else boundaries_of(request, request.problem.t)
            clock = clock_of(request, mesh)
        differentiable_times = taped and times_tensor is not None and moves(times_tensor)
        for n, y, carried in trajectory.states(sorted(at_step), stepper):
            t, t1 = clock(trajectory.mesh[n]), clock(trajectory.mesh[n + 1])
            if record.columns is not None and not whole:
                y = y[: request.problem.layout.size]
            trajectory.enter(stepper, n, t, y, carried)
            check_solved(stepper, t, stepper.attempt(t, t1 - t, y, trajectory.jump_before(n), t1))
            inside = at_step[n]
            points: Any = times
            if differentiable_times and times_tensor is not None:
                points = times_tensor.double()
            found = stepper.interpolate([(points[i] - t) / (t1 - t) for i in inside], derivative)
            for row, index in zip(found.unbind(), inside, strict=True):
                rows[index] = row
        return torch.stack([row for row in rows if row is not None])


def boundaries_of(request: Request, t: Tensor) -> Tensor:
    """The step boundaries (N + 1,) of a fixed-step solve over the times ``t``."""
    assert isinstance(request.algorithm, FixedStep)
    return mesh_of(request.algorithm, t, request.jumps)


def clock_of(request: Request, mesh: Tensor | None) -> Callable[[float], Any]:
    """Boundaries that depend on ``t`` as tensors, all others as they are."""
    ends = request.problem.t.double()[[0, -1]] if mesh is None else mesh
    table = dict(zip(numbers("t", ends), ends.unbind(), strict=True))
    return lambda t: table.get(t, t)
