"""Residual networks: the forward Euler method."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pynode.layout import Tree
from pynode.nn.chain import Chain, plus, time


class ResNet(Chain):
    """A chain of residual blocks ``y_(k+1) = y_k + h f(t_k, y_k)`` (He et al. 2016): forward Euler with ``N`` steps.

    ``ResNet(f, N)(y)`` equals ``NeuralODE(f, algorithm=Euler(steps=N))(y)`` to rounding (Lu et al. 2018; Chen et al.
    2018), and ``ResNet([f_0, f_1, ...])`` the ``NeuralODE`` of ``Stacked([f_0, f_1, ...])``. ``ResNeXt`` (Xie et al.
    2017) is the same with a branch that is a sum of branches. ``ResNetBlock`` is the chain of one block.

    Parameters
    ----------
    f, depth, t
        See :class:`pynode.nn.chain.Chain`.

    Examples
    --------
    >>> pynode.nn.ResNet(lambda t, y: y, depth=2)(torch.ones(1))  # forward Euler: (1 + 1/2)^2
    tensor([2.2500])
    """

    def step(self, f: Any, t: float, h: float, y: Tree, like: Tensor, args: tuple[Any, ...]) -> Tree:
        return plus(y, h, f(time(t, like), y, *args))


class ResNetBlock(ResNet):
    """``y + h f(t, y)`` with ``h = t[1] - t[0]``, 1 by default: one residual block.

    Parameters
    ----------
    f : torch.nn.Module or callable
    t : (float, float)

    Examples
    --------
    >>> pynode.nn.ResNetBlock(lambda t, y: 2 * y)(torch.ones(1))
    tensor([3.])
    """

    def __init__(self, f: Any, t: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__(f, 1, t)
