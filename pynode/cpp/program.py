"""A field as a compiled C++ program: found once for each field and signature, and called with new numbers."""

from __future__ import annotations

import ctypes
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
from pynode.known_fields import Entry, program_for


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
    made, inputs, entry = program_for(request.problem, request.dependencies, "cpp", _made)
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
