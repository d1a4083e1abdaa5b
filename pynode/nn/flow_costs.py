"""Running costs that make a flow easy to integrate (RNODE: Finlay et al. 2020, "How to train your neural ODE").

Both are rates for ``running_cost=`` of :class:`pynode.nn.CNF`, per element of the batch. They hold the field without
registering it: a model that has field and cost lists its parameters once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pynode.nn.trace import contracted, probed


class KineticEnergy:
    """``|f(t, z)|^2``: its integral is the cost of transport along straight lines at constant speed, and more off them.

    Parameters
    ----------
    f : callable
        The flow's field, ``f(t, z[, context])``.
    event_ndim : int
        Number of trailing dimensions of ``z`` that are one element's.
    """

    def __init__(self, f: Callable[..., Any], event_ndim: int = 1) -> None:
        self.f = f
        self.event_ndim = event_ndim

    def __call__(self, t: Tensor, state: tuple[Tensor, Tensor], probes: Tensor, *context: Tensor) -> Tensor:
        """Rate (batch...)."""
        squares: Tensor = self.f(t, state[0], *context).square()
        return contracted(squares[None], self.event_ndim)


class JacobianFrobenius:
    """``|df/dz|_F^2``, by the probes of the flow's trace: exact for the basis, and for the noise of
    :class:`pynode.nn.HutchinsonTrace` ``|e^T df/dz|^2``, which has the same expectation.

    Parameters
    ----------
    f : callable
        The flow's field, ``f(t, z[, context])``.
    event_ndim : int
        Number of trailing dimensions of ``z`` that are one element's.
    """

    def __init__(self, f: Callable[..., Any], event_ndim: int = 1) -> None:
        self.f = f
        self.event_ndim = event_ndim

    def __call__(self, t: Tensor, state: tuple[Tensor, Tensor], probes: Tensor, *context: Tensor) -> Tensor:
        """Rate (batch...)."""
        _, products = probed(lambda z: self.f(t, z, *context), state[0], probes)
        return contracted(products.square(), self.event_ndim)
