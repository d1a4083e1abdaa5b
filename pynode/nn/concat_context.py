"""Conditioning a field by putting features beside its state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class ConcatContext(torch.nn.Module):
    """``f(t, z, context) = net(t, [z, context])``: a field ``net(t, y)`` that reads a context beside the state.

    Parameters
    ----------
    net : torch.nn.Module or callable
        ``net(t, y)`` for ``y`` (batch..., features of z + features of the context), returning (batch..., features of
        z): a stack of time-conditioned layers, say.

    Examples
    --------
    >>> field = pynode.nn.ConcatContext(pynode.nn.ConcatTime(torch.nn.Linear(2 + 3 + 1, 2)))
    >>> field(torch.tensor(0.0), torch.randn(4, 2), torch.randn(4, 3)).shape
    torch.Size([4, 2])
    """

    def __init__(self, net: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, z: Tensor, context: Tensor) -> Any:
        """Derivative of ``z``; all but the last dimensions of ``z`` and ``context`` are equal."""
        return self.net(t, torch.cat([z, context], -1))
