"""A field of the zoo, compiled from C++, evaluated at points."""

from __future__ import annotations

import torch
from fields import Made
from julia_process import Point, Values
from torch import Tensor

from pynode.capture.capturing import capture
from pynode.cpp.compile import FLAGS, CompiledField, constants_table
from pynode.cpp.emit import Program, emit
from pynode.dependencies import Dependencies
from pynode.problem import ODEProblem
from pynode.solution import Counts

#: Compiled in less time, with the same semantics.
QUICK = tuple("-O1" if flag == "-O3" else flag for flag in FLAGS)


def program_of(made: Made) -> Program:
    problem = ODEProblem(made.f, made.y0, list(made.times), made.args)
    return emit(capture(problem, Dependencies(problem, Counts(), None)))


class Evaluator:
    """Calls a program's functions on tensors; workspace and results are NaN before each call."""

    def __init__(self, program: Program, flags: tuple[str, ...] = QUICK) -> None:
        self.program = program
        self.field = CompiledField(program, flags)
        self._constants = program.prepared()
        self.table = constants_table(self._constants)

    def blank(self, size: int) -> Tensor:
        return torch.full((size,), torch.nan, dtype=self.program.dtype)

    def f(self, point: Point) -> Tensor:
        du, w = self.blank(self.program.size), self.blank(self.program.f_work)
        self.field.f(*self._addresses(du, point.u, point.p), self.table, point.t, w.data_ptr())
        return du

    def products(self, point: Point, g: Tensor) -> tuple[Tensor, Tensor]:
        """``f`` and the vector-Jacobian product, after what is added to ``g``."""
        program = self.program
        du, da = self.blank(program.size), self.blank(program.size)
        w, s = self.blank(program.joint_work), self.blank(program.backward_work)
        self.field.forward(*self._addresses(du, point.u, point.p), self.table, point.t, w.data_ptr())
        addresses = self._addresses(da, g, point.a, point.u, point.p)
        self.field.backward(*addresses, self.table, point.t, w.data_ptr(), s.data_ptr())
        return du, da

    def values(self, point: Point) -> Values:
        program = self.program
        f = self.f(point)
        g = torch.zeros(program.parameters_size, dtype=program.dtype)
        du, da = self.products(point, g)
        assert torch.allclose(du, f, rtol=64 * torch.finfo(f.dtype).eps, atol=0.0) or torch.equal(du, f)
        w = self.blank(program.time_work)
        number = self.field.vjp_t(*self._addresses(point.a, point.u, point.p), self.table, point.t, w.data_ptr())
        dT = self.blank(program.size)
        self.field.tgrad(*self._addresses(dT, point.u, point.p), self.table, point.t, w.data_ptr())
        return Values(f, da, g, torch.tensor(number, dtype=program.dtype), dT)

    @staticmethod
    def _addresses(*tensors: Tensor) -> list[int]:
        assert all(x.is_contiguous() for x in tensors)
        return [x.data_ptr() for x in tensors]
