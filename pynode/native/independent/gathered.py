"""States of rows put together from several stretches; what no stretch reached is NaN, and has no gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode.errors import GradientError, explain
from pynode.native.independent.record import Indices


def unreached(row: int, place: str, count: int) -> GradientError:
    """The error where a gradient came for a state at ``place`` of a row that never got there."""
    return GradientError(
        explain(
            f"a gradient came for the state of row {row} at {place}, which is NaN because the row "
            f"failed or met an event before it, or has fewer times ({count} such state(s))",
            "a loss of the states that there are",
            "select them: ys[torch.isfinite(ys)], or by sol.retcodes",
        )
    )


#: Places ``i * rows + row`` (m,), none of them twice, and the states (m, n) there.
Piece = tuple[Indices, Tensor]


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: int, count: int, name: str, places: Tensor, states: Tensor) -> Tensor:
        ctx.rows, ctx.name = rows, name
        ctx.save_for_backward(places)
        whole = states.new_full((count * rows, states.shape[1]), float("nan"))
        return whole.index_copy_(0, places, states)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[None, None, None, None, Tensor]:
        (places,) = ctx.saved_tensors
        missing = cotangent.detach().ne(0).any(dim=1).index_fill_(0, places, False)
        if bool(missing.any()):
            place, row = divmod(int(missing.nonzero()[0]), ctx.rows)
            raise unreached(row, f"{ctx.name} {place}", int(missing.sum()))
        return None, None, None, None, cotangent.index_select(0, places)


def gathered(pieces: list[Piece], count: int, rows: int, name: str, like: Tensor) -> Tensor:
    """States (count, rows, n) from pieces of them.

    Parameters
    ----------
    pieces : list of Piece
    count, rows : int
    name : str
        Of what ``i`` counts, for the error where a gradient comes for a state that is in no piece.
    like : Tensor (B, n)
        Of the states' dtype, device and size; where there is no piece, what a gradient would go to.
    """
    pieces = pieces or [(np.zeros(0, dtype=np.int64), like[:0])]
    states = torch.cat([state for _, state in pieces])
    places = torch.cat([torch.from_numpy(place) for place, _ in pieces]).to(states.device)
    whole: Tensor = _Gathered.apply(rows, count, name, places, states)  # type: ignore[no-untyped-call]
    return whole.view(count, rows, states.shape[1])
