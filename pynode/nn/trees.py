"""The same operation on every leaf of a tree of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pynode.errors import InputError, explain
from pynode.layout import Tree, leaves_of, rebuild


def map_leaves(function: Callable[..., Tensor], tree: Tree, *others: Tree) -> Tree:
    """``function`` of corresponding leaves, in the form of ``tree``.

    Raises
    ------
    InputError
        If the trees have other leaves.
    """
    columns = [dict(leaves_of(x, "tree")) for x in (tree, *others)]
    for column in columns[1:]:
        if column.keys() != columns[0].keys():
            raise InputError(
                explain(
                    f"a tree has the leaves {[*column]}", f"those of the other one, {[*columns[0]]}", "make them equal"
                )
            )
    return rebuild(tree, iter([function(*(column[path] for column in columns)) for path in columns[0]]))


def last(tree: Tree) -> Tree:
    """The last entry of every leaf along its first dimension."""
    return map_leaves(lambda leaf: leaf[-1], tree)


def check_callable(name: str, value: Any, form: str) -> None:
    """Raise InputError unless ``value`` can be called."""
    if not callable(value):
        raise InputError(
            explain(f"{name} is a {type(value).__name__}", f"a callable {form}", "pass a module or function")
        )
