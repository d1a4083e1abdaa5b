"""An integral along the solution, as further channels of the state.

``c' = l(t, y, *args)``, ``c(t0) = 0`` is integrated together with ``y``. The adjoint of ``c`` is the constant
``dL/dc(T)``, so that every sensitivity algorithm of the augmented problem gives the generalised adjoint of Massaroli et
al. (2020), "Dissecting Neural ODEs": ``da/dt = -a df/dy - dL/dc dl/dy``, and likewise for the parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pynode.errors import FieldError, InputError, explain
from pynode.layout import Layout, Tree, leaves_of, rebuild


class Costed:
    """The field of the augmented state ``(y, c)``."""

    def __init__(self, f: Callable[..., Any], cost: Callable[..., Any]) -> None:
        self.f = f
        self.cost = cost

    def __call__(self, t: Tensor, state: tuple[Tree, Tree], *args: Any) -> tuple[Tree, Tree]:
        y, _ = state
        return self.f(t, y, *args), self.cost(t, y, *args)


class CostedLayout(Layout):
    """Of the augmented state: the channels of ``y``, then those of ``c``."""

    def __init__(self, y0: Tree, state: Layout, c0: Tree) -> None:
        super().__init__((y0, c0))
        self.state = copy.copy(state)
        self.state._aligned = state.is_real or self._aligned  # the costs may be an odd number
        self.cost = Layout(c0, "running_cost", "its value at the initial time")

    def pack_derivative(self, derivative: Tree) -> Tensor:
        dy, dc = derivative
        return torch.cat([self.state.pack_derivative(dy), self.cost.pack_derivative(dc)])

    def released(self) -> Layout:
        own = copy.copy(self)
        own.state, own.cost = self.state.released(), self.cost.released()
        return own


def zero_cost(cost: Callable[..., Any], t: Tensor, y: Tree, args: tuple[Any, ...], state: Layout) -> Tree:
    """Zeros in the form of ``cost(t, y, *args)``, which is evaluated once.

    Raises
    ------
    InputError
        If ``cost`` is not callable.
    FieldError
        If its value is not a tree of real tensors of the state's real dtype on its device.
    """
    if not callable(cost):
        raise InputError(
            explain(
                f"running_cost is a {type(cost).__name__}", "a callable l(t, y, *args)", "pass a module or function"
            )
        )
    with torch.no_grad():
        value = cost(t, y, *args)
    leaves = []
    for path, leaf in leaves_of(value, "running_cost"):
        if not isinstance(leaf, Tensor):
            came, remedy = f"a {type(leaf).__name__}", "add the return statement" if leaf is None else "return a tensor"
        elif leaf.dtype != state.dtype or leaf.device != state.device:
            came, remedy = (
                f"{leaf.dtype} on {leaf.device}",
                "take .real or .abs() of complex values, convert with .to(y)",
            )
        elif leaf.numel() == 0:
            came, remedy = f"an empty tensor of shape {tuple(leaf.shape)}", "drop it"
        else:
            leaves.append(torch.zeros_like(leaf))
            continue
        raise FieldError(
            explain(f"{path} returned {came}", f"a real tensor, {state.dtype} on {state.device} like the state", remedy)
        )
    if not leaves:
        raise FieldError(explain(f"running_cost returned {value!r}", "at least one tensor", "return the cost"))
    return rebuild(value, iter(leaves))


class StateObserver:
    """An observer that is shown the first ``size`` channels only."""

    def __init__(self, observer: Any, size: int) -> None:
        self.observer, self.size = observer, size

    def step(self, t: float, y: Tensor, h: float) -> None:
        self.observer.step(t, y[: self.size], h)

    def accepted(self, t: float, y: Tensor, h: float) -> None:
        self.observer.accepted(t, y[: self.size], h)

    def rejected(self, t: float, y: Tensor, h: float) -> None:
        self.observer.rejected(t, y[: self.size], h)
