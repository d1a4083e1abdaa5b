"""Passes over a function's statements: loops merged, workspace shared by what does not live at the same time."""

from __future__ import annotations

import torch

from pynode.julia.ir import Buffer, Statement


def arranged(statements: list[Statement], workspace: dict[tuple[str, int], int]) -> list[Statement]:
    """The statements with their workspace named; ``workspace`` collects its arrays' sizes."""
    seen: dict[int, Buffer] = {}
    from pynode.julia.accesses import reads, writes

    for statement in statements:
        for view in [*reads(statement), *writes(statement)]:
            buffer, _ = view.buffer.resolved()
            if buffer.kind == "work" and id(buffer) not in seen:
                seen[id(buffer)] = buffer
                buffer.name = {torch.bool: "b", torch.int64: "i"}.get(buffer.dtype, "w") + str(len(workspace) + 1)
                workspace[(buffer.name, 0)] = buffer.size
    return statements
