"""A function's workspace: one array given by its caller, divided into places."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pynode.capture.fuse import Workspace
from pynode.capture.ir import Buffer, Statement

#: Places start at multiples of so many bytes: a line of the cache, and the longest vector.
_LINE = 64


class Arena:
    """Places in the array ``name`` of numbers of a precision; whole numbers and truth values lie behind them."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.name, self.dtype = name, dtype
        self._regions = {
            kind: Buffer(name + suffix, 0, kind, "region")
            for kind, suffix in ((dtype, ""), (torch.int64, "i"), (torch.bool, "b"))
        }

    def keep(self, buffers: Sequence[Buffer]) -> None:
        """Give each a place that nothing else uses."""
        for buffer in buffers:
            region = self._regions[buffer.dtype]
            buffer.home = (region, region.size)
            line = _LINE // buffer.dtype.itemsize
            region.size += -(-buffer.size // line) * line

    def share(self, statements: Sequence[Statement]) -> None:
        """Places for a function's workspace, each for what does not live at the same time."""
        workspace = Workspace()
        workspace.place(statements)
        self.keep(workspace.slots)

    def _start(self, dtype: torch.dtype) -> int:
        """Bytes before a region."""
        total = 0
        for kind, region in self._regions.items():
            if kind == dtype:
                break
            total += region.size * kind.itemsize
        return total

    @property
    def size(self) -> int:
        """Its length, in numbers of the precision."""
        last = torch.bool
        return (self._start(last) + self._regions[last].size) // self.dtype.itemsize

    def pointers(self) -> list[str]:
        """Declarations of the regions behind the first."""
        kinds = {torch.int64: "int64_t", torch.bool: "bool"}
        return [
            f"{kind}* const {region.name} = reinterpret_cast<{kind}*>({self.name} + "
            f"{self._start(dtype) // self.dtype.itemsize});"
            for dtype, kind in kinds.items()
            if (region := self._regions[dtype]).size
        ]
