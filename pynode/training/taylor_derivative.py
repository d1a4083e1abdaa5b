"""The size of a total derivative of the solution (TayNODE)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pynode.errors import InputError, explain
from pynode.layout import Tree
from pynode.nn.field_costs import FieldCost, squared_norm
from pynode.nn.trees import map_leaves


class TaylorDerivative(FieldCost):
    """``|d^K y/dt^K|^2`` along the solution (TayNODE: Kelly et al. 2020, "Learning differential equations that are
    easy to solve"): a method of order ``K - 1`` errs by multiples of that derivative.

    ``d^k y/dt^k`` follows from ``d^(k-1) y/dt^(k-1)``, a function of ``(t, y)``, as its derivative along ``(1, f)``:
    Jacobian-vector products, nested ``K - 1`` deep, whose work grows exponentially with ``K`` (the paper's Taylor mode
    needs of the order of ``K^2``). ``K = 1`` is :class:`KineticEnergy`. ``f`` has to be ``K`` times differentiable
    (tanh, SiLU; not ReLU) for a gradient.

    Parameters
    ----------
    f : callable
        The field of the solve, ``f(t, y, *args)``; ``y`` may be a tree.
    order : int
        ``K``; 2 to 4 are reasonable.
    event_ndim : int
        Number of trailing dimensions of ``y`` that are one element's.
    weight : float
        0.01 by default. The derivative has the units of ``y`` over time to the ``K``: the best weight differs by orders
        of magnitude between problems and orders, and has to be searched for.

    Examples
    --------
    >>> f = lambda t, y: 2 * y
    >>> cost = pynode.training.TaylorDerivative(f, order=2)
    >>> cost(torch.tensor(0.0), torch.ones(1, 1))  # |d2y/dt2|^2 = |4 y|^2
    tensor([16.])
    """

    def __init__(self, f: Callable[..., Any], order: int = 3, event_ndim: int = 1, weight: float = 0.01) -> None:
        super().__init__(f, event_ndim, weight)
        if isinstance(order, bool) or not isinstance(order, int) or order < 1:
            raise InputError(explain(f"TaylorDerivative(order={order!r})", "an integer >= 1", "use 2 or 3"))
        self.order = order

    def __call__(self, t: Tensor, y: Tree, *args: Any) -> Tensor:
        """Rate (batch...)."""
        return squared_norm(self.derivative(t, y, *args), self.event_ndim)

    def derivative(self, t: Tensor, y: Tree, *args: Any) -> Tree:
        """``d^K y/dt^K`` at ``(t, y)``, in the form of ``y``."""

        def field(t: Tensor, y: Tree) -> Tree:
            return self.f(t, y, *args)

        total = field
        for _ in range(self.order - 1):
            total = _along(total, field)
        return total(t, y)


def _along(function: Callable[[Tensor, Tree], Tree], field: Callable[[Tensor, Tree], Tree]) -> Any:
    """The derivative of a function of ``(t, y)`` along the solution of ``field``."""

    def derivative(t: Tensor, y: Tree) -> Tree:
        # The pullback is linear, and its own pullback the push forward: torch's forward mode gives the same, slower,
        # and cannot be traced inside fields for Julia.
        value, pull = torch.func.vjp(function, t, y)[:2]
        push = torch.func.vjp(pull, map_leaves(torch.zeros_like, value))[1]
        return push((torch.ones_like(t), field(t, y)))[0]

    return derivative
