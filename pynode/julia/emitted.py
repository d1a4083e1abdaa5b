"""The route for fields that were captured: an emitted program, evaluated once in Julia, and the values it needs."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pynode.errors import GradientError, explain

if TYPE_CHECKING:
    from pynode.julia.runtime import Julia


class LoadedProgram:
    """A program in Julia. Its constants are those that were last uploaded."""

    def __init__(self, julia: Julia, text: str, dtype: torch.dtype, size: int, parameters: int, device: int) -> None:
        self._julia, self.device, self.dtype = julia, device, dtype
        raw = text.encode()
        buffer = ctypes.create_string_buffer(raw)
        double = int(dtype == torch.float64)
        reply = julia.call("program", ctypes.addressof(buffer), len(raw), double, size, parameters, device)
        self.number = int(reply.solution)
        self._loaded: list[tuple[Tensor, int]] = []

    def __del__(self) -> None:
        number = getattr(self, "number", None)
        if number is not None:
            self._julia.drop(number)

    def upload(self, constants: list[Tensor]) -> None:
        """Make ``constants`` the program's, unless they are already."""
        loaded = self._loaded
        if len(loaded) == len(constants) and all(
            x is y and version == x._version for (x, version), y in zip(loaded, constants, strict=True)
        ):
            return
        for index, constant in enumerate(constants):
            whole = not (constant.is_floating_point() or constant.dtype == torch.bool)
            held = constant.detach().to(torch.int64 if whole else constant.dtype).contiguous()
            self._julia.call("constant", self.number, index, held.data_ptr(), self.device)
        self._loaded = [(x, x._version) for x in constants]


class EmittedRoute:
    """A field that Julia evaluates by itself.

    Attributes
    ----------
    number : int
        Julia's number of the field.
    inputs : list of Tensor
        The tensors of the parameter vector.
    used : list of bool
        Which of them the field depends on.
    """

    captured = True

    def __init__(self, program: LoadedProgram, constants: list[Tensor], inputs: list[Tensor], used: list[bool]) -> None:
        self._program, self.inputs, self.used = program, inputs, used
        self.number = program.number
        #: What is known of the field, where that is kept.
        self.entry: Any = None
        self._constants = constants
        self._versions = [x._version for x in constants]

    def again(self) -> EmittedRoute:
        """The same route for another solve, with constants as they are now."""
        return EmittedRoute(self._program, self._constants, self.inputs, self.used) if self._constants else self

    def prepare(self) -> None:
        """Give the program the values it had in this solve."""
        if not self._constants:
            return
        if any(x._version != version for x, version in zip(self._constants, self._versions, strict=True)):
            raise GradientError(
                explain(
                    "a tensor that f uses was modified in place between the solve and its backward pass",
                    "what f uses as it was in the solve",
                    "call backward() before changing it, or clone what is changed",
                )
            )
        self._program.upload(self._constants)

    def vector(self) -> Tensor:
        """The parameter vector: a copy of the tensors it consists of."""
        if torch.is_grad_enabled():
            with torch.no_grad():
                return self.vector()
        # A number beside tensors may be of another precision.
        inputs = [x if x.dtype == self._program.dtype else x.to(self._program.dtype) for x in self.inputs]
        if len(inputs) > 1:
            flat: Tensor = torch._utils._flatten_dense_tensors(inputs)  # type: ignore[no-untyped-call]
            return flat
        return inputs[0].flatten().clone() if inputs else torch.zeros(1)

    def failed(self) -> BaseException:
        """Python is not called on this route."""
        return KeyboardInterrupt()
