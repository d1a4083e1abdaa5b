"""Zero augmentation: more dimensions for the flow."""

from __future__ import annotations

import torch
from torch import Tensor

from pynode.errors import InputError, explain
from pynode.layout import Tree, leaves_of
from pynode.nn.trees import map_leaves


class Augment(torch.nn.Module):
    """Initial state ``y(0) = (x, 0)``: ``dims`` zeros behind the features (Dupont, Doucet and Teh 2019, ANODE).

    The flow of a field is a homeomorphism, whose trajectories do not cross; in the larger space they need not.
    As ``input=`` of :class:`pynode.nn.NeuralODE`. The zeros are also the initial velocities of
    :class:`pynode.nn.HigherOrder`, ``(order - 1) * features`` of them.

    Parameters
    ----------
    dims : int, or tree of int
        Zeros for every leaf of ``x``; as a tree like ``x``, for each leaf its own number: 0 leaves it as it is.
    dim : int
        The dimension of the features: -1, or 1 for images (batch, channels, height, width).

    Examples
    --------
    >>> pynode.nn.Augment(2)(torch.ones(1, 3))
    tensor([[1., 1., 1., 0., 0.]])
    """

    def __init__(self, dims: Tree, dim: int = -1) -> None:
        super().__init__()
        for path, count in leaves_of(dims, "dims"):
            if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                raise InputError(explain(f"{path} = {count!r}", "an integer >= 0", "give the number of zeros"))
        self.dims = dims
        self.dim = dim

    def forward(self, x: Tree) -> Tree:
        """``x`` with leaves (..., features, ...) as leaves (..., features + dims, ...)."""
        if isinstance(self.dims, int):
            count = self.dims
            return map_leaves(lambda leaf: self._appended(leaf, count), x)
        return map_leaves(self._appended, x, self.dims)

    def _appended(self, leaf: Tensor, count: int) -> Tensor:
        shape = list(leaf.shape)
        shape[self.dim] = count
        return torch.cat([leaf, leaf.new_zeros(shape)], dim=self.dim)

    def extra_repr(self) -> str:
        return f"{self.dims}, dim={self.dim}"
