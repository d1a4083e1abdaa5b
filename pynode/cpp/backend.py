"""``compile="solve"``: the torch backend, with whole solves and their discrete adjoints in C++."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import math
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode.algorithms import Reversible
from pynode.autograd import single
from pynode.backends import Gradients, Query, Request
from pynode.compile_stats import COUNTS
from pynode.controllers import IController, PIController, PIDController, PredictiveController
from pynode.cpp.driver import (
    PYTHON,
    SUCCESS,
    PullBackCall,
    SolveCall,
    driver,
    method_of,
)
from pynode.cpp.program import FieldProgram, Program, program_of
from pynode.dependencies import Dependencies
from pynode.errors import CompileWarning, foreign_stays
from pynode.known_fields import dependencies_of, weakly
from pynode.native.backend import NativeBackend
from pynode.native.checkpoints import EveryStep, State
from pynode.native.methods import family_of, tableau_of
from pynode.native.record import NativeRecord, boundaries_of
from pynode.native.stores import store_for
from pynode.native.trajectory import Trajectory
from pynode.sensealg import CheckpointedAdjoint
from pynode.solution import Counts, ReturnCode, Solution
from pynode.solve_options import graphed
from pynode.strict import is_strict, warn
from pynode.transforms import numbers, transformed

#: Bytes that the stages of a solve may leave for its pullback; steps beyond them are repeated there.
BUDGET = 64 * 2**20


class CompiledStates(EveryStep):
    """The states at the starts of the steps, in C++'s memory until someone asks for one."""

    def __init__(self, solution: CompiledSolution) -> None:
        self._solution = solution

    @functools.cached_property
    def _at(self) -> list[int]:  # type: ignore[override]
        return list(range(self._solution.steps))

    @functools.cached_property
    def _states(self) -> list[State]:  # type: ignore[override]
        return [(row,) for row in self._solution.states().unbind()]


class CompiledSolution:
    """A solve in C++: what is needed to pull it back."""

    def __init__(self, field: FieldProgram, call: SolveCall) -> None:
        self.field = field
        self.driver = driver(field.dtype)
        self.number = call.solution
        self.steps = int(call.steps)
        self._states, self._method = call.states, call.method

    def __del__(self) -> None:
        if getattr(self, "number", None):
            self.driver.drop(self.number)

    def states(self) -> Tensor:
        """States at the starts of the steps, (N, n)."""
        n = self.field.call.n
        return copied(self._states, (self.steps, n), self.field.dtype)

    def pulled_back(self, cotangents: Tensor, counts: Counts) -> tuple[Tensor, Tensor, bool]:
        """Gradients of ``<values, cotangents>`` with respect to y0 (n,) and the parameter vector; whether they are
        finite."""
        field = self.field
        dy0 = torch.empty(field.call.n, dtype=field.dtype)
        dp = torch.zeros(max(field.size, 1), dtype=field.dtype)
        cotangents = cotangents.contiguous()
        call = PullBackCall(
            field=field.call,
            method=self._method,
            solution=self.number,
            cotangents=cotangents.data_ptr(),
            dy0=dy0.data_ptr(),
            dp=dp.data_ptr(),
            python=PYTHON,
        )
        self.driver.pull_back(ctypes.byref(call))
        counts.nfe += call.nfe
        counts.nvjp += call.nvjp
        counts.accepted += call.steps
        if call.ended != SUCCESS:
            raise MemoryError("no memory for the pullback of this solve")
        return dy0, dp, bool(call.finite)


def copied(address: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor with the numbers at an address."""
    found = torch.empty(shape, dtype=dtype)
    if found.numel():
        ctypes.memmove(found.data_ptr(), address, found.numel() * found.element_size())
    return found


class CompiledRecord(NativeRecord):
    """A solve in C++. ``inputs``: the tensors of the parameter vector."""

    def __init__(
        self, request: Request, trajectory: Trajectory, compiled: CompiledSolution, inputs: list[Tensor]
    ) -> None:
        super().__init__(request, trajectory)
        self.compiled, self.inputs = compiled, inputs

    def __reduce__(self) -> Any:
        raise foreign_stays()


class CompiledBackend(NativeBackend):
    """Whole solves in C++ where that is possible; everything else as the torch backend does it."""

    def repeated(self, f: Any, y0: Any, t: Any, question: tuple[Any, ...]) -> Solution | None:
        from pynode.cpp.lanes import repeated  # which needs this module

        return repeated(self, f, y0, t, question)

    def dependencies(self, problem: Any, counts: Counts, params: Any, allow_unused: bool, jump: float) -> Dependencies:
        return dependencies_of(problem, counts, params, allow_unused, jump)

    def solve(self, request: Request) -> NativeRecord:
        refusal = refusal_of(request)
        program = None if refusal else program_of(request)
        if program is not None and program.field is None:
            refusal = program.refusal
        if program is None or program.field is None:
            return super().solve(_anew(_fallen_back(request, refusal)))
        call, held = solve_call(request, program.field, program.inputs)
        found = run(request, program, program.field, call)
        if found is None:  # done again, so that what went wrong is explained in one place
            return super().solve(_anew(dataclasses.replace(request, compile=False)))
        from pynode.cpp.lanes import learn

        learn(found, program, call, held)
        return found

    def pull_back(self, record: NativeRecord, query: Query, cotangents: Tensor) -> Gradients:
        plain = query.times is record.request.times and not (query.derivative or query.time_gradient)
        if not isinstance(record, CompiledRecord) or not plain:
            return super().pull_back(record, query, cotangents)
        request, solution, inputs = record.request, record.compiled, record.inputs
        dependencies = request.dependencies
        assert dependencies is not None
        dy0, dp, _ = solution.pulled_back(single(cotangents, record), request.stats.backward)
        parts: list[Tensor | None] = [
            part.to(x.dtype) if used else None
            for part, x, used in zip(parted(dp, inputs), inputs, solution.field.used, strict=True)
        ]
        count = len(dependencies.arguments)
        return Gradients(dy0, None, None, parts[:count], parts[count : count + len(dependencies.parameters)])


def parted(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    """A vector in parts of the tensors' shapes."""
    return list(torch._utils._unflatten_dense_tensors(flat, like)) if like else []  # type: ignore[no-untyped-call]


def refusal_of(request: Request) -> str:
    """Why a solve cannot be done in C++; empty where it can."""
    problem, layout = request.problem, request.problem.layout
    sensealg = request.sensealg
    plain = not request.differentiable or isinstance(sensealg, CheckpointedAdjoint)
    reasons = {
        f"the state is on {layout.device}": layout.device.type != "cpu",
        "the state is complex": not layout.is_real,
        f"{request.algorithm.name} is no explicit Runge-Kutta method": family_of(request.algorithm) is not None,
        f"gradients are taken by {sensealg.name}": not plain,
        f"{sensealg.name} keeps few states": plain and type(store_for(request)) not in (EveryStep, type(None)),
        "the norm is one of your own": request.norm is not None,
        "an observer watches": request.observer is not None,
        "events end it": request.watch is not None,
        "f jumps at d_discontinuities": bool(request.jumps),
        "f is evaluated just inside the steps (perturb=True)": getattr(request.algorithm, "perturb", False),
        "the ends of the steps are saved": request.save_steps,
        f"the controller is {request.controller!r}": type(request.controller)
        not in (PIDController, PIController, IController, PredictiveController),
        "running costs are quantities of the steps": bool(problem.quantities),
        "autocast is on": problem.autocast.enabled,
        "it is inside a torch.func transform": transformed(),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


_WARNED: weakref.WeakKeyDictionary[Any, set[str]] = weakref.WeakKeyDictionary()


def _fallen_back(request: Request, refusal: str) -> Request:
    COUNTS.fallen_back[refusal] += 1
    instead: bool | str = "step" if _steps_compile(request) else False
    f = request.problem.f
    told = _WARNED.setdefault(f, set()) if weakly(f) else set()
    if refusal not in told or is_strict():
        warn(
            f"compile='solve' is not possible for this solve: {refusal}. It is done with compile={instead!r}, which is "
            "slower and gives the same result.",
            CompileWarning,
        )
        told.add(refusal)
    return dataclasses.replace(request, compile=instead)


def _steps_compile(request: Request) -> bool:
    """Whether the steps of a solve can be compiled, and are what stands between it and its gradient."""
    problem = request.problem
    if problem.autocast.enabled or problem.layout.device.type != "cpu" or transformed():
        return False
    if isinstance(request.algorithm, Reversible):
        return not request.differentiable or graphed(request.sensealg)
    # Under CheckpointedAdjoint what cannot be done in C++ is something that torch cannot compile either.
    others = graphed(request.sensealg) and not isinstance(request.sensealg, CheckpointedAdjoint)
    return others and family_of(request.algorithm) is None


def _anew(request: Request) -> Request:
    """With dependencies found by an evaluation of this solve, which the torch backend goes by."""
    known = request.dependencies
    if known is None or known.derivative is not None:
        return request
    with request.problem.autocast():
        found = Dependencies(request.problem, request.stats.forward, None, known.allow_unused)
    return dataclasses.replace(request, dependencies=found)


def solve_call(request: Request, field: FieldProgram, inputs: list[Tensor]) -> tuple[SolveCall, list[Any]]:
    """What C++ is told of a solve but the addresses of state, parameters and results; and what it points to."""
    problem, controller = request.problem, request.controller
    method, arrays = method_of(tableau_of(request.algorithm))
    tolerances = [
        torch.as_tensor(x, dtype=field.dtype).detach().reshape(-1).contiguous() for x in (request.rtol, request.atol)
    ]
    lengths = (ctypes.c_int64 * len(inputs))(*[x.numel() for x in inputs])
    start, end = problem.times[0], problem.times[-1]
    sign = math.copysign(1.0, end - start)
    stops = np.array(sorted((x for x in {*request.tstops} if 0 < (x - start) * sign < (end - start) * sign),
                            reverse=sign < 0), dtype=np.float64)  # fmt: skip
    times = np.array(request.times, dtype=np.float64)
    mesh = None
    if not request.algorithm.adaptive:
        mesh = np.array(numbers("t", boundaries_of(request, problem.t)), dtype=np.float64)
    keep = store_for(request) is not None or request.differentiable
    call = SolveCall(
        field=field.call,
        method=ctypes.pointer(method),
        measured=problem.norm_layout.size,
        pcoeff=controller.pcoeff,
        icoeff=controller.icoeff,
        dcoeff=controller.dcoeff,
        safety=controller.safety,
        factormin=controller.factormin,
        factormax=controller.factormax,
        deadband=controller.deadband if isinstance(controller, PredictiveController) else 0.0,
        t0=start,
        t1=end,
        lengths=ctypes.addressof(lengths),
        n_parts=len(lengths),
        rtol=tolerances[0].data_ptr(),
        atol=tolerances[1].data_ptr(),
        rtols=tolerances[0].numel(),
        atols=tolerances[1].numel(),
        dt0=math.nan if request.dt0 is None else request.dt0,
        dtmin=request.dtmin,
        dtmax=request.dtmax,
        force_dtmin=int(request.force_dtmin),
        max_steps=request.max_steps,
        stops=stops.ctypes.data,
        n_stops=len(stops),
        times=times.ctypes.data,
        n_times=len(times),
        mesh=None if mesh is None else mesh.ctypes.data,
        n_mesh=0 if mesh is None else len(mesh),
        keep=int(keep),
        budget=BUDGET if request.differentiable and not request.time_gradient else 0,
        python=PYTHON,
    )
    return call, [method, arrays, lengths, tolerances, stops, times, mesh]


def run(request: Request, program: Program, field: FieldProgram, call: SolveCall) -> CompiledRecord | None:
    """Solve; None where the solve did not reach its end."""
    problem, layout = request.problem, request.problem.layout
    y0 = problem.y0.detach().contiguous()
    parts = field.parts(program.inputs)
    values = torch.empty(len(request.times), layout.size, dtype=layout.dtype)
    call = SolveCall.from_buffer_copy(call)
    addresses = addressed(call, parts)
    call.y0, call.values = y0.data_ptr(), values.data_ptr()
    probed = request.dependencies
    derivative = None if probed is None else probed.derivative
    call.derivative = None if derivative is None else derivative.contiguous().data_ptr()
    driver(field.dtype).solve(ctypes.byref(call))
    del addresses
    if call.ended != SUCCESS:
        return None
    solution = CompiledSolution(field, call)
    counted(request.stats.forward, call)
    COUNTS.solves += 1
    steps = int(call.steps)
    boundaries = np.ctypeslib.as_array(ctypes.cast(call.boundaries, ctypes.POINTER(ctypes.c_double)), (steps + 1,))
    end = math.copysign(math.inf, problem.times[-1] - problem.times[0])
    store = CompiledStates(solution) if call.keep and store_for(request) is not None else None
    trajectory = Trajectory(problem.times[0], end, store, request.jumps, False)
    trajectory.mesh = boundaries.tolist()
    record = CompiledRecord(dataclasses.replace(request, compile=False), trajectory, solution, program.inputs)
    record.retcode, record.t = ReturnCode.Success, problem.times[-1]
    record.end = copied(call.end, (layout.size,), layout.dtype)
    record.values, record.saved = values, request.times
    record.size = call.size if request.algorithm.adaptive else None
    return record


def addressed(call: SolveCall, parts: list[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    """Point a call to its parameters; the result must live as long as the call."""
    addresses = (ctypes.c_void_p * len(parts))(*[x.data_ptr() for x in parts])
    call.parts = ctypes.addressof(addresses)
    return addresses


def counted(counts: Counts, call: SolveCall) -> None:
    """Add what a solve cost."""
    counts.nfe += call.nfe
    counts.accepted += call.accepted
    counts.rejected += call.rejected


BACKEND = CompiledBackend()
