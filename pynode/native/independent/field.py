"""The user's field on the matrix of the rows that are still running."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.errors import FieldError, InputError, explain
from pynode.evaluations import changed_input, located, versions
from pynode.layout import leaves_of, rebuild
from pynode.native.independent.layout import RowLayout
from pynode.solution import Counts


class RowArguments:
    """``args``, some of whose leaves have one part for every row.

    Parameters
    ----------
    args : tuple
        Without its ``PerSample`` wrappers.
    per_row : sequence of bool
        For each of its leaves, whether it was in one.
    batch : int
        Rows of the state.
    """

    def __init__(self, args: tuple[Any, ...], per_row: Sequence[bool], batch: int) -> None:
        self.args = args
        found = list(leaves_of(args, "args"))
        self.leaves = [leaf for _, leaf in found]
        self.per_row = list(per_row)
        for (path, leaf), own in zip(found, per_row, strict=True):
            if own and not (isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == batch):
                came = f"shape {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else f"a {type(leaf).__name__}"
                raise InputError(
                    explain(
                        f"{path} in PerSample(...) is {came}",
                        f"a tensor with one part for each of the {batch} rows, ({batch}, ...)",
                        "expand it, or pass what is the same for all rows without PerSample",
                    )
                )
        self.any_per_row = any(per_row)
        #: Of the differentiable leaves, in order: places, and whether each has one part a row.
        self.moving = [i for i, x in enumerate(self.leaves) if isinstance(x, Tensor) and x.requires_grad]
        self.moving_per_row = [self.per_row[i] for i in self.moving]

    def of(self, rows: Tensor) -> tuple[Any, ...]:
        """``args`` for some rows, given by their indices (b,)."""
        if not self.any_per_row:
            return self.args
        leaves = [x.index_select(0, rows) if own else x for x, own in zip(self.leaves, self.per_row, strict=True)]
        return self._rebuilt(leaves)

    def detached(self, rows: Tensor, shared: Sequence[Tensor]) -> tuple[tuple[Any, ...], list[Tensor]]:
        """``args`` for some rows with the differentiable leaves replaced by leaves of a tape of their own: those that
        all rows share by ``shared``, the others by fresh ones. Both in the order of ``moving``."""
        leaves, own = list(self.leaves), []
        rest = iter(shared)
        for i, (leaf, per_row) in enumerate(zip(self.leaves, self.per_row, strict=True)):
            if per_row:
                leaves[i] = leaf.detach().index_select(0, rows)
            if i in self.moving:
                leaves[i] = leaves[i].requires_grad_() if per_row else next(rest)
                own.append(leaves[i])
        return self._rebuilt(leaves), own

    def _rebuilt(self, leaves: list[Any]) -> tuple[Any, ...]:
        rebuilt: tuple[Any, ...] = rebuild(self.args, iter(leaves))
        return rebuilt


class RowField:
    """``f(t, y, *args)`` on matrices (b, n), counted where it is called.

    ``f`` receives ``t`` in the shape (b, 1, ..., 1) that broadcasts against a state of one tensor, and in the shape
    (b,) beside a tree; ``y`` with leading dimension b.
    """

    def __init__(self, f: Callable[..., Any], args: tuple[Any, ...], layout: RowLayout, counts: Counts) -> None:
        self.f, self.args, self.layout, self.counts = f, args, layout, counts

    def __call__(self, t: Tensor, flat: Tensor) -> Tensor:
        """Derivatives (b, n) at times (b, 1, ..., 1) in the state's dtype, as :meth:`time` makes them."""
        self.counts.nfe += 1
        layout = self.layout
        before = versions(flat)
        try:
            derivative = layout.pack_derivative(self.f(t, layout.unpack(flat), *self.args), flat.shape[0])
            if versions(flat) != before:
                raise changed_input()
        except FieldError as error:
            located(error, t)
            raise
        return derivative

    def with_args(self, args: tuple[Any, ...]) -> RowField:
        """The same field with other arguments."""
        return RowField(self.f, args, self.layout, self.counts)

    def time(self, t: Any) -> Tensor:
        """Times (b,), an array or a tensor, as ``f`` receives them."""
        times: Tensor = torch.as_tensor(t).to(device=self.layout.device, dtype=self.layout.dtype)
        return times.reshape(-1, *self.layout.time_shape)
