"""Universal differential equations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pynode.layout import leaves_of, rebuild


class UniversalODE(torch.nn.Module):
    """Known physics and a network for what is missing (Rackauckas et al. 2020, "Universal Differential Equations for
    Scientific Machine Learning").

    ``dy/dt = known(t, y, *args) + network(y)``, or with ``inside=True``
    ``dy/dt = known(t, y, network(y), *args)``, where the network stands inside the known equations.

    Parameters
    ----------
    known : torch.nn.Module or callable
    network : torch.nn.Module or callable
        Of the state; its value has the form of the state, or with ``inside`` any form that ``known`` takes.
    inside : bool

    Examples
    --------
    >>> field = pynode.nn.UniversalODE(lambda t, y: -y, torch.nn.Linear(2, 2))
    >>> pynode.solve(field, torch.ones(3, 2), [0.0, 1.0]).ys.shape
    torch.Size([2, 3, 2])
    """

    def __init__(self, known: Callable[..., Any], network: Callable[..., Any], *, inside: bool = False) -> None:
        super().__init__()
        self.known = known
        self.network = network
        self.inside = inside

    def forward(self, t: Tensor, y: Any, *args: Any) -> Any:
        missing = self.network(y)
        if self.inside:
            return self.known(t, y, missing, *args)
        known = self.known(t, y, *args)
        pairs = zip(leaves_of(known), leaves_of(missing), strict=True)
        return rebuild(known, iter([a + b for (_, a), (_, b) in pairs]))

    def extra_repr(self) -> str:
        return f"inside={self.inside}"
