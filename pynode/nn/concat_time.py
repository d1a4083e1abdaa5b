"""Time as a further feature, and as a gate (the layers of FFJORD)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pynode.errors import InputError, explain
from pynode.nn.time_layer import TimeLayer, beside, called


class ConcatTime(TimeLayer):
    """``f(t, y) = layer((y, t))``: the time as one more feature or channel (Chen et al. 2018).

    Parameters
    ----------
    layer : torch.nn.Module
        Takes one feature more than ``y`` has: ``torch.nn.Linear(d + 1, ...)``, a convolution of ``channels + 1``
        channels, or a whole network.
    dim : int
        The dimension of the features: -1, or 1 for images (batch, channels, height, width).

    Examples
    --------
    >>> field = pynode.nn.ConcatTime(torch.nn.Linear(3, 2))
    >>> pynode.solve(field, torch.randn(4, 2), [0.0, 1.0]).ys.shape
    torch.Size([2, 4, 2])
    """

    def __init__(self, layer: torch.nn.Module, dim: int = -1) -> None:
        super().__init__()
        self.layer = layer
        self.dim = dim

    def forward(self, t: Tensor, y: Tensor, *args: Any) -> Tensor:
        """``y`` (batch..., features), or (batch, channels, ...) with ``dim=1``; further arguments go to the layer."""
        shape = list(y.shape)
        shape[self.dim] = 1
        return called(self.layer, t, torch.cat([y, t.expand(shape)], dim=self.dim), *args)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class ConcatSquash(TimeLayer):
    """``f(t, y) = layer(y) * sigmoid(w t + b) + v t``, with ``w, b, v`` per feature (Grathwohl et al. 2019, FFJORD).

    Parameters
    ----------
    layer : torch.nn.Linear or a convolution of torch.nn
        Has the features that are gated.

    Examples
    --------
    >>> field = pynode.nn.ConcatSquash(torch.nn.Linear(2, 2))
    >>> pynode.solve(field, torch.randn(4, 2), [0.0, 1.0]).ys.shape
    torch.Size([2, 4, 2])
    """

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        if isinstance(layer, torch.nn.Linear):
            features, self.dim = layer.out_features, -1
        elif isinstance(layer, torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d):
            features, self.dim = layer.out_channels, 1
        else:
            raise InputError(
                explain(f"layer is a {type(layer).__name__}", "Linear, Conv1d, Conv2d or Conv3d", "gate one of these")
            )
        self.layer = layer
        self.gate = torch.nn.Linear(1, features)
        self.shift = torch.nn.Linear(1, features, bias=False)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """``y`` (batch..., features) to the layer's shape."""
        out = self.layer(y)
        time = t.reshape(-1, 1)
        gated: Tensor = out * beside(self.gate(time).sigmoid(), out, self.dim)
        return gated + beside(self.shift(time), out, self.dim)
