"""What Julia is told of a solve: juliaenv/src/solving.jl is the other side."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode.algorithms import FixedStep, Implicit
from pynode.backends import Request
from pynode.julia.crossing import Reply, SolveCall
from pynode.julia.names import controller_number, number_of
from pynode.julia.record import device_number
from pynode.julia.runtime import Julia
from pynode.native.meshes import mesh_of
from pynode.sensealg import BacksolveAdjoint
from pynode.solution import Counts
from pynode.transforms import numbers


def solve_call(engine: Julia, request: Request, field: int) -> SolveCall:
    """A solve of Julia's field number ``field``, without the addresses of state, parameters and results. It keeps alive
    the arrays whose addresses it has."""
    problem, layout = request.problem, request.problem.layout
    times = np.array(request.times)
    sparse = keeps_saved_only(request)
    fixed = isinstance(request.algorithm, FixedStep) and not request.algorithm.adaptive
    stops = np.array(request.tstops)
    dt = request.dt0 or 0.0
    if fixed:
        mesh = numbers("t", mesh_of(request.algorithm, problem.t.detach(), request.jumps))  # type: ignore[arg-type]
        stops = np.array(mesh[1:-1])
        # Every step ends at the next stop, whatever this is.
        dt = 2.0 * max(abs(b - a) for a, b in itertools.pairwise(mesh))
    jumps = np.array(sorted(request.jumps))
    rtols, atols = (_each(request, x) for x in (request.rtol, request.atol))
    if (rtols is None) != (atols is None):
        rtols, atols = (_filled(request, x) for x in (request.rtol, request.atol))
    least = _of_newton(request) if fixed and isinstance(request.algorithm, Implicit) else (0.0, 0.0)
    mass = None if problem.mass is None else problem.mass.matrix.contiguous()
    call = SolveCall(
        field=field,
        algorithm=number_of(engine, request.algorithm),
        t0=problem.times[0],
        t1=problem.times[-1],
        times=times.ctypes.data,
        ntimes=len(times),
        rtol=least[0] if fixed else 0.0 if rtols is not None else float(request.rtol),
        atol=least[1] if fixed else 0.0 if atols is not None else float(request.atol),
        rtols=None if rtols is None else rtols.ctypes.data,
        atols=None if atols is None else atols.ctypes.data,
        stops=stops.ctypes.data,
        nstops=len(stops),
        jumps=jumps.ctypes.data,
        njumps=len(jumps),
        dt=dt,
        dtmin=request.dtmin,
        dtmax=request.dtmax,
        maxiters=request.max_steps,
        norm_size=problem.norm_layout.size,
        controller=controller_number(engine, request.controller),
        adaptive=not fixed,
        force_dtmin=request.force_dtmin,
        keep=0 if sparse and not request.save_steps else 1,
        device=device_number(layout.device),
        hold=request.differentiable or not sparse or request.save_steps,
        march=request.watch is not None,
        mass=None if mass is None else mass.data_ptr(),
    )
    call.arrays = [times, stops, jumps, rtols, atols, mass]
    return call


def _of_newton(request: Request) -> tuple[float, float]:
    """Tolerances under which SciML's iteration, which goes to a hundredth of them, solves the equations of given steps
    as finely as :class:`pynode.native.newton.NewtonNorm` does."""
    y0 = request.problem.y0.detach()
    relative = 100.0 * max(1e-11, 50.0 * torch.finfo(y0.dtype).eps)
    return relative, relative * (y0.square().mean().sqrt().item() or 1.0)


def count(counts: Counts, reply: Reply) -> None:
    """Add a forward solve's work."""
    counts.nfe += reply.nf
    counts.nvjp += reply.nvjp
    counts.accepted += reply.accepted
    counts.rejected += reply.rejected


def keeps_saved_only(request: Request) -> bool:
    """Whether a solve stores its save points and nothing between them."""
    if request.watch is not None:
        return False
    sensealg = request.sensealg if request.differentiable else None
    if isinstance(sensealg, BacksolveAdjoint) or getattr(sensealg, "checkpointing", False):
        return request.dense is not True
    return request.dense is False and sensealg is None


def _each(request: Request, tolerance: float | Tensor) -> np.ndarray[Any, Any] | None:
    """A tolerance for each channel, None where it is a number."""
    return _filled(request, tolerance) if isinstance(tolerance, Tensor) and tolerance.numel() > 1 else None


def _filled(request: Request, tolerance: float | Tensor) -> np.ndarray[Any, Any]:
    size = request.problem.layout.size
    if not isinstance(tolerance, Tensor) or tolerance.numel() == 1:
        return np.full(size, float(tolerance))
    found = tolerance.detach().double().cpu().numpy()
    more = size - len(found)  # running costs, which do not count
    return np.concatenate([found, np.full(more, found.min())]) if more else found
