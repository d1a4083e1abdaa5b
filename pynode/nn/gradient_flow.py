"""Gradient flows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pynode.layout import leaves_of, rebuild
from pynode.nn.energy_gradient import gradient


class GradientFlow(torch.nn.Module):
    """``dy/dt = -grad V(y)``: ``V`` never grows along a solution, ``dV/dt = -|grad V|^2`` (Massaroli et al. 2020,
    "Stable Neural Flows").

    Parameters
    ----------
    potential : torch.nn.Module or callable
        ``V(y, *args)``: one number a row, (...,) or (..., 1). Rows must not see one another in it.

    Notes
    -----
    The state is a tensor (..., n) or a tree of tensors. Training differentiates ``V`` twice: take smooth activations
    (tanh, softplus, SiLU).

    Examples
    --------
    >>> field = pynode.nn.GradientFlow(lambda y: (y**2).sum(-1) / 2)
    >>> field(torch.tensor(0.0), torch.tensor([[1.0, 2.0]]))
    tensor([[-1., -2.]])
    """

    def __init__(self, potential: Callable[..., Tensor]) -> None:
        super().__init__()
        self.potential = potential

    def forward(self, t: Tensor, y: Any, *args: Any) -> Any:
        (found,) = gradient(self.potential, "V", y, args=args)
        return rebuild(found, iter([-leaf for _, leaf in leaves_of(found)]))
