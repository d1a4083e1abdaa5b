"""Layers that know the time, and chains of them with layers that do not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class TimeLayer(torch.nn.Module):
    """Base class of the layers that are called ``layer(t, y)``: each is a field by itself, and a link of
    :class:`TimeSequential`.

    ``t`` is 0-dim; in a field of :class:`pynode.nn.AdaptiveDepth`, where every sample has its own time, it has the
    shape (batch, 1, ..., 1), with as many dimensions as ``y``.

    Examples
    --------
    >>> class Gate(pynode.nn.TimeLayer):
    ...     def forward(self, t, y):
    ...         return torch.sigmoid(t) * y
    >>> pynode.nn.TimeSequential(Gate(), torch.nn.ReLU())(torch.tensor(0.0), torch.tensor([-1.0, 3.0]))
    tensor([0.0000, 1.5000])
    """


class TimeSequential(TimeLayer):
    """A field that is a chain of layers: ``TimeLayer`` ones are called with ``(t, y)``, all others with ``y`` alone.

    ``TimeSequential(GalerkinLinear(2, 16, Fourier(3)), torch.nn.Tanh(), torch.nn.Linear(16, 2))``. With no TimeLayer in
    it the field is autonomous.

    Parameters
    ----------
    *layers : torch.nn.Module

    Examples
    --------
    >>> layers = pynode.nn.ConcatTime(torch.nn.Linear(3, 8)), torch.nn.Tanh(), torch.nn.Linear(8, 2)
    >>> field = pynode.nn.TimeSequential(*layers)
    >>> field(torch.tensor(0.5), torch.randn(4, 2)).shape
    torch.Size([4, 2])
    """

    def __init__(self, *layers: torch.nn.Module) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The last layer's value."""
        for layer in self.layers:
            y = called(layer, t, y)
        return y


def called(layer: torch.nn.Module, t: Tensor, y: Tensor, *args: Any) -> Tensor:
    """``layer(t, y, *args)`` of a TimeLayer, ``layer(y, *args)`` of another one."""
    value: Tensor = layer(t, y, *args) if isinstance(layer, TimeLayer) else layer(y, *args)
    return value


def beside(values: Tensor, y: Tensor, dim: int) -> Tensor:
    """``values`` (1 or batch, features) with the dimensions of ``y``: features at ``dim``, so that it broadcasts."""
    shape = [1] * y.ndim
    shape[0] = values.shape[0]
    if y.ndim == 1:  # a single sample without a batch dimension
        return values.reshape(-1)
    shape[dim] = values.shape[1]
    return values.reshape(shape)
