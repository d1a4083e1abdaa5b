"""Reversible residual networks."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pynode.layout import Tree
from pynode.nn.chain import Chain, plus, time


class RevNet(Chain):
    """A chain of ``u <- u + h f(t_k, v)``, ``v <- v + h g(t_k, u)`` on pairs ``(u, v)`` (Gomez et al. 2017).

    Forward Euler for each half, with the newest other half: a step of order 1 for ``u' = f(t, v), v' = g(t, u)`` that
    can be undone exactly.

    Parameters
    ----------
    f, g : torch.nn.Module or callable
        ``f(t, v, *args)`` and ``g(t, u, *args)``, the same in all blocks.
    depth : int
    t : (float, float)

    Examples
    --------
    >>> net = pynode.nn.RevNet(lambda t, v: v, lambda t, u: u, depth=1)
    >>> net((torch.ones(1), torch.ones(1)))  # u = 1 + 1, v = 1 + u
    (tensor([2.]), tensor([3.]))
    """

    def __init__(self, f: Any, g: Any, depth: int, t: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__(f, depth, t)
        self.g = g

    def step(self, f: Any, t: float, h: float, y: Tree, like: Tensor, args: tuple[Any, ...]) -> Tree:
        u, v = y
        u = plus(u, h, f(time(t, like), v, *args))
        return u, plus(v, h, self.g(time(t, like), u, *args))

    def inverse(self, y: tuple[Tensor, Tensor], *args: Any) -> tuple[Tensor, Tensor]:
        """The pair before the first block from the one behind the last, up to rounding."""
        u, v = y
        start, end = self.t
        h = (end - start) / self.depth
        for k in reversed(range(self.depth)):
            t = time(start + k / self.depth * (end - start), u)
            v = plus(v, -h, self.g(t, u, *args))
            u = plus(u, -h, self.f(t, v, *args))
        return u, v
