"""The Julia backend: solve, evaluate, pull back, by OrdinaryDiffEq and SciMLSensitivity."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode.algorithms import Algorithm, Symplectic
from pynode.backends import Gradients, Query, Request
from pynode.dependencies import Dependencies
from pynode.errors import UnsupportedError, explain
from pynode.julia.lanes import learn, repeated
from pynode.julia.names import known
from pynode.julia.pulling_back import pull_back
from pynode.julia.record import JuliaRecord
from pynode.julia.routes import route_for
from pynode.julia.runtime import absent, julia
from pynode.julia.solving import count, keeps_saved_only, solve_call
from pynode.known_fields import dependencies_of
from pynode.sensealg import (
    BacksolveAdjoint,
    GaussAdjoint,
    GaussKronrodAdjoint,
    InterpolatingAdjoint,
    QuadratureAdjoint,
    SensitivityAlgorithm,
)
from pynode.solution import Counts, ReturnCode, Solution

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

    def repeated(self, f: Any, y0: Any, t: Any, question: tuple[Any, ...]) -> Solution | None:
        return repeated(f, y0, t, question)

    def dependencies(self, problem: Any, counts: Counts, params: Any, allow_unused: bool, jump: float) -> Dependencies:
        return dependencies_of(problem, counts, params, allow_unused, jump)

    def solve(self, request: Request) -> JuliaRecord:
        _refuse(request)
        engine = julia()
        if request.differentiable:
            engine.need_adjoints()
        problem, layout = request.problem, request.problem.layout
        route = route_for(engine, request)
        call = solve_call(engine, request, route.number)
        y0 = problem.y0.detach().contiguous()
        values, end = y0.new_empty(len(request.times), layout.size), torch.empty_like(y0)
        record = JuliaRecord(request, engine, route)
        call.y0, call.p = y0.data_ptr(), record.parameters.data_ptr()
        call.values, call.final = values.data_ptr(), end.data_ptr()
        reply = record.call("solve", ctypes.byref(call))
        record.solution, record.steps = int(reply.solution), int(reply.steps)
        count(request.stats.forward, reply)
        record.retcode, record.t = _RETCODES[reply.retcode], float(reply.t)
        record.detail = reply.text
        record.end = end
        record.saved, record.values = request.times[: reply.saved], values[: reply.saved]
        if request.save_steps:
            at = np.empty(record.steps)
            every = y0.new_empty(record.steps, layout.size)
            record.call("steps", record.solution, at.ctypes.data, every.data_ptr())
            record.saved, record.values = at.tolist(), every
        learn(record, call)
        return record

    def evaluate(
        self, record: JuliaRecord, times: list[float], times_tensor: Tensor | None, derivative: bool
    ) -> Tensor:
        request = record.request
        if keeps_saved_only(request):
            raise UnsupportedError(
                explain(
                    "sol(t) was called on a solve that kept no dense output "
                    f"({'SaveAt(dense=False)' if request.dense is False else request.sensealg.name})",
                    "a solve with dense output",
                    "solve with saveat=SaveAt(dense=True), or put the times into t",
                )
            )
        at = np.array(times)
        values = request.problem.y0.detach().new_empty(len(times), request.problem.layout.size)
        record.call("evaluate", record.kept(), at.ctypes.data, len(times), int(derivative), values.data_ptr())
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


BACKEND = JuliaBackend()
