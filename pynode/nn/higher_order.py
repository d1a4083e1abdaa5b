"""Equations of higher order in first-order form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pynode.errors import FieldError, InputError, explain
from pynode.layout import Tree
from pynode.nn.trees import check_callable, map_leaves


class HigherOrder(torch.nn.Module):
    """``d^n q/dt^n = f(t, (q, q', ..., q^(n-1)))`` as a field of first order (Massaroli, Poli et al. 2020).

    The state holds the blocks ``q, q', ...`` side by side along the dimension of the features, ``f`` sees all of them
    and returns the highest derivative alone: the others cost no parameters. Initial velocities are part of the initial
    state: ``input=Augment((order - 1) * d)`` makes them zero, ``input=InputLayer(h, keep=True)`` learns them.

    Parameters
    ----------
    f : torch.nn.Module or callable
        ``f(t, y, *args)``.
    order : int
    first : int
        Leading features that stay of first order, ``p`` in the state ``(p, q, q', ...)``: selective higher order.
        ``f`` then returns ``(p', q^(n))``.
    dim : int
        The dimension of the features: -1, or 1 for images (batch, channels, height, width).

    Notes
    -----
    Trees of tensors are taken leaf by leaf. Features of a leaf: ``first + order * d``; ``f`` returns ``first + d``.

    Examples
    --------
    >>> oscillator = pynode.nn.HigherOrder(lambda t, y: -y[..., :1], order=2)  # q'' = -q
    >>> pynode.solve(oscillator, torch.tensor([[1.0, 0.0]]), [0.0, math.pi]).ys[-1, 0, 0].round(decimals=3)  # cos(pi)
    tensor(-1.)
    """

    def __init__(self, f: Callable[..., Any], order: int = 2, first: int = 0, dim: int = -1) -> None:
        super().__init__()
        check_callable("f", f, "f(t, y, *args)")
        for name, value, least in (("order", order, 1), ("first", first, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(explain(f"{name} = {value!r}", f"an integer >= {least}", "give the number"))
        self.f = f
        self.order = order
        self.first = first
        self.dim = dim

    def forward(self, t: Tensor, y: Tree, *args: Any) -> Tree:
        """Derivative of the state, in the form of ``y``.

        Raises
        ------
        InputError
            If the features behind ``first`` are not ``order`` blocks.
        FieldError
            If ``f`` does not return one highest derivative for each of them.
        """
        return map_leaves(self._leaf, y, self.f(t, y, *args))

    def _leaf(self, y: Tensor, highest: Tensor) -> Tensor:
        features, dim = y.shape[self.dim], self.dim
        size, rest = divmod(features - self.first, self.order)
        if rest or size < 1:
            raise InputError(
                explain(
                    f"the state has {features} features",
                    f"{self.first} + {self.order} * d, blocks of {self.order} equal sizes behind the first ones",
                    "append the initial velocities with input=Augment(...) or input=InputLayer(h, keep=True)",
                )
            )
        if not isinstance(highest, Tensor) or highest.ndim != y.ndim or highest.shape[dim] != self.first + size:
            came = tuple(highest.shape) if isinstance(highest, Tensor) else type(highest).__name__
            raise FieldError(
                explain(
                    f"f returned {came} for a state of shape {tuple(y.shape)}",
                    f"{self.first + size} features: the highest derivative alone",
                    "let f end in as many features as q has",
                )
            )
        lower = y.narrow(dim, self.first + size, (self.order - 1) * size)
        return torch.cat([highest.narrow(dim, 0, self.first), lower, highest.narrow(dim, self.first, size)], dim=dim)

    def extra_repr(self) -> str:
        return f"order={self.order}, first={self.first}, dim={self.dim}"
