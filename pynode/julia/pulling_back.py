"""A gradient: what goes to SciMLSensitivity, and what its reverse solve means for y0, parameters and every time."""

from __future__ import annotations

import ctypes
import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode.algorithms import FixedStep, JuliaAlgorithm
from pynode.backends import Gradients, Query
from pynode.errors import AccuracyWarning, GradientError, SolveError, explain, not_finite
from pynode.julia.callback import real_size, shaped_like
from pynode.julia.crossing import NotFiniteError, PullBackCall, Reply, ReverseSolveError
from pynode.julia.names import controller_number, number_of, sensealg_expression
from pynode.julia.record import JuliaRecord
from pynode.native.meshes import mesh_of
from pynode.sensealg import BacksolveAdjoint, ContinuousAdjoint, InterpolatingAdjoint, QuadratureAdjoint
from pynode.solution import ReturnCode, failure_message
from pynode.strict import warn
from pynode.transforms import numbers


def pull_back(record: JuliaRecord, query: Query, cotangents: Tensor) -> Gradients:
    """Gradients of ``sum_i <cotangents_i, y(times_i)>``.

    Raises
    ------
    SolveError
        If the reverse solve does not reach the initial time.
    GradientError
        If a product is not finite where quadrature would not end, or if the state could not be integrated backward
        under BacksolveAdjoint.
    """
    request = record.request
    problem, sensealg = request.problem, request.sensealg
    assert isinstance(sensealg, ContinuousAdjoint)
    if query.derivative:
        raise GradientError(
            explain(
                f"sol.derivative(t) was differentiated under {sensealg.name}",
                "a sensitivity algorithm that differentiates the dense output",
                "use f(t, sol(t)) itself, or backend='torch' with CheckpointedAdjoint",
            )
        )
    times, t0 = query.times, problem.times[0]
    ahead = problem.times[-1] > t0
    wanted = cotangents.any(dim=1).tolist()
    # What a solve that failed reached is all there is.
    order = sorted((i for i in range(len(times)) if wanted[i]), key=lambda i: times[i], reverse=not ahead)
    apart = [i for i in order if times[i] == t0]  # looked at where nothing has been integrated yet
    moved = [i for i in order if times[i] != t0]
    stops = sorted({times[i] for i in moved}, reverse=not ahead)
    place = {t: k for k, t in enumerate(stops)}
    seeds = cotangents.new_zeros(len(stops), problem.layout.size)
    for i in moved:
        seeds[place[times[i]]] += cotangents[i]
    slopes = cotangents.new_empty(len(stops) + 1, problem.layout.size) if query.time_gradient else None
    adjoint = cotangents.new_zeros(problem.layout.size)
    vector = adjoint.new_zeros(sum(real_size(x) for x in record.route.inputs))
    if stops:
        call, listed = reverse_call(record), np.array(stops)
        call.solution, call.times, call.ntimes = record.solution, listed.ctypes.data, len(stops)
        call.cotangents, call.slopes = seeds.data_ptr(), None if slopes is None else slopes.data_ptr()
        call.dy0, call.dp = adjoint.data_ptr(), vector.data_ptr() if vector.numel() else None
        reverse(record, sensealg, call)
    elif slopes is not None:
        field = problem.field(request.stats.backward)
        slopes[0] = field(field.time(t0), problem.y0.detach())
    times_gradient = mesh_gradient = None
    if slopes is not None:
        times_gradient = torch.zeros(len(times), dtype=torch.float64)
        for i in order:
            # At t0 the state is y0 itself, whatever t0 is.
            if query.own_times or times[i] != t0:
                times_gradient[i] = torch.dot(cotangents[i], slopes[place.get(times[i], len(stops))]).item()
        # A save time at t0 that was given apart does not move with it: dy(s; t0)/dt0 = -f(t0, y0) there too.
        held = cotangents[apart].sum(0) if query.own_times and apart else 0.0
        mesh_gradient = torch.zeros(2, dtype=torch.float64)
        mesh_gradient[0] = -torch.dot(adjoint + held, slopes[len(stops)]).item()
    if apart:
        adjoint = adjoint + cotangents[apart].sum(0)
    return Gradients(adjoint, mesh_gradient, times_gradient, *_parted(record, vector, bool(stops)))


def _parted(record: JuliaRecord, vector: Tensor, moved: bool) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """The gradient of the parameter vector as gradients of the tensors in it."""
    route, dependencies = record.route, record.request.dependencies
    assert dependencies is not None
    count = len(dependencies.arguments)
    if not moved:  # no state after the initial one has a cotangent
        return [torch.zeros_like(x) for x in dependencies.arguments], dependencies.zeros()
    parts = torch.split(vector, [real_size(x) for x in route.inputs]) if route.inputs else ()
    found: list[Tensor | None] = [
        shaped_like(part, x) if used else None for part, x, used in zip(parts, route.inputs, route.used, strict=True)
    ][: count + len(dependencies.parameters)]  # without data
    for index, x in enumerate(dependencies.arguments):
        if found[index] is None:
            found[index] = torch.zeros_like(x)
    return found[:count], found[count:]


def reverse_call(record: JuliaRecord) -> PullBackCall:
    """A reverse solve as far as it is the same for every solve of the question: without the addresses of this one's
    tensors. It keeps alive the arrays whose addresses it has."""
    request, engine = record.request, record.engine
    problem, own = request.problem, request.sensealg
    assert isinstance(own, ContinuousAdjoint)
    algorithm = own.algorithm or request.algorithm
    dt, fixed = own.dt0 or 0.0, False
    halts = np.array(request.tstops if own.tstops is None else own.tstops)
    if isinstance(algorithm, FixedStep) and not algorithm.adaptive:
        fixed = True
        t = problem.t.detach()
        mesh = numbers("t", mesh_of(algorithm, t, request.jumps))
        halts = np.array(mesh[1:-1][::-1])
        dt = 2.0 * max(abs(b - a) for a, b in itertools.pairwise(mesh))
    jumps = np.array(sorted(request.jumps if own.d_discontinuities is None else own.d_discontinuities))
    rtol = request.rtol if own.rtol is None else own.rtol
    atol = request.atol if own.atol is None else own.atol
    channels = sum(real_size(x) for x in record.route.inputs)
    each = any(isinstance(x, Tensor) and x.numel() > 1 for x in (rtol, atol))
    rtols, atols = (_spread(record, x, channels) if each else None for x in (rtol, atol))
    least = [float(x.min()) if isinstance(x, Tensor) else float(x) for x in (rtol, atol)] if not fixed else [1e-6, 1e-6]
    ranges = _ranges(record)
    call = PullBackCall(
        sensealg=engine.named(sensealg_expression(own, *least)),
        algorithm=0 if own.algorithm is None else number_of(engine, own.algorithm),
        rtol=least[0],
        atol=least[1],
        rtols=None if rtols is None else rtols.ctypes.data,
        atols=None if atols is None else atols.ctypes.data,
        ntols=0 if rtols is None else len(rtols),
        stops=halts.ctypes.data,
        nstops=len(halts),
        jumps=jumps.ctypes.data,
        njumps=len(jumps),
        dt=dt,
        dtmin=request.dtmin if own.dtmin is None else own.dtmin,
        dtmax=request.dtmax if own.dtmax is None else own.dtmax,
        maxiters=own.max_steps or request.max_steps,
        ranges=ranges.ctypes.data,
        nranges=len(ranges),
        controller=controller_number(engine, own.controller or request.controller),
        adaptive=not fixed,
        force_dtmin=request.force_dtmin,
        joint=isinstance(own, BacksolveAdjoint | InterpolatingAdjoint),
        strict=isinstance(own, QuadratureAdjoint),
        checked=problem.norm_layout.size if _checks(own) else 0,
        noise=100.0 * least[1] * math.sqrt(problem.norm_layout.size),
    )
    call.arrays = [halts, jumps, rtols, atols, ranges]
    return call


def reverse(record: JuliaRecord, own: ContinuousAdjoint, call: PullBackCall) -> Reply:
    """Run a reverse solve, and count its work.

    Raises
    ------
    SolveError
        If it does not reach the initial time.
    GradientError
        If a product is not finite, or a state integrated backward is not what it had been.
    """
    counts = record.stats.backward
    try:
        reply = record.call("pull_back", ctypes.byref(call))
    except ReverseSolveError as error:
        text = str(error)
        code = ReturnCode.MaxIters if "maxiters" in text.lower() else ReturnCode.DtLessThanMin
        message = f"in the reverse solve of {own.name}, " + failure_message(code, float("nan"), text.splitlines()[-1])
        raise SolveError(message, code, float("nan")) from None
    except NotFiniteError:
        raise not_finite(f"a product with f's Jacobian in the reverse solve of {own.name} is") from None
    counts.nfe += reply.nf
    counts.nvjp += max(reply.nvjp, reply.nvjp_p) if call.joint else reply.nvjp + reply.nvjp_p
    if isinstance(own, BacksolveAdjoint):
        _check_reconstruction(own, float(reply.mismatch))
    return reply


def _checks(own: ContinuousAdjoint) -> bool:
    return isinstance(own, BacksolveAdjoint) and own.reconstruction_rtol is not None


def _check_reconstruction(own: BacksolveAdjoint, mismatch: float) -> None:
    """Raise or warn where the state integrated backward did not come by what the forward solve had stored."""
    if own.reconstruction_rtol is None or mismatch <= own.reconstruction_rtol:
        return
    message = explain(
        f"BacksolveAdjoint integrated the state back to {mismatch:.2g} of its size from what the forward solve had",
        f"at most reconstruction_rtol = {own.reconstruction_rtol:g}: the gradient would be wrong by about as much",
        "use GaussAdjoint(), or tighter tolerances",
    )
    if own.on_mismatch == "raise":
        raise GradientError(message)
    warn(message, AccuracyWarning)


def _spread(record: JuliaRecord, tolerance: Any, channels: int) -> np.ndarray[Any, Any]:
    """A tolerance for everything that is integrated backward: integrals get the tightest."""
    problem, own = record.request.problem, record.request.sensealg
    size = problem.layout.size
    if isinstance(tolerance, Tensor) and tolerance.numel() > 1:
        state = problem.tolerance(tolerance)
        assert isinstance(state, Tensor)
        found = state.detach().double().cpu().numpy()
        found = np.concatenate([found, np.full(size - len(found), found.min())])
    else:
        found = np.full(size, float(tolerance))
    parts = [found]
    if isinstance(own, BacksolveAdjoint | InterpolatingAdjoint):
        parts.append(np.full(max(channels, 1), found.min()))
    if isinstance(own, BacksolveAdjoint):
        parts.append(found)
    return np.concatenate(parts)


def _ranges(record: JuliaRecord) -> np.ndarray[Any, Any]:
    """First and last of each group of channels that counts in the error norm, none where all count as one.

    SciML integrates ``(adjoint, parameters)`` under InterpolatingAdjoint, ``(adjoint, parameters, state)`` under
    BacksolveAdjoint, and the adjoint alone otherwise. Algorithms of Julia's own may be implicit, and an integral in an
    implicit step that nothing controls was measured off by 3e-3 where the tolerance was 1e-6: there all count.
    """
    problem, own = record.request.problem, record.request.sensealg
    size, counted = problem.layout.size, problem.norm_layout.size
    sizes = [real_size(x) for x in record.route.inputs] or [1]
    if not isinstance(own, BacksolveAdjoint | InterpolatingAdjoint):
        groups = [] if counted == size else [(1, counted)]
    else:
        groups = [(1, counted)]
        if own.norm == "full" or isinstance(own.algorithm or record.request.algorithm, JuliaAlgorithm):
            at = size
            for length in sizes:
                groups.append((at + 1, at + length))
                at += length
        if isinstance(own, BacksolveAdjoint):
            start = size + sum(sizes)
            groups.append((start + 1, start + counted))
    return np.array(groups, dtype=np.int64).reshape(-1, 2)
