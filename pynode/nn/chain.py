"""Discrete counterparts of neural ODEs: chains of blocks, each a step of a solver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.errors import InputError, explain
from pynode.layout import Tree, leaves_of
from pynode.nn.trees import map_leaves


class Chain(torch.nn.Module):
    """Base class: ``y_(k+1) = step(f_k, t_k, h, y_k)`` for ``k = 0, ..., N - 1``, with ``h = (t[1] - t[0]) / N``.

    Parameters
    ----------
    f : torch.nn.Module, callable, or sequence of torch.nn.Module
        The residual branch ``f(t, y, *args)``: one for all blocks (tied weights, called ``f`` in the ``state_dict`` as
        in :class:`pynode.nn.NeuralODE`), or one for each.
    depth : int, optional
        The number ``N`` of blocks; left out, that of the sequence.
    t : (float, float)
        Times of the first and behind the last block.
    """

    def __init__(self, f: Any, depth: int | None = None, t: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__()
        several = isinstance(f, Sequence | torch.nn.ModuleList)
        if several and depth is None:
            depth = len(f)
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1 or (several and depth != len(f)):
            raise InputError(
                explain(f"depth = {depth!r}", "an integer >= 1, the number of branches if there are several", "give it")
            )
        if not several and not callable(f):
            raise InputError(explain(f"f is a {type(f).__name__}", "a callable f(t, y), or modules", "pass a module"))
        self.f = torch.nn.ModuleList(f) if several else f
        self.depth = depth
        self.t = (float(t[0]), float(t[1]))

    def forward(self, y: Tree, *args: Any) -> Tree:
        """The state behind the last block; a tensor or a tree of tensors. Further arguments go to the branches."""
        start, end = self.t
        like = next(leaves_of(y))[1].real
        times = torch.arange(self.depth + 1, dtype=torch.float64) / self.depth * (end - start) + start
        listed = times.tolist()
        for k in range(self.depth):
            branch = self.f[k] if isinstance(self.f, torch.nn.ModuleList) else self.f
            y = self.step(branch, listed[k], listed[k + 1] - listed[k], y, like, args)
        return y

    def step(self, f: Any, t: float, h: float, y: Tree, like: Tensor, args: tuple[Any, ...]) -> Tree:
        """One block. ``like`` has the dtype and device of times."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"depth={self.depth}, t={self.t}"


def time(t: float, like: Tensor) -> Tensor:
    """``t`` as branches receive it: 0-dim, of the state's real dtype, on its device."""
    return torch.scalar_tensor(t, dtype=like.dtype, device=like.device)


def plus(y: Tree, h: float, slope: Tree) -> Tree:
    """``y + h slope``."""
    return map_leaves(lambda a, b: a + h * b, y, slope)
