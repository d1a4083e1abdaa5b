"""The route for fields that cannot be captured: Julia calls torch back.

Julia writes state and cotangent into buffers that torch tensors lie over and reads the results from others; a call
carries the time and nothing else. Whatever Python raises ends the solve and comes out of it unchanged.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pynode.dependencies import Dependencies
from pynode.problem import ODEProblem
from pynode.solution import Counts

if TYPE_CHECKING:
    from pynode.julia.runtime import Julia

_TIMED = ctypes.CFUNCTYPE(None, ctypes.c_double)
_PRODUCTS = ctypes.CFUNCTYPE(None, ctypes.c_double, ctypes.c_int)

#: What Julia asks of a product, as in juliaenv/src/callbacks.jl.
_STATE, _PARAMETERS, _BOTH = 1, 2, 3


class CallbackRoute:
    """A field that Julia evaluates by calling Python.

    Parameters
    ----------
    julia : Julia
    problem : ODEProblem
    dependencies : Dependencies or None
        What the parameter vector consists of.

    Attributes
    ----------
    number : int
        Julia's number of the field.
    inputs : list of Tensor
        The tensors of the parameter vector.
    used : list of bool
        Which of them some product has reached.
    """

    captured = False

    def __init__(self, julia: Julia, problem: ODEProblem, dependencies: Dependencies | None) -> None:
        layout = problem.layout
        self._julia, self._problem, self._dependencies = julia, problem, dependencies
        self.inputs = [] if dependencies is None else [*dependencies.arguments, *dependencies.parameters]
        self.used = [False] * len(self.inputs)
        self._aliases = [] if dependencies is None else [x.detach().requires_grad_() for x in dependencies.arguments]
        self._sizes = [real_size(x) for x in self.inputs]
        size = sum(self._sizes)
        self._error: BaseException | None = None

        def buffer(n: int) -> Tensor:
            return torch.zeros(n, dtype=layout.dtype)

        self._u, self._cotangent, self._du, self._du_cotangent = (buffer(layout.size) for _ in range(4))
        self._gradient = buffer(size)
        self._status = torch.zeros(1, dtype=torch.int32)
        # Kept as long as Julia may call them.
        self._functions = (
            _TIMED(self._guarded(self._value)),
            _PRODUCTS(self._guarded(self._products)),
            _TIMED(self._guarded(self._slope)),
        )
        self._field = problem.field(Counts())
        if self._aliases:
            self._field = self._field.with_args(problem.arguments.replaced(self._aliases))
        vectors = (self._u, self._cotangent, self._du, self._du_cotangent, self._gradient, self._status)
        addresses = [ctypes.cast(f, ctypes.c_void_p).value or 0 for f in self._functions]
        addresses += [x.data_ptr() for x in vectors]
        table = (ctypes.c_void_p * len(addresses))(*addresses)
        double = int(layout.dtype == torch.float64)
        self.number = int(julia.call("callback", ctypes.addressof(table), double, layout.size, size).solution)

    def __del__(self) -> None:
        number = getattr(self, "number", None)
        if number is not None:
            self._julia.drop(number)

    def prepare(self) -> None:
        """Nothing is kept in Julia that could be out of date."""

    def vector(self) -> Tensor:
        """The parameter vector; torch evaluates with the tensors themselves, so that its values do not count."""
        return self._gradient

    def failed(self) -> BaseException:
        """What Python raised."""
        error, self._error = self._error, None
        # A signal may arrive before a callback can catch anything; all else is stored.
        return KeyboardInterrupt() if error is None else error

    def _guarded(self, function: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any) -> None:
            try:
                function(*args)
                self._status[0] = 1
            except BaseException as error:
                self._error = error

        return call

    def _value(self, t: float) -> None:
        with torch.no_grad(), self._problem.autocast():
            self._du.copy_(self._field(self._field.time(t), self._u.clone()))

    def _products(self, t: float, which: int) -> None:
        with torch.enable_grad(), self._problem.autocast():
            u = self._u.clone().requires_grad_()
            out = self._field(self._field.time(t), u)
            wanted: list[Tensor] = []
            if which & _STATE:
                wanted.append(u)
            if which & _PARAMETERS:
                parameters = [] if self._dependencies is None else self._dependencies.parameters
                wanted += [*self._aliases, *parameters]
            if self._dependencies is not None:
                self._dependencies.check_reached([out], [u, *self._aliases])
            if not out.requires_grad or not wanted:
                found: list[Tensor | None] = [None] * len(wanted)
            else:
                found = list(torch.autograd.grad(out, wanted, self._cotangent.clone(), allow_unused=True))
        with torch.no_grad():
            if which & _STATE:
                state = found.pop(0)
                self._du_cotangent.zero_() if state is None else self._du_cotangent.copy_(state)
            if which & _PARAMETERS:
                for index, (part, gradient) in enumerate(
                    zip(torch.split(self._gradient, self._sizes), found, strict=True)
                ):
                    if gradient is None:
                        part.zero_()
                    else:
                        part.copy_(as_real(gradient))
                        self.used[index] = True

    def _slope(self, t: float) -> None:
        """The partial derivative by time, forward through two pullbacks."""
        with torch.enable_grad(), self._problem.autocast():
            time = self._field.time(t).requires_grad_()
            cotangent = torch.ones_like(self._u, requires_grad=True)
            out = self._field(time, self._u.clone())
            if not out.requires_grad:
                self._du.zero_()
                return
            (product,) = torch.autograd.grad(out, time, cotangent, create_graph=True, allow_unused=True)
            if product is None or not product.requires_grad:
                self._du.zero_()
                return
            (slope,) = torch.autograd.grad(product, cotangent, allow_unused=True)
        self._du.zero_() if slope is None else self._du.copy_(slope)


def real_size(x: Tensor) -> int:
    """How many real numbers a tensor holds."""
    return x.numel() * (2 if x.is_complex() else 1)


def as_real(x: Tensor) -> Tensor:
    """A tensor as a flat vector of real numbers."""
    return (torch.view_as_real(x.resolve_conj()) if x.is_complex() else x).reshape(-1)


def shaped_like(part: Tensor, x: Tensor) -> Tensor:
    """A flat vector of real numbers in the form of ``x``; a view of it where its dtype is that of ``x``."""
    if x.is_complex():
        return torch.view_as_complex(part.reshape(*x.shape, 2).to(x.dtype.to_real()).contiguous())
    return part.view(x.shape) if part.dtype == x.dtype else part.view(x.shape).to(x.dtype)
