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
from pynode.native.dense import Pieces
from pynode.native.error_norm import ErrorNorm
from pynode.native.loop import Outcome, Recorder, Stepping, integrate_adaptive, integrate_fixed
from pynode.native.methods import carries
from pynode.native.offered import missing
from pynode.native.record import NativeRecord, boundaries_of, clock_of, evaluate
from pynode.native.root_finding import Search
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
from pynode.transforms import finite, numbers

_PULL_BACKS: dict[type[SensitivityAlgorithm], Callable[[Any, Query, Tensor], Gradients]] = {
    CheckpointedAdjoint: checkpointed.pull_back,
    BacksolveAdjoint: backsolve.pull_back,
    InterpolatingAdjoint: interpolating.pull_back,
    QuadratureAdjoint: quadrature.pull_back,
    GaussAdjoint: gauss.pull_back,
    ForwardSensitivity: forward.pull_back,
    ReversibleAdjoint: reversible.pull_back,
}


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
        mesh = None if request.algorithm.adaptive else boundaries_of(request, problem.t)
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
            clock, tensor = clock_of(request, mesh), request.times_tensor
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
        if outcome.retcode.successful and not finite(record.values):
            outcome = _gap(outcome, saver.saved, record.values, t)
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
        record.parameters.check()
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
        return t.double()[[0, -1]] if record.request.algorithm.adaptive else boundaries_of(record.request, t)

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


def _gap(outcome: Outcome, times: list[float], values: Tensor, start: float) -> Outcome:
    """The outcome where states between the steps are not finite (methods that evaluate f once more to interpolate):
    that of a solve which ended before the first of them."""
    bad = torch.isfinite(values.detach()).all(dim=-1).logical_not().nonzero()
    first = int(bad[0, 0]) if bad.ndim == 2 and len(bad) else 0
    detail = f"the state interpolated at t = {times[first]:.9g} is not finite"
    return dataclasses.replace(
        outcome, retcode=ReturnCode.Unstable, t=times[first - 1] if first else start, detail=detail
    )


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


BACKEND = NativeBackend()
