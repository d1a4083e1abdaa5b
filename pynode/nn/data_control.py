"""Fields conditioned on the input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pynode.layout import Tree
from pynode.nn.trees import check_callable, map_leaves


class DataControl(torch.nn.Module):
    """``dy/dt = f(t, (y, u))`` with a control ``u`` that does not change (Massaroli, Poli et al. 2020).

    With ``NeuralODE(DataControl(f), condition=torch.nn.Identity())`` the control is the input ``x``, so that every
    input has a field of its own and trajectories may cross: ``x -> -x`` without augmentation. Other conditions embed
    the input. The control crosses the solve as an argument, which is differentiated.

    Parameters
    ----------
    f : torch.nn.Module or callable
        ``f(t, z, *args)`` with ``z = (y, u)`` side by side, leaf by leaf where ``y`` is a tree; it returns the
        derivative of ``y``.
    dim : int
        The dimension of the features: -1, or 1 for images.

    Notes
    -----
    A field that wants the control on its own, of another form, is written ``f(t, y, u, *args)`` and needs no wrapper.

    Examples
    --------
    >>> f = lambda t, z: -2 * z[..., 1:]  # reads the control, not the state
    >>> model = pynode.nn.NeuralODE(pynode.nn.DataControl(f), condition=torch.nn.Identity())
    >>> model(torch.tensor([[1.0], [-1.0]])).flatten().round(decimals=3)  # x -> -x, whose trajectories cross
    tensor([-1.,  1.])
    """

    def __init__(self, f: Callable[..., Any], dim: int = -1) -> None:
        super().__init__()
        check_callable("f", f, "f(t, z, *args)")
        self.f = f
        self.dim = dim

    def forward(self, t: Tensor, y: Tree, u: Tree, *args: Any) -> Tree:
        """``y`` (batch..., features) and ``u`` (batch..., features of the control)."""
        return self.f(t, map_leaves(lambda a, b: torch.cat([a, b], dim=self.dim), y, u), *args)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"
