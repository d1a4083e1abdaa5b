"""An integration depth for every input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pynode.errors import InputError, explain
from pynode.layout import Tree, leaves_of
from pynode.nn.trees import check_callable, map_leaves


class AdaptiveDepth(torch.nn.Module):
    """``dy/ds = T f(s T, y)``, ``s`` in [0, 1]: each sample integrated to its own depth ``T`` (Massaroli et al. 2020).

    ``NeuralODE(AdaptiveDepth(f), condition=g)``: ``y(s = 1)`` is the state at time ``T = g(x)`` of
    ``dy/dt = f(t, y)``, for a whole batch in one solve. A negative depth integrates backward; end ``g`` in a softplus
    to exclude it. Training is easier from ``g = 0`` (last layer zero), where ``y = x``, than from random depths. ``T``
    crosses the solve as an argument, so that ``g`` is trained through it.

    Parameters
    ----------
    f : torch.nn.Module or callable
        ``f(t, y, *args)``, where ``t`` differs between samples: it has the shape (batch, 1, ..., 1) and broadcasts
        against ``y``; where ``y`` is a tree, (batch,). The layers of ``pynode.nn`` take both.

    Notes
    -----
    Where the field jumps (:class:`pynode.nn.Stacked`), every sample jumps at an ``s`` of its own, which
    no solver is told.

    Examples
    --------
    >>> depths = torch.tensor([[0.0], [math.log(2.0)]])
    >>> model = pynode.nn.NeuralODE(pynode.nn.AdaptiveDepth(lambda t, y: y), condition=lambda x: depths)
    >>> model(torch.ones(2, 1)).flatten().round(decimals=3)  # exp(0), exp(log 2)
    tensor([1., 2.])
    """

    def __init__(self, f: Callable[..., Any]) -> None:
        super().__init__()
        check_callable("f", f, "f(t, y, *args)")
        self.f = f

    def forward(self, s: Tensor, y: Tree, depth: Tensor, *args: Any) -> Tree:
        """``y`` with leaves (batch, ...), ``depth`` (batch,) or (batch, 1, ..., 1), or 0-dim for one depth for all.

        Raises
        ------
        InputError
            If ``depth`` holds another number than one a sample.
        """
        if not isinstance(depth, Tensor) or depth.numel() not in (1, *(x.shape[0] for _, x in leaves_of(y) if x.ndim)):
            came = tuple(depth.shape) if isinstance(depth, Tensor) else type(depth).__name__
            raise InputError(
                explain(
                    f"the depth is {came}", "a tensor with one number a sample", "let condition=g end in one feature"
                )
            )
        depth = depth.reshape(()) if depth.numel() == 1 else depth.reshape(-1)
        time = s * (_against(depth, y) if isinstance(y, Tensor) else depth)
        return map_leaves(lambda slope: _against(depth, slope) * slope, self.f(time, y, *args))


def _against(depth: Tensor, leaf: Tensor) -> Tensor:
    return depth if depth.ndim == 0 else depth.reshape(-1, *[1] * (leaf.ndim - 1))
