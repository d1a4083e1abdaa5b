"""Learned initial conditions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pynode.layout import Tree
from pynode.nn.trees import check_callable, map_leaves


class InputLayer(torch.nn.Module):
    """Initial state ``y(0) = h(x)``, or ``(x, h(x))`` (Massaroli, Poli et al. 2020, IL-NODE).

    As ``input=`` of :class:`pynode.nn.NeuralODE`.

    Parameters
    ----------
    h : torch.nn.Module or callable
        Of the input, a tensor or a tree of tensors.
    keep : bool
        Append ``h(x)`` behind the features of ``x``, leaf by leaf, instead of putting it in its place: selective
        augmentation, and the learned initial velocities of :class:`pynode.nn.HigherOrder` (Norcliffe et al. 2020,
        SONODE).
    dim : int
        The dimension of the features, for ``keep``: -1, or 1 for images.

    Examples
    --------
    >>> layer = pynode.nn.InputLayer(lambda x: 10 * x, keep=True)
    >>> layer(torch.tensor([[1.0, 2.0]]))
    tensor([[ 1.,  2., 10., 20.]])
    """

    def __init__(self, h: Callable[[Any], Any], keep: bool = False, dim: int = -1) -> None:
        super().__init__()
        check_callable("h", h, "h(x)")
        self.h = h
        self.keep = keep
        self.dim = dim

    def forward(self, x: Tree) -> Tree:
        """The initial state."""
        learned = self.h(x)
        if not self.keep:
            return learned
        return map_leaves(lambda own, more: torch.cat([own, more], dim=self.dim), x, learned)

    def extra_repr(self) -> str:
        return f"keep={self.keep}, dim={self.dim}"
