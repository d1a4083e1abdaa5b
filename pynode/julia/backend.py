"""The Julia backend: solve, evaluate, pull back, by OrdinaryDiffEq and SciMLSensitivity."""

from __future__ import annotations

import ctypes
import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode.algorithms import Algorithm, FixedStep, Symplectic
from pynode.backends import Gradients, Query, Request
from pynode.dependencies import Dependencies
from pynode.errors import UnsupportedError, explain
from pynode.julia.crossing import SolveCall
from pynode.julia.names import controller_number, known, number_of
from pynode.julia.pulling_back import pull_back
from pynode.julia.record import JuliaRecord, device_number
from pynode.julia.routes import dependencies_of, route_for
from pynode.julia.runtime import absent, julia
from pynode.native.meshes import mesh_of
from pynode.sensealg import (
    BacksolveAdjoint,
    GaussAdjoint,
    GaussKronrodAdjoint,
    InterpolatingAdjoint,
    QuadratureAdjoint,
    SensitivityAlgorithm,
)
from pynode.solution import Counts, ReturnCode
from pynode.transforms import numbers

_OFFERED = (BacksolveAdjoint, InterpolatingAdjoint, QuadratureAdjoint, GaussAdjoint, GaussKronrodAdjoint)

#: By Julia's number of each, as in juliaenv/src/messages.jl.
_RETCODES = (
    ReturnCode.Success,
    ReturnCode.MaxIters,
    ReturnCode.DtLessThanMin,
    ReturnCode.Unstable,
    ReturnCode.InitialFailure,
    ReturnCode.Unstable,
)


class JuliaBackend:
    """Solvers of SciML."""

    name = "julia"

    def absent(self) -> str | None:
        return absent()

    def supports(self, algorithm: Algorithm, sensealg: SensitivityAlgorithm) -> str | None:
        if isinstance(algorithm, Symplectic):
            return (
                f"the algorithm {algorithm.name}, which SciML has for its DynamicalODEProblem only, and pynode in "
                "backend='torch'"
            )
        if not known(algorithm):
            return f"the algorithm {algorithm.name}, which SciML does not have"
        if not isinstance(sensealg, _OFFERED):
            names = ", ".join(cls.__name__ for cls in _OFFERED)
            return f"the sensitivity algorithm {sensealg.name} (it offers {names})"
        if isinstance(sensealg, GaussAdjoint) and sensealg.nodes is not None:
            return "GaussAdjoint(nodes=): SciML chooses the nodes"
        if isinstance(sensealg, BacksolveAdjoint | InterpolatingAdjoint) and callable(sensealg.norm):
            return f"{sensealg.name} with a norm of your own"
        return None

    def dependencies(self, problem: Any, counts: Counts, params: Any, allow_unused: bool, jump: float) -> Dependencies:
        return dependencies_of(problem, counts, params, allow_unused, jump)

    def solve(self, request: Request) -> JuliaRecord:
        _refuse(request)
        engine = julia()
        if request.differentiable:
            engine.need_adjoints()
        problem, layout = request.problem, request.problem.layout
        route = route_for(engine, request)
        record = JuliaRecord(request, engine, route)
        algorithm = number_of(engine, request.algorithm)
        y0 = problem.y0.detach().contiguous()
        times = np.array(request.times)
        sparse = _keeps_saved_only(request)
        values = y0.new_empty(len(times), layout.size)
        end = torch.empty_like(y0)
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
        call = SolveCall(
            field=route.number,
            algorithm=algorithm,
            y0=y0.data_ptr(),
            p=record.parameters.data_ptr(),
            t0=problem.times[0],
            t1=problem.times[-1],
            times=times.ctypes.data,
            ntimes=len(times),
            values=values.data_ptr(),
            final=end.data_ptr(),
            rtol=0.0 if rtols is not None or fixed else float(request.rtol),
            atol=0.0 if atols is not None or fixed else float(request.atol),
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
        )
        reply = record.call("solve", ctypes.byref(call))
        record.solution, record.steps = int(reply.solution), int(reply.steps)
        counts = request.stats.forward
        counts.nfe += reply.nf
        counts.nvjp += reply.nvjp
        counts.accepted, counts.rejected = reply.accepted, reply.rejected
        record.retcode, record.t = _RETCODES[reply.retcode], float(reply.t)
        record.detail = reply.text
        record.end = end
        record.saved, record.values = request.times[: reply.saved], values[: reply.saved]
        if request.save_steps:
            at = np.empty(record.steps)
            every = y0.new_empty(record.steps, layout.size)
            record.call("steps", record.solution, at.ctypes.data, every.data_ptr())
            record.saved, record.values = at.tolist(), every
        return record

    def evaluate(
        self, record: JuliaRecord, times: list[float], times_tensor: Tensor | None, derivative: bool
    ) -> Tensor:
        request = record.request
        if _keeps_saved_only(request):
            raise UnsupportedError(
                explain(
                    "sol(t) was called on a solve that kept no dense output "
                    f"({'SaveAt(dense=False)' if request.dense is False else request.sensealg.name})",
                    "a solve with dense output",
                    "solve with saveat=SaveAt(dense=True), or put the times into t",
                )
            )
        at = np.array(times)
        values = record.end.new_empty(len(times), request.problem.layout.size)
        record.call("evaluate", record.solution, at.ctypes.data, len(times), int(derivative), values.data_ptr())
        return values

    def pull_back(self, record: JuliaRecord, query: Query, cotangents: Tensor) -> Gradients:
        return pull_back(record, query, cotangents)

    def pull_back_tangent(
        self, record: Any, query: Query, cotangents: Tensor, directions: Gradients
    ) -> tuple[Gradients, Tensor] | None:
        return None

    def mesh(self, record: JuliaRecord, t: Tensor) -> Tensor:
        return t.double()[[0, -1]]


def _refuse(request: Request) -> None:
    """Raise UnsupportedError for what only the torch backend offers."""
    problem = request.problem
    given = {
        "norm=": request.norm is not None,
        "observer=": request.observer is not None,
        "compile=": bool(request.compile),
        f"{request.algorithm.name}(perturb=True)": getattr(request.algorithm, "perturb", False),
        f"{request.algorithm.name}(interpolation='linear')": getattr(request.algorithm, "interpolation", "")
        == "linear",
        f"{request.sensealg.name}(observer=)": getattr(request.sensealg, "observer", None) is not None,
    }
    for name, there in given.items():
        if there:
            raise UnsupportedError(
                explain(f"backend='julia' got {name}", "what SciML offers", f"drop {name} or use backend='torch'")
            )
    sensealg = request.sensealg
    checkpointing = getattr(sensealg, "checkpointing", False)
    narrow = isinstance(sensealg, GaussKronrodAdjoint) or checkpointing
    if request.differentiable and narrow and problem.layout.dtype == torch.float32:
        raise UnsupportedError(
            explain(
                f"backend='julia' got {sensealg.name}{'(checkpointing=True)' if checkpointing else ''} in float32",
                "float64: SciMLSensitivity's checkpoints do not hold float32 states beside float64 times, and its "
                "Gauss-Kronrod refinement does not end in float32",
                "solve in float64, or use GaussAdjoint()",
            )
        )
    device = problem.layout.device
    if device.type not in ("cpu", "cuda") or (device.index or 0) > 0:
        raise UnsupportedError(
            explain(
                f"backend='julia' got tensors on {device}",
                "tensors on the CPU or on the first CUDA device",
                "move them",
            )
        )


def _keeps_saved_only(request: Request) -> bool:
    """Whether a solve stores its save points and nothing between them."""
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


BACKEND = JuliaBackend()
