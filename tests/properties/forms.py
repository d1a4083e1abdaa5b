"""States as trees of tensors, taken apart and put together without pynode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Motion(NamedTuple):
    position: Any
    velocity: Any


def leaves(tree: Any) -> list[Tensor]:
    if isinstance(tree, dict):
        return [x for branch in tree.values() for x in leaves(branch)]
    if isinstance(tree, tuple | list):
        return [x for branch in tree for x in leaves(branch)]
    return [tree]


def _pairs(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` as numbers of ``dtype``: complex ones as two real ones, or unchanged."""
    return torch.stack((x.real, x.imag), dim=-1) if x.is_complex() and not dtype.is_complex else x


def flat(tree: Any, dtype: torch.dtype, lead: int = 0) -> Tensor:
    """All numbers of a tree as a vector of ``dtype``, behind ``lead`` leading dimensions."""
    return torch.cat([_pairs(x, dtype).reshape(*x.shape[:lead], -1) for x in leaves(tree)], dim=-1)


def like(tree: Any, x: Tensor) -> Any:
    """The tree of the vector ``x``, in the form of ``tree``."""
    rest = [x]

    def build(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key: build(branch) for key, branch in tree.items()}
        if isinstance(tree, tuple | list):
            built = [build(branch) for branch in tree]
            return type(tree)(*built) if hasattr(tree, "_fields") else type(tree)(built)
        if tree.is_complex() and not x.is_complex():
            part, rest[0] = rest[0].split([2 * tree.numel(), len(rest[0]) - 2 * tree.numel()])
            pairs = part.reshape(*tree.shape, 2)
            return torch.complex(pairs[..., 0], pairs[..., 1])
        part, rest[0] = rest[0].split([tree.numel(), len(rest[0]) - tree.numel()])
        return part.reshape(tree.shape)

    return build(tree)


#: Trees of n numbers.
FORMS: dict[str, Callable[[Tensor], Any]] = {
    "vector": lambda x: x,
    "matrix": lambda x: x.reshape(1, -1, 1),
    "tuple": lambda x: (x[:1], x[1:]),
    "dict": lambda x: {"b": x[1:], "a": x[:1].reshape(())},
    "nested": lambda x: {"x": (x[:1], [x[1:2], {"y": x[2:]}]), "none": ()},
    "named": lambda x: Motion(x[: len(x) // 2], x[len(x) // 2 :]),
    "empty leaf": lambda x: [x, x.new_empty(0, 2)],
}


def mixed(x: Tensor) -> Any:
    """A complex leaf behind an odd number of reals, or before them."""
    z = torch.complex(x[:1], x[1:2])
    return (z, x[2:]) if len(x) % 2 else (x[2:3], z, x[3:])
