"""The continuous adjoint, integrated backward together with the state.

With ``a = dL/dy``: ``dy/dt = f``, ``da/dt = -a df/dy``, ``dL/dp = -int a df/dp dt`` (Chen et al. 2018). The state is
set to its stored value at every saved time, after checking that the backward integration had come close to it.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pynode.backends import Gradients, Query
from pynode.errors import GradientError, SolveError, explain
from pynode.native.error_norm import ErrorNorm
from pynode.native.loop import Nothing, Outcome, Stepping, integrate_adaptive, integrate_fixed
from pynode.native.stepper import Stepper
from pynode.problem import Field
from pynode.sensealg import BacksolveAdjoint
from pynode.solution import Counts, failure_message

if TYPE_CHECKING:
    from pynode.native.backend import NativeRecord


class _Augmented(Field):
    """The augmented field on ``[y (n), a (n), g_args..., g_params...]``, all flat."""

    def __init__(self, field: Field, record: NativeRecord) -> None:
        dependencies = record.request.dependencies
        assert dependencies is not None
        self.dependencies = dependencies
        self.aliases = [x.detach().requires_grad_() for x in dependencies.arguments]
        self.field = field.with_args(record.request.problem.arguments.replaced(self.aliases))
        self.inputs = [*self.aliases, *dependencies.parameters]
        n = field.layout.size
        self.n = n
        self.sizes = [x.numel() * (2 if x.is_complex() else 1) for x in self.inputs]
        self.layout = _FlatLayout(2 * n + sum(self.sizes), field)  # type: ignore[assignment]
        self.counts = Counts()  # the stepper's; evaluations are counted by the field inside
        self.reached = [False] * len(self.inputs)
        self.args = ()

    def __call__(self, t: Tensor, flat: Tensor) -> Tensor:
        return self.f(t, flat)

    def time(self, t: float | Tensor) -> Tensor:
        return self.field.time(t)

    def f(self, t: Tensor, flat: Tensor) -> Tensor:
        n = self.n
        with torch.enable_grad():
            y = flat[:n].detach().requires_grad_()
            dy = self.field(t, y)
        self.dependencies.check_reached([dy], [y, *self.aliases])
        if not dy.requires_grad:  # f depends on none of its inputs here
            return torch.cat([dy.detach(), flat.new_zeros(flat.numel() - n)])
        gradients = torch.autograd.grad(dy, [y, *self.inputs], flat[n : 2 * n], allow_unused=True)
        self.field.counts.nvjp += 1
        parts = [dy.detach(), _flat(gradients[0], n, flat)]
        for index, (gradient, size, like) in enumerate(zip(gradients[1:], self.sizes, self.inputs, strict=True)):
            self.reached[index] |= gradient is not None
            # Parameters may be of another precision than the state; the quadrature is done in the state's.
            parts.append(_flat(gradient, size, flat, like))
        rate = torch.cat(parts)
        rate[n:].neg_()
        return rate


class _FlatLayout:
    """The augmented state is a flat real vector already."""

    def __init__(self, size: int, field: Field) -> None:
        self.size, self.dtype, self.device = size, field.layout.dtype, field.layout.device

    def writer(self) -> Any:
        return lambda derivative, row: row.copy_(derivative)

    def row_views(self, buffer: Tensor) -> tuple[Tensor, ...]:
        return buffer.unbind()

    def unpack(self, flat: Tensor) -> Tensor:
        return flat


def _flat(gradient: Tensor | None, size: int, like: Tensor, _param: Tensor | None = None) -> Tensor:
    if gradient is None:
        return like.new_zeros(size)
    real = torch.view_as_real(gradient.resolve_conj()) if gradient.is_complex() else gradient
    return real.reshape(-1).to(like.dtype)


def pull_back(record: NativeRecord, query: Query, cotangents: Tensor) -> Gradients:
    """Gradients of ``sum_i <cotangents_i, y(times_i)>``; arguments as for the checkpointed adjoint.

    Raises
    ------
    GradientError
        If the state cannot be reconstructed backward.
    SolveError
        If the backward solve fails.
    """
    request, times = record.request, query.times
    sensealg = request.sensealg
    assert isinstance(sensealg, BacksolveAdjoint)
    if query.derivative:
        raise GradientError(
            explain(
                "sol.derivative(t) was differentiated under BacksolveAdjoint",
                "a sensitivity algorithm that differentiates the dense output",
                "use CheckpointedAdjoint, DirectAdjoint, or f(t, sol(t)) itself",
            )
        )
    counts = request.stats.backward
    field = request.problem.field(counts)
    augmented = _Augmented(field, record)
    n = augmented.n
    stepper = record.stepper(augmented, sensealg.algorithm)

    order = sorted(range(len(times)), key=lambda i: times[i], reverse=record.trajectory.direction > 0)
    # Nothing happens after the last time that has a cotangent.
    wanted = cotangents.any(dim=1).tolist()
    order = order[next((k for k, i in enumerate(order) if wanted[i]), len(order)) :]
    anchors = record.anchors(times)
    if anchors._version:
        raise GradientError(
            explain(
                "ys was changed in place after the solve, and BacksolveAdjoint needs its values",
                "ys as the solve returned it",
                "work on ys.clone(), or use CheckpointedAdjoint",
            )
        )
    t0 = record.trajectory.mesh[0]
    times_gradient = torch.zeros(len(times), dtype=torch.float64) if query.time_gradient else None
    state = torch.zeros(augmented.layout.size, dtype=augmented.layout.dtype, device=augmented.layout.device)
    here = times[order[0]] if order else t0
    start = anchors[order[0]] if order else request.problem.y0.detach()
    moved = here != t0
    state[:n] = start
    for index in order:
        if times[index] != here:
            state = _solved(record, sensealg, stepper, state, here, times[index], counts, augmented)
            _check_reconstruction(state[:n], anchors[index], times[index], here, start, record)
            here = times[index]
            state[:n] = start = anchors[index]
        # At t0 the state is y0 itself, whatever t0 is.
        if times_gradient is not None and (query.own_times or times[index] != t0):
            with torch.no_grad():
                slope = field(field.time(times[index]), anchors[index])
            times_gradient[index] = torch.dot(cotangents[index], slope).item()
        if times[index] == t0 and here == t0:
            continue
        state[n : 2 * n] += cotangents[index]
    if here != t0:
        state = _solved(record, sensealg, stepper, state, here, t0, counts, augmented)
        _check_reconstruction(state[:n], request.problem.y0.detach(), t0, here, start, record)

    y0 = request.problem.y0.detach()
    adjoint = state[n : 2 * n].clone()
    mesh_gradient = None
    if query.time_gradient:
        with torch.no_grad():
            slope = field(field.time(t0), y0)
        mesh_gradient = torch.zeros(len(record.trajectory.mesh), dtype=torch.float64)
        # A save time at t0 that was given apart does not move with it: dy(s; t0)/dt0 = -f(t0, y0) there too.
        apart = [i for i in order if query.own_times and times[i] == t0]
        mesh_gradient[0] = -torch.dot(adjoint + cotangents[apart].sum(0), slope).item()
        mesh_gradient = record.free_boundaries(mesh_gradient)
    for index in order:
        if times[index] == t0:
            adjoint += cotangents[index]
    parts = torch.split(state[2 * n :], augmented.sizes) if augmented.sizes else ()
    gradients: list[Tensor | None] = []
    for part, like, reached in zip(parts, augmented.inputs, augmented.reached, strict=True):
        if not reached:
            gradients.append(None)
        elif like.is_complex():
            gradients.append(torch.view_as_complex(part.reshape(*like.shape, 2).clone()).to(like.dtype))
        else:
            gradients.append(part.reshape(like.shape).to(like.dtype))
    count = len(augmented.aliases)
    if not moved:  # no state after the initial one has a cotangent
        gradients = [*map(torch.zeros_like, augmented.aliases), *augmented.dependencies.zeros()]
    return Gradients(adjoint, mesh_gradient, times_gradient, gradients[:count], gradients[count:])


def _solved(
    record: NativeRecord,
    sensealg: BacksolveAdjoint,
    stepper: Stepper,
    state: Tensor,
    t: float,
    t1: float,
    counts: Counts,
    augmented: _Augmented,
) -> Tensor:
    """The augmented state at ``t1``, integrated from ``t``."""
    request = record.request
    algorithm = sensealg.algorithm or request.algorithm
    max_steps = sensealg.max_steps or request.max_steps
    if all(own is None for own in (sensealg.max_steps, sensealg.algorithm, sensealg.rtol, sensealg.atol)):
        # A field that cannot be reconstructed may run away backward and take ever more steps.
        max_steps = min(max_steps, 1000 + 30 * record.trajectory.steps)
    jumps = request.jumps if sensealg.d_discontinuities is None else frozenset(sensealg.d_discontinuities)
    with torch.no_grad():
        if algorithm.adaptive:
            rtol = request.rtol if sensealg.rtol is None else sensealg.rtol
            atol = request.atol if sensealg.atol is None else sensealg.atol
            stepping = Stepping(
                norm=lambda: _norm(sensealg, rtol, atol, augmented),
                controller=sensealg.controller or request.controller,
                max_steps=max_steps,
                dt0=sensealg.dt0,
                dtmin=request.dtmin if sensealg.dtmin is None else sensealg.dtmin,
                dtmax=request.dtmax if sensealg.dtmax is None else sensealg.dtmax,
                force_dtmin=request.force_dtmin,
                stops=request.tstops if sensealg.tstops is None else sensealg.tstops,
                jumps=jumps,
            )
            outcome = integrate_adaptive(stepper, state, t, t1, Nothing(), counts, stepping, observer=sensealg.observer)
        else:
            mesh = record.backward_mesh(algorithm, t, t1)
            perturb = bool(getattr(algorithm, "perturb", False))
            outcome = integrate_fixed(
                stepper,
                state,
                mesh,
                Nothing(),
                counts,
                max_steps=max_steps,
                perturb=perturb,
                jumps=jumps,
                observer=sensealg.observer,
            )
    _raise_on_failure(outcome)
    return outcome.y


def _norm(sensealg: BacksolveAdjoint, rtol: Any, atol: Any, augmented: _Augmented) -> ErrorNorm:
    problem = augmented.dependencies.problem
    n, rest = problem.norm_layout.size, sum(augmented.sizes)
    counted: Tensor | None = None
    if n < augmented.n:  # neither a running cost nor its adjoint, which is constant, counts
        channels = torch.arange(augmented.layout.size, device=augmented.layout.device)
        counted = torch.cat([channels[:n], channels[augmented.n :][:n], channels[2 * augmented.n :]])
    rtol, atol = problem.tolerance(rtol), problem.tolerance(atol)
    if isinstance(rtol, Tensor) or isinstance(atol, Tensor):
        # A tolerance per element of the state counts for its adjoint too; integrals get the tightest.
        def spread(tolerance: Any) -> Any:
            if not isinstance(tolerance, Tensor) or tolerance.numel() != n:
                return tolerance  # a number, or one for each channel
            return torch.cat([tolerance, tolerance, tolerance.new_full((rest,), tolerance.min().item())])

        rtol, atol = spread(rtol), spread(atol)
    if sensealg.norm == "seminorm":
        if isinstance(rtol, Tensor):
            rtol = rtol[: 2 * n]
        if isinstance(atol, Tensor):
            atol = atol[: 2 * n]
        part = slice(0, 2 * n) if counted is None else counted[: 2 * n]
        return ErrorNorm(rtol, atol, _largest_rms, lambda e: torch.split(e, [n, n]), part=part)
    sizes = [n, n, *augmented.sizes]
    if sensealg.norm == "full":
        return ErrorNorm(rtol, atol, _largest_rms, lambda e: torch.split(e, [n, n, rest]), part=counted)
    shapes: list[Any] = [(n,), (n,), *(x.shape for x in augmented.inputs)]
    assert callable(sensealg.norm)

    def unpack(error: Tensor) -> tuple[Tensor, ...]:
        parts = torch.split(error, sizes)
        return tuple(
            part.reshape(shape) if part.numel() == math.prod(shape) else torch.view_as_complex(part.reshape(*shape, 2))
            for part, shape in zip(parts, shapes, strict=True)
        )

    return ErrorNorm(rtol, atol, sensealg.norm, unpack, part=counted)


def _largest_rms(parts: tuple[Tensor, ...]) -> float:
    sizes = [math.sqrt(torch.dot(part, part).item() / part.numel()) for part in parts if part.numel()]
    return math.nan if any(map(math.isnan, sizes)) else max(sizes)


def _check_reconstruction(
    back: Tensor, stored: Tensor, t: float, later: float, start: Tensor, record: NativeRecord
) -> None:
    """Compare the state integrated ``back`` to ``t`` from state ``start`` at time ``later`` with the stored one."""
    sensealg, atol = record.request.sensealg, record.request.atol
    assert isinstance(sensealg, BacksolveAdjoint)
    if sensealg.reconstruction_rtol is None:
        return
    counting = record.request.problem.norm_layout.size
    back, stored, start = back[:counting], stored[:counting], start[:counting]
    # The state may pass through zero at a saved time, as it does where y0 = 0.
    size = max(stored.norm().item(), start.norm().item())
    noise = 100.0 * (atol.max().item() if isinstance(atol, Tensor) else atol) * math.sqrt(stored.numel())
    distance = (back - stored).norm().item()
    if not distance <= sensealg.reconstruction_rtol * size + noise:
        relative = distance / size if size else math.inf
        # A warning is the same text every time, so that a training loop shows it once.
        warn = sensealg.on_mismatch == "warn"
        where, missed = (
            ("", "more") if warn else (f" from t = {later:.6g} to t = {t:.6g}", f"{relative:.3g} of its norm, more")
        )
        limit = f"reconstruction_rtol = {sensealg.reconstruction_rtol:.3g}"
        message = explain(
            f"BacksolveAdjoint integrated the state backward{where} and missed the stored state by {missed} than "
            f"{limit} of its norm: its gradient cannot be trusted",
            f"a relative distance below {limit}",
            "use CheckpointedAdjoint (exact), save more times in between, tighten rtol and atol or the steps, or set "
            "reconstruction_rtol=None to go on",
        )
        if not warn:
            raise GradientError(message)
        warnings.warn(message, RuntimeWarning, stacklevel=2)


def _raise_on_failure(outcome: Outcome) -> None:
    if not outcome.retcode.successful:
        message = "in the backward solve of BacksolveAdjoint, " + failure_message(
            outcome.retcode, outcome.t, outcome.detail
        )
        message = message.removesuffix(".") + "; or use CheckpointedAdjoint, which integrates nothing backward."
        raise SolveError(message, outcome.retcode, outcome.t)
