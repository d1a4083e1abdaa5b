"""The weights of a solve: what is computed from it later holds only while they are what they were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from pynode.autocast import Autocasted
from pynode.errors import FieldError, InputError, explain

if TYPE_CHECKING:
    from pynode.backends import Request


class ReadParameters:
    """Tensors that a solve reads, and how often each had been written into by then.

    Attributes
    ----------
    versions : list of int
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = [x for x in tensors if not x.is_inference()]  # which do not count
        self.versions = [x._version for x in self._tensors]

    @classmethod
    def of(cls, request: Request) -> ReadParameters:
        """As far as they are known: those a gradient is owed to, else a module's own."""
        if request.dependencies is not None:
            return cls([*request.dependencies.arguments, *request.dependencies.parameters])
        f = request.problem.f
        f = f.f if isinstance(f, Autocasted) else f
        module = f if isinstance(f, nn.Module) else getattr(f, "__self__", None)
        return cls(list(module.parameters()) if isinstance(module, nn.Module) else [])

    def __getstate__(self) -> tuple[list[Tensor], list[bool]]:
        pairs = zip(self._tensors, self.versions, strict=True)
        return self._tensors, [x._version != version for x, version in pairs]

    def __setstate__(self, state: tuple[list[Tensor], list[bool]]) -> None:
        # Copies count anew; one that had been written into stays so.
        self._tensors, changed = state
        self.versions = [x._version - was for x, was in zip(self._tensors, changed, strict=True)]

    def changed(self) -> Tensor | None:
        """One that was written into since."""
        pairs = zip(self._tensors, self.versions, strict=True)
        return next((x for x, version in pairs if x._version != version), None)

    def check_solved(self) -> None:
        """Refuse the result of a solve whose steps were not all of the same field. What a field writes into its
        buffers is its own affair (statistics of batches).

        Raises
        ------
        FieldError
        """
        x = self.changed()
        if x is not None:
            raise FieldError(
                explain(
                    f"a parameter of shape {tuple(x.shape)} was modified in place during the solve",
                    "f to leave its parameters alone: no gradient belongs to steps of different fields",
                    "change parameters between solves only (an optimizer in another thread does it at any time), and "
                    "keep what f itself changes in buffers, or solve under torch.no_grad()",
                )
            )

    def check(self) -> None:
        """Refuse dense output of a field that is another one now.

        Raises
        ------
        InputError
        """
        x = self.changed()
        if x is not None:
            raise InputError(
                explain(
                    f"sol(t) was called after a parameter of shape {tuple(x.shape)} had been modified in place: "
                    "dense output is computed from f, which is another one now",
                    "f as it was in the solve",
                    "call sol(t) before optimizer.step(), put the times into t, or solve again",
                )
            )
