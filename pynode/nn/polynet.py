"""PolyNet: an approximation of the backward Euler method."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pynode.errors import InputError, explain
from pynode.layout import Tree
from pynode.nn.chain import Chain, plus, time


class PolyNet(Chain):
    """A chain of blocks ``z <- y_k + h f(t_(k+1), z)``, ``order`` times from ``z = y_k`` (Zhang et al. 2017, PolyNet).

    Where ``f`` is linear a block is the polynomial ``I + h F + ... + (h F)^order``, PolyNet's, which is the truncated
    Neumann series of ``(I - h F)^-1`` (Lu et al. 2018): the fixed-point iteration of backward Euler. It converges to
    the backward Euler step with ``order`` where ``h`` times the Lipschitz constant of ``f`` is below 1. Where ``f`` is
    not linear, PolyNet's own ``y + h f(y) + h f(h f(y))`` is another polynomial, which converges to no solver's step.

    Parameters
    ----------
    f, depth, t
        See :class:`pynode.nn.chain.Chain`.
    order : int
        Evaluations of the branch in a block; 1 is a residual block whose branch is evaluated at the block's end time.

    Examples
    --------
    >>> f = lambda t, y: y
    >>> pynode.nn.PolyNet(f, depth=1, order=3)(torch.ones(1))  # 1 + h + h^2 + h^3
    tensor([4.])
    """

    def __init__(
        self, f: Any, depth: int | None = None, t: tuple[float, float] = (0.0, 1.0), *, order: int = 2
    ) -> None:
        super().__init__(f, depth, t)
        if isinstance(order, bool) or not isinstance(order, int) or order < 1:
            raise InputError(explain(f"order = {order!r}", "an integer >= 1", "give the degree of the polynomial"))
        self.order = order

    def step(self, f: Any, t: float, h: float, y: Tree, like: Tensor, args: tuple[Any, ...]) -> Tree:
        z, end = y, time(t + h, like)
        for _ in range(self.order):
            z = plus(y, h, f(end, z, *args))
        return z

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, order={self.order}"
