"""How a batch of states (a tensor, or a tree of them, with leading dimension B) lies in a matrix (B, n), and back."""

from __future__ import annotations

import torch
from torch import Tensor

from pynode.errors import FieldError, InputError, explain
from pynode.layout import Layout, Tree, _branches, leaves_of, rebuild


class RowLayout:
    """The correspondence of a tree of tensors (B, ...) and a real matrix (B, n).

    Parameters
    ----------
    tree : tensor or tree of tensors
        Leaves (B, ...), all with the same B, of one precision and device.

    Attributes
    ----------
    row : Layout
        Of one row.
    batch, size : int
        B and n.

    Raises
    ------
    InputError
        For a leaf without a leading dimension, or with another B than the first one.
    """

    def __init__(self, tree: Tree) -> None:
        found = list(leaves_of(tree))
        for path, leaf in found:
            if isinstance(leaf, Tensor) and leaf.ndim == 0:
                raise InputError(
                    explain(
                        f"{path} has shape () under batching='independent'",
                        "a leading dimension of rows in every leaf of the state",
                        "write y0[None], or use batching='joint'",
                    )
                )
        # Layout refuses what is no tensor.
        one = [leaf.new_empty(leaf.shape[1:]) if isinstance(leaf, Tensor) else leaf for _, leaf in found]
        self.row = Layout(rebuild(tree, iter(one)))
        self.batch = int(found[0][1].shape[0])
        for path, leaf in found:
            if leaf.shape[0] != self.batch:
                raise InputError(
                    explain(
                        f"{path} has {leaf.shape[0]} rows but {found[0][0]} has {self.batch}",
                        "one leading dimension of rows for the whole state",
                        "expand the leaf, or use batching='joint'",
                    )
                )
        self.size, self.dtype, self.device = self.row.size, self.row.dtype, self.row.device
        self.is_tensor = self.row.is_tensor
        shape = self.row.shapes[0]
        #: A state of one real tensor (B, n) is the matrix itself.
        self.plain = self.is_tensor and self.row.is_real and len(shape) == 1
        #: Shape behind the rows of the time that ``f`` receives: ones that broadcast against the state's.
        self.time_shape = (1,) * len(shape) if self.is_tensor else ()

    def unpack(self, flat: Tensor) -> Tree:
        """The tree of a matrix (b, n), or of (m, b, n) with both leading dimensions; views where possible."""
        return flat if self.plain else self.row.unpack(flat)

    def pack(self, tree: Tree) -> Tensor:
        """The matrix (B, n) of a tree of the state's form."""
        return self._joined([_real(leaf) for leaf in _branches(self.row.template, tree, "y")])

    def pack_derivative(self, derivative: Tree, rows: int) -> Tensor:
        """The matrix (rows, n) of what the field returned for so many rows.

        Raises
        ------
        FieldError
            If it is not a tree of tensors of the state's shapes, dtypes and device.
        """
        if (
            self.plain
            and type(derivative) is Tensor
            and derivative.shape == (rows, self.size)
            and derivative.dtype is self.dtype
            and derivative.device == self.device
            and derivative.layout is torch.strided
        ):
            return derivative
        leaves = list(_branches(self.row.template, derivative, "y"))
        for index, leaf in enumerate(leaves):
            self._check(index, leaf, rows)
        return self._joined([_real(leaf) for leaf in leaves])

    def _joined(self, parts: list[Tensor]) -> Tensor:
        flats = [part.reshape(len(part), size) for part, size in zip(parts, self.row.sizes, strict=True)]
        return flats[0] if len(flats) == 1 else torch.cat(flats, dim=1)

    def _check(self, index: int, leaf: object, rows: int) -> None:
        shape = self.row.shapes[index]
        if isinstance(leaf, Tensor) and (leaf.ndim == 0 or leaf.shape[0] != rows or leaf.shape[1:] != shape):
            where = "" if self.is_tensor else f" for {self.row.paths[index].replace('y0', 'y', 1)}"
            raise FieldError(
                explain(
                    f"f returned shape {tuple(leaf.shape)}{where}, called with {rows} rows that are still running",
                    f"one derivative for each of them, {(rows, *shape)}",
                    "let f take the number of rows from y, and wrap what it needs of every row in "
                    "args=(PerSample(x),); t has shape (rows, 1, ..., 1), or (rows,) beside a tree",
                )
            )
        # What is left to check is not about rows.
        self.row.check_leaf(index, leaf[0] if isinstance(leaf, Tensor) and rows else leaf)


def _real(leaf: Tensor) -> Tensor:
    # Not a view as pairs: its gradient would have to lie aligned, which it need not among other leaves.
    return torch.stack((leaf.real, leaf.imag), dim=-1) if leaf.is_complex() else leaf
