"""A field as a compiled C++ program: found once for each field and signature, and called with new numbers."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pynode.backends import Request
from pynode.capture.capturing import NotCapturable, capture
from pynode.cpp.compile import CompiledField, constants_table
from pynode.cpp.driver import FieldCall
from pynode.cpp.emit import emit
from pynode.dependencies import Dependencies
from pynode.errors import GradientError
from pynode.known_fields import Entry, dependencies_of
from pynode.solution import Counts

_TRACING = threading.RLock()  # torch's tracers patch torch itself


@dataclass
class FieldProgram:
    """A field in C++.

    Attributes
    ----------
    call : FieldCall
        What the solver is told of it.
    used : list of bool
        Which tensors of the parameter vector the field depends on.
    size : int
        Length of the parameter vector.
    held : list
        What ``call`` points to.
    """

    call: FieldCall
    used: list[bool]
    dtype: torch.dtype
    size: int
    held: list[Any]

    def parts(self, inputs: list[Tensor]) -> list[Tensor]:
        """The tensors of the parameter vector as C++ copies them: of the state's precision, in order."""
        return [
            x if x.dtype == self.dtype and x.is_contiguous() else x.detach().to(self.dtype).contiguous() for x in inputs
        ]


@dataclass
class Program:
    """A field's program for a solve, with the tensors of its parameter vector; or why there is none."""

    field: FieldProgram | None
    inputs: list[Tensor]
    entry: Entry | None
    refusal: str = ""


def program_of(request: Request) -> Program:
    """The program of a request's field."""
    problem = request.problem
    dependencies = request.dependencies
    if dependencies is None and not torch.is_inference_mode_enabled():
        # That of a solve with gradients, so that evaluating a model while training it compiles no other. Where that
        # cannot be, all tensors are constants: nothing is differentiated here.
        with problem.autocast(), contextlib.suppress(GradientError):
            dependencies = dependencies_of(problem, Counts(), None, True, 0.0)
    data = problem.arguments.values(problem.layout.dtype, problem.layout.device)
    inputs = data if dependencies is None else [*dependencies.arguments, *dependencies.parameters, *data]
    entry: Entry | None = None if dependencies is None else dependencies.known
    made: FieldProgram | str | None = None if entry is None else entry.programs.get("cpp")
    if made is None:
        with _TRACING:
            made = (entry and entry.programs.get("cpp")) or _made(problem, dependencies)
            if entry is not None:
                entry.programs["cpp"] = made
    if isinstance(made, str):
        return Program(None, inputs, entry, made)
    return Program(made, inputs, entry)


def _made(problem: Any, dependencies: Dependencies | None) -> FieldProgram | str:
    try:
        captured = capture(problem, dependencies, data=True)
        program = emit(captured)
    except NotCapturable as refusal:
        return str(refusal).partition(". Expected: ")[0]  # what to do for Julia is not what to do here
    field = CompiledField(program)
    held = program.prepared()
    pointers = constants_table(held)

    def address(function: Any) -> int | None:
        return ctypes.cast(function, ctypes.c_void_p).value

    call = FieldCall(
        n=program.size,
        parameters=program.parameters_size,
        f_work=program.f_work,
        joint_work=program.joint_work,
        backward_work=program.backward_work,
        f=address(field.f),
        forward=address(field.forward),
        backward=address(field.backward),
        constants=ctypes.addressof(pointers),
    )
    outputs: Any = captured.graphs["vjp_p"].graph.output_node().args[0]
    used = [x is not None for x in outputs]
    return FieldProgram(call, used, captured.dtype, captured.parameters_size, [field, held, pointers])
