"""Densely connected networks: Runge-Kutta methods."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pynode.algorithms import RK4, Algorithm
from pynode.errors import UnsupportedError, explain
from pynode.layout import Tree
from pynode.native.tableaus import TABLEAUS
from pynode.nn.chain import Chain, time
from pynode.nn.trees import map_leaves


class RungeKuttaNet(Chain):
    """A chain of blocks with dense connections: branch ``i`` of a block sees a combination of all earlier ones.

    ``k_i = f(t + c_i h, y + h sum_(j<i) a_ij k_j)``, ``y + h sum_i b_i k_i``: what DenseNet and FractalNet connect is
    what the tableau of an explicit Runge-Kutta method connects (Lu et al. 2018). Equals a ``NeuralODE`` with that
    method in ``N`` steps, to rounding.

    Parameters
    ----------
    f, depth, t
        See :class:`pynode.nn.chain.Chain`.
    algorithm : Algorithm
        An explicit Runge-Kutta method: where the connections ``a, b`` come from.
    learned : bool
        The connections are parameters, which start as the method's: the network then is no solver any more, unless
        they stay near it.

    Examples
    --------
    >>> y, f = torch.ones(1), lambda t, y: y
    >>> net = pynode.nn.RungeKuttaNet(f, depth=2, algorithm=pynode.Heun())
    >>> torch.allclose(net(y), pynode.nn.NeuralODE(f, algorithm=pynode.Heun(steps=2))(y))
    True
    """

    def __init__(
        self,
        f: Any,
        depth: int | None = None,
        t: tuple[float, float] = (0.0, 1.0),
        *,
        algorithm: Algorithm = RK4(),  # noqa: B008  (immutable)
        learned: bool = False,
    ) -> None:
        super().__init__(f, depth, t)
        tableau = TABLEAUS.get(algorithm.name)
        if tableau is None:
            raise UnsupportedError(
                explain(f"{algorithm.name} has no tableau", f"one of {', '.join(TABLEAUS)}", "take one of these")
            )
        self.algorithm = algorithm
        self.c = tableau.c
        stages = len(tableau.b)
        a = torch.tensor([[*row, *[0.0] * (stages - len(row))] for row in tableau.a], dtype=torch.float64)
        b = torch.tensor(tableau.b, dtype=torch.float64)
        self.a: Tensor
        self.b: Tensor
        if learned:
            self.a, self.b = torch.nn.Parameter(a), torch.nn.Parameter(b)
        else:  # no part of the state_dict, which is that of the NeuralODE
            self.register_buffer("a", a, persistent=False)
            self.register_buffer("b", b, persistent=False)

    def step(self, f: Any, t: float, h: float, y: Tree, like: Tensor, args: tuple[Any, ...]) -> Tree:
        a, b = (h * self.a).to(like), (h * self.b).to(like)
        slopes: list[Tree] = []
        for i, c in enumerate(self.c):
            slopes.append(f(time(t + c * h, like), _combined(y, a[i, :i], slopes), *args))
        return _combined(y, b, slopes)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, algorithm={self.algorithm.name}"


def _combined(y: Tree, weights: Tensor, slopes: list[Tree]) -> Tree:
    def leaf(own: Tensor, *others: Tensor) -> Tensor:
        for weight, slope in zip(weights, others, strict=True):
            own = own + weight * slope
        return own

    return map_leaves(leaf, y, *slopes)
