"""Exponential time differencing for ``dy/dt = L y + N(t, y)``: Cox and Matthews' method of order 4.

Functional operations only, so that the same stepper serves with and without autograd's tape.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.errors import FieldError, InputError, UnsupportedError, explain
from pynode.evaluations import packed
from pynode.native.checkpoints import State
from pynode.native.dense import Piece
from pynode.native.error_norm import ErrorNorm
from pynode.native.hermite import between
from pynode.problem import Field, nudged
from pynode.running_cost import Costed
from pynode.transforms import any_true

#: Numbers of all matrices that are kept for lengths of steps that come again.
_KEPT = 2**24


def phi_functions(matrix: Tensor, count: int) -> list[Tensor]:
    """``phi_0 = exp(A), phi_1, .., phi_count`` of a matrix (n, n), where ``phi_(k+1)(A) A = phi_k(A) - 1 / k!``.

    The first row of blocks of the exponential of a block matrix (Saad 1992; Sidje 1998, theorem 1); differentiable.
    """
    n = len(matrix)
    size = (count + 1) * n
    shift = torch.diag(torch.ones(size - n, dtype=matrix.dtype, device=matrix.device), n)
    shift = shift + torch.nn.functional.pad(matrix, (0, size - n, 0, size - n))
    return list(torch.linalg.matrix_exp(shift)[:n].split(n, 1))


class ETDRK4:
    """See :class:`pynode.native.stepper.Stepper`.

    Parameters
    ----------
    field : Field
    interpolation : "hermite" or "linear"
    taped : bool
        Matrices are made anew for every step, as each stands on a tape of its own.

    Raises
    ------
    InputError
        If the field has no linear and nonlinear part.
    UnsupportedError
        With a running cost.
    """

    order = error_order = 4

    def __init__(self, field: Field, interpolation: str, taped: bool) -> None:
        self.field, self._taped = field, taped
        self._linear = interpolation == "linear"
        f: Any = field.f
        if isinstance(f, Costed):
            raise UnsupportedError(
                explain(
                    "a running cost with ETDRK4",
                    "a state of the split field alone",
                    "add the cost to the state yourself, or take another algorithm",
                )
            )
        self._given, self._nonlinear = linear, nonlinear = getattr(f, "linear", None), getattr(f, "nonlinear", None)
        if not (isinstance(linear, Tensor) or callable(linear)) or not callable(nonlinear):
            raise InputError(
                explain(
                    f"f is a {type(f).__name__} without linear and nonlinear parts",
                    "for ETDRK4 a field with a matrix (or function) linear and a function nonlinear(t, y, *args)",
                    "give it both, or take a method for all stiff fields, such as KenCarp4()",
                )
            )
        self._matrices: dict[float, tuple[Tensor, ...]] = {}
        self._nonlinear_end: Tensor | None = None

    def begin(self, t: Any, y: Tensor, derivative: Tensor | None = None, jump: float = 0.0) -> None:
        self._enter(t, y, jump)
        if derivative is None:
            time = self.field.time(t)
            derivative = self.field.check_pure(nudged(time, jump) if jump else time, y)
        slope = self._slope
        bound = 1e3 * torch.finfo(y.dtype).eps * torch.maximum(slope.abs().max(), derivative.abs().max())
        if any_true((slope - derivative).detach().abs().max() > bound):
            raise FieldError(
                explain(
                    "f(t, y) is not linear y + nonlinear(t, y)",
                    "a field whose two parts add up to itself",
                    "let forward return (linear @ y) + nonlinear(t, y), the state flattened for the product",
                )
            )

    def resume(self, t: Any, y: Tensor, carried: State) -> None:
        self._enter(t, y)

    def _enter(self, t: Any, y: Tensor, jump: float = 0.0) -> None:
        self._matrix = self._read()
        self._rate = self._evaluate(t, y, jump)
        self._slope = self.derivative_at(y, self._rate)

    def carried(self, end: bool = False) -> State:
        return ()

    def derivative(self) -> Tensor:
        return self._slope

    def attempt(self, t: Any, h: Any, y: Tensor, jump: float = 0.0, end: Any = None) -> Tensor:
        end = t + h if end is None else end
        whole, half, first, second, third, middle = self._functions(h)
        n0, mid = self._rate, t + 0.5 * h
        base = half @ y
        a = base + h * (middle @ n0)
        na = self._evaluate(mid, a)
        b = base + h * (middle @ na)
        nb = self._evaluate(mid, b)
        c = half @ a + h * (middle @ (2 * nb - n0))
        nc = self._evaluate(end, c, jump)
        y1: Tensor = whole @ y + h * (first @ n0 + second @ (na + nb) + third @ nc)
        self._nonlinear_end = None
        self._step = (t, h, end, y, y1)
        return y1

    def error_ratio(self, measure: ErrorNorm) -> float:
        raise AssertionError("fixed steps have no error estimate")

    def interpolate(self, thetas: Sequence[Any], derivative: bool = False) -> Tensor:
        _, h, end, y, y1 = self._step
        if self._linear:
            return between(thetas, h, y, y1, None, derivative)
        if self._nonlinear_end is None:
            self._nonlinear_end = self._evaluate(end, y1)
        return between(thetas, h, y, y1, (self._slope, self.derivative_at(y1, self._nonlinear_end)), derivative)

    def piece(self) -> Piece:
        kept, t, h = copy.copy(self), float(self._step[0]), float(self._step[1])
        return lambda times, field: kept.interpolate([(x - t) / h for x in times]).detach()

    def advance(self, t: Any, y: Tensor) -> None:
        self._rate = self._evaluate(t, y) if self._nonlinear_end is None else self._nonlinear_end
        self._slope = self.derivative_at(y, self._rate)

    def derivative_at(self, y: Tensor, rate: Tensor) -> Tensor:
        """dy/dt from the nonlinear part."""
        return self._matrix @ y + rate

    def _read(self) -> Tensor:
        linear: Any = self._given
        matrix = linear if isinstance(linear, Tensor) else linear(*self.field.args)
        layout = self.field.layout
        wanted = (layout.size, layout.size)
        if not isinstance(matrix, Tensor) or matrix.shape != wanted or matrix.dtype != layout.dtype:
            what = f"of shape {tuple(matrix.shape)}, {matrix.dtype}" if isinstance(matrix, Tensor) else repr(matrix)
            raise InputError(
                explain(
                    f"the linear part is {what}",
                    f"a matrix of shape {wanted}, {layout.dtype}, for the flattened state",
                    "give linear the state's dtype and size",
                )
            )
        return matrix

    def _functions(self, h: Any) -> tuple[Tensor, ...]:
        key = None if self._taped or isinstance(h, Tensor) else h
        if key is not None and key in self._matrices:
            return self._matrices[key]
        whole, one, two, three = phi_functions(h * self._matrix, 3)
        half, middle = phi_functions(0.5 * h * self._matrix, 1)
        first, second, third = one - 3 * two + 4 * three, 2 * two - 4 * three, 4 * three - two
        found = (whole, half, first, second, third, 0.5 * middle)
        if key is not None:
            if len(self._matrices) * 6 * whole.numel() > _KEPT:
                self._matrices.clear()
            self._matrices[key] = found
        return found

    def _evaluate(self, t: Any, y: Tensor, jump: float = 0.0) -> Tensor:
        field = self.field
        field.counts.nfe += 1
        time = field.time(t)
        time = nudged(time, jump) if jump else time
        assert self._nonlinear is not None
        rate = field.watched(packed(field.layout, time, self._nonlinear(time, field.layout.unpack(y), *field.args)))
        # Kept beyond the next evaluation, while f may write its next result into the same memory.
        return rate if rate.requires_grad else rate.clone()

    _matrix: Tensor
    _rate: Tensor
    _slope: Tensor
    _step: tuple[Any, Any, Any, Tensor, Tensor]
