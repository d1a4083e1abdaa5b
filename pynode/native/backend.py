"""The torch backend: solve, evaluate, pull back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pynode.algorithms import (
    Algorithm,
    AutoSwitch,
    FixedImplicit,
    FixedStep,
    Implicit,
    Stabilized,
)
from pynode.backends import Gradients, Query, Request
from pynode.dependencies import Dependencies
from pynode.errors import UnsupportedError, explain
from pynode.native.adjoints import (
    backsolve,
    checkpointed,
    forward,
    gauss,
    interpolating,
    quadrature,
    reversible,
    second_order,
)
from pynode.native.algebraic import check_mass_matrix
from pynode.native.dense import Dense, Pieces, Resolved
from pynode.native.error_norm import ErrorNorm
from pynode.native.loop import Recorder, Stepping, integrate_adaptive, integrate_fixed
from pynode.native.meshes import mesh_of
from pynode.native.methods import carries, stepper_of
from pynode.native.offered import missing
from pynode.native.root_finding import Search
from pynode.native.stepper import Stepper
from pynode.native.stores import store_for
from pynode.native.symplectic import Symplectic as SymplecticStepper
from pynode.native.trajectory import SaveRecorder, Trajectory
from pynode.problem import Field, ODEProblem
from pynode.running_cost import StateObserver
from pynode.sensealg import (
    BacksolveAdjoint,
    CheckpointedAdjoint,
    ContinuousAdjoint,
    DirectAdjoint,
    ForwardSensitivity,
    GaussAdjoint,
    InterpolatingAdjoint,
    QuadratureAdjoint,
    ReversibleAdjoint,
    SensitivityAlgorithm,
)
from pynode.solution import Counts, ReturnCode, Solution
from pynode.transforms import moves, numbers, transformed

_PULL_BACKS: dict[type[SensitivityAlgorithm], Callable[[Any, Query, Tensor], Gradients]] = {
    CheckpointedAdjoint: checkpointed.pull_back,
    BacksolveAdjoint: backsolve.pull_back,
    InterpolatingAdjoint: interpolating.pull_back,
    QuadratureAdjoint: quadrature.pull_back,
    GaussAdjoint: gauss.pull_back,
    ForwardSensitivity: forward.pull_back,
    ReversibleAdjoint: reversible.pull_back,
}

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


class NativeBackend:
    """Solvers written in torch: the default."""

    name = "torch"

    def absent(self) -> str | None:
        return None

    def supports(self, algorithm: Algorithm, sensealg: SensitivityAlgorithm) -> str | None:
        if not isinstance(sensealg, DirectAdjoint) and type(sensealg) not in _PULL_BACKS:
            return f"the sensitivity algorithm {sensealg.name}"
        return missing(algorithm, sensealg)

    def repeated(self, f: Any, y0: Any, t: Any, question: tuple[Any, ...]) -> Solution | None:
        return None  # what f depends on is found anew for every solve

    def dependencies(
        self, problem: ODEProblem, counts: Counts, params: Any, allow_unused: bool, jump: float
    ) -> Dependencies:
        return Dependencies(problem, counts, params, allow_unused, jump)

    def solve(self, request: Request) -> NativeRecord:
        problem, sensealg = request.problem, request.sensealg
        mesh = None if request.algorithm.adaptive else self._mesh(request, problem.t)
        t, t_end = problem.times[0], problem.times[-1]
        ahead = math.copysign(math.inf, t_end - t)
        continuous = request.differentiable and isinstance(sensealg, ContinuousAdjoint)
        dense_kept = (
            continuous and not isinstance(sensealg, BacksolveAdjoint) and not getattr(sensealg, "checkpointing", False)
        )
        perturb = isinstance(request.algorithm, FixedStep) and request.algorithm.perturb
        ends = request.differentiable and isinstance(sensealg, ReversibleAdjoint)
        remembers = getattr(request.algorithm, "remembers", False)
        trajectory = Trajectory(t, ahead, store_for(request), request.jumps, perturb, ends, remembers)
        record = NativeRecord(request, trajectory)
        taped = record.taped
        clock = None
        tensor = None
        if taped and request.time_gradient:
            clock, tensor = self._clock(request, mesh), request.times_tensor
        with torch.set_grad_enabled(taped and torch.is_grad_enabled()):
            # A copy, as the dense output must survive whatever happens to the user's tensor.
            y0 = (problem.y0 if taped else problem.y0.detach()).clone()
            field = problem.field(request.stats.forward)
            observer = request.observer
            if taped:
                field = _CountedPullbacks(field, request)
            if request.differentiable and isinstance(sensealg, ForwardSensitivity):
                record.columns = columns = forward.Columns(request)
                y0, field = columns.start(y0), columns.field(request.stats.forward)
                observer = None if observer is None else StateObserver(observer, problem.state_layout.size)
            check_mass_matrix(request, field, y0)
            make = record.taped_stepper if taped else record.stepper
            stepper = make(field)
            if isinstance(stepper, SymplecticStepper):
                assert mesh is not None
                stepper.check_separable(numbers("t", mesh[:2]), y0, bool(request.jumps) or perturb)
            query = Query(request.times, False, request.own_times, request.time_gradient)
            saver = SaveRecorder(
                request.times,
                y0,
                trajectory,
                request.save_steps,
                clock,
                tensor,
                lambda n: record.is_boundary(query, n),
            )
            recorder: Recorder = saver
            if dense_kept:
                recorder = record.pieces = Pieces(saver)
            probed = None if taped or record.columns is not None else request.dependencies
            derivative = None if probed is None else probed.derivative
            watch = request.watch
            search = None if watch is None else Search(watch, problem)
            common = {"derivative": derivative, "observer": observer, "clock": clock, "stop": search}
            if mesh is not None:
                outcome = integrate_fixed(
                    stepper,
                    y0,
                    numbers("t", mesh),
                    recorder,
                    request.stats.forward,
                    max_steps=request.max_steps,
                    perturb=perturb,
                    remembers=remembers,
                    jumps=request.jumps,
                    **common,
                )
            else:
                outcome = integrate_adaptive(
                    stepper,
                    y0,
                    t,
                    t_end,
                    recorder,
                    request.stats.forward,
                    self._stepping(request, record.columns),
                    **common,
                )
            if watch is not None and outcome.retcode is ReturnCode.Terminated:
                watch.rate = saver.stop(stepper, outcome.t, watch.tolerance)[: problem.layout.size]
                record.last = outcome.y.detach()[: problem.layout.size]
            record.values = saver.values() if saver.saved else y0.new_empty(0, y0.numel())
        record.saved = saver.saved
        if not outcome.retcode.successful:
            # Fixed steps are found out only at their end: what was saved after the failure is not kept.
            sign = math.copysign(1.0, ahead)
            record.saved = [x for x in saver.saved if (x - outcome.t) * sign <= 0]
            record.values = record.values[: len(record.saved)]
        if record.columns is not None and outcome.retcode is ReturnCode.InitialFailure:
            record.columns.check_start(stepper.derivative())
        record.retcode, record.t, record.detail = outcome.retcode, outcome.t, outcome.detail
        record.size, record.first = outcome.size, outcome.first
        record.end = (outcome.y if record.last is None else record.values[-1]).detach()[: problem.layout.size]
        if record.columns is not None:
            record.columns.values = record.values
            record.values = record.values[:, : problem.layout.size].clone()  # ys, which the user may write into
        return record

    def evaluate(
        self, record: NativeRecord, times: list[float], times_tensor: Tensor | None, derivative: bool
    ) -> Tensor:
        return evaluate(record, times, derivative, times_tensor)

    def pull_back(self, record: NativeRecord, query: Query, cotangents: Tensor) -> Gradients:
        return _PULL_BACKS[type(record.request.sensealg)](record, query, cotangents)

    def pull_back_tangent(
        self, record: NativeRecord, query: Query, cotangents: Tensor, directions: Gradients
    ) -> tuple[Gradients, Tensor] | None:
        # What a method carries beside the state has no tangents there and is not restored, and implicit ones use the
        # implicit function theorem once.
        algorithm = record.request.algorithm
        once = isinstance(algorithm, Implicit | FixedImplicit | Stabilized | AutoSwitch) or carries(algorithm)
        if not isinstance(record.request.sensealg, CheckpointedAdjoint) or once:
            return None
        return second_order.pull_back_tangent(record, query, cotangents, directions)

    def mesh(self, record: NativeRecord, t: Tensor) -> Tensor:
        return t.double()[[0, -1]] if record.request.algorithm.adaptive else self._mesh(record.request, t)

    @staticmethod
    def _mesh(request: Request, t: Tensor) -> Tensor:
        assert isinstance(request.algorithm, FixedStep)
        return mesh_of(request.algorithm, t, request.jumps)

    @staticmethod
    def _stepping(request: Request, columns: forward.Columns | None) -> Stepping:
        layout = request.problem.norm_layout
        unpack = None if request.norm is None else layout.unpack
        part = None if layout is request.problem.layout else slice(0, layout.size)

        def norm() -> ErrorNorm:
            return ErrorNorm(request.rtol, request.atol, request.norm, unpack, part)

        return Stepping(
            norm=norm if columns is None else columns.norm,
            controller=request.controller,
            max_steps=request.max_steps,
            dt0=request.dt0,
            dtmin=request.dtmin,
            dtmax=request.dtmax,
            force_dtmin=request.force_dtmin,
            stops=request.tstops,
            jumps=request.jumps,
        )

    @staticmethod
    def _clock(request: Request, mesh: Tensor | None) -> Callable[[float], Any]:
        """Boundaries that depend on ``t`` as tensors, all others as they are."""
        ends = request.problem.t.double()[[0, -1]] if mesh is None else mesh
        table = dict(zip(numbers("t", ends), ends.unbind(), strict=True))
        return lambda t: table.get(t, t)


class _CountedPullbacks(Field):
    """A field that counts the pullbacks autograd makes through it, when it makes them."""

    def __init__(self, field: Field, request: Request) -> None:
        super().__init__(field.f, field.args, field.layout, field.counts, field.jac, field.mass)
        self._backward = request.stats.backward

    def watched(self, derivative: Tensor) -> Tensor:
        if derivative.requires_grad:
            derivative.register_hook(self._count)  # type: ignore[no-untyped-call]
        return derivative

    def _count(self, gradient: Tensor) -> None:
        self._backward.nvjp += 1


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
            mesh = None if request.algorithm.adaptive else NativeBackend._mesh(request, request.problem.t)
            clock = NativeBackend._clock(request, mesh)
        differentiable_times = taped and times_tensor is not None and moves(times_tensor)
        for n, y, carried in trajectory.states(sorted(at_step), stepper):
            t, t1 = clock(trajectory.mesh[n]), clock(trajectory.mesh[n + 1])
            if record.columns is not None and not whole:
                y = y[: request.problem.layout.size]
            trajectory.enter(stepper, n, t, y, carried)
            stepper.attempt(t, t1 - t, y, trajectory.jump_before(n), t1)
            inside = at_step[n]
            points: Any = times
            if differentiable_times and times_tensor is not None:
                points = times_tensor.double()
            found = stepper.interpolate([(points[i] - t) / (t1 - t) for i in inside], derivative)
            for row, index in zip(found.unbind(), inside, strict=True):
                rows[index] = row
        return torch.stack([row for row in rows if row is not None])


BACKEND = NativeBackend()
