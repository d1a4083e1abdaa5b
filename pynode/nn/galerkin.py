"""Parameters that vary with depth as expansions in a basis of functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pynode.nn.bases import Basis
from pynode.nn.time_layer import TimeLayer, beside


class _Galerkin(TimeLayer):
    """``theta(t) = sum_j psi_j(t) theta_j``, with ``theta_j`` the parameters."""

    def __init__(self, basis: Basis, weight: tuple[int, ...], bias: bool) -> None:
        super().__init__()
        self.basis = basis
        # For bases of size about 1 the expansion then varies as one layer of torch.nn does in its own initialisation.
        bound = 1 / math.sqrt(math.prod(weight[1:]) * basis.size)
        self.weight = torch.nn.Parameter(torch.empty(basis.size, *weight).uniform_(-bound, bound))
        self.bias = torch.nn.Parameter(torch.empty(basis.size, weight[0]).uniform_(-bound, bound)) if bias else None

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """``y`` to the layer's output; ``t`` 0-dim, or (batch, 1, ..., 1) with a time for every sample."""
        if t.ndim == 0:
            psi = self.basis(t)
            weight = torch.tensordot(psi, self.weight, dims=1)
            return self.layer(y, weight, None if self.bias is None else psi @ self.bias)
        # The layer is linear in its parameters: expanded after it, its cost is that of all its terms.
        psi = self.basis(t.reshape(-1))
        size, features = self.weight.shape[:2]
        terms = self.layer(y, self.weight.flatten(0, 1), None if self.bias is None else self.bias.flatten())
        dim = terms.ndim + self.dim if self.dim < 0 else self.dim
        terms = terms.reshape(*terms.shape[:dim], size, features, *terms.shape[dim + 1 :])
        return torch.sum(beside(psi, terms, dim) * terms, dim=dim)

    dim = -1

    def layer(self, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError


class GalerkinLinear(_Galerkin):
    """``W(t) y + b(t)`` with ``W(t) = sum_j psi_j(t) W_j`` (Massaroli, Poli et al. 2020, Galerkin neural ODE).

    Parameters
    ----------
    in_features, out_features : int
    basis : Basis
        ``Fourier(3)``, ``Chebyshev(4)``, ``Polynomial(3)``, ``RBF(5)``: see :mod:`pynode.nn.bases`.
    bias : bool

    Examples
    --------
    >>> layer = pynode.nn.GalerkinLinear(2, 2, pynode.nn.Polynomial(2))
    >>> y = torch.ones(1, 2)
    >>> bool((layer(torch.tensor(0.0), y) != layer(torch.tensor(1.0), y)).any())  # its weights depend on t
    True
    """

    def __init__(self, in_features: int, out_features: int, basis: Basis, bias: bool = True) -> None:
        super().__init__(basis, (out_features, in_features), bias)

    def layer(self, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.nn.functional.linear(y, weight, bias)


class GalerkinConv2d(_Galerkin):
    """A convolution of images (batch, channels, height, width) whose kernel varies with depth: see GalerkinLinear.

    Parameters
    ----------
    in_channels, out_channels, kernel_size : int
    basis : Basis
    stride, padding : int
    bias : bool

    Examples
    --------
    >>> layer = pynode.nn.GalerkinConv2d(3, 3, 3, pynode.nn.Fourier(2), padding=1)
    >>> layer(torch.tensor(0.5), torch.randn(2, 3, 8, 8)).shape
    torch.Size([2, 3, 8, 8])
    """

    dim = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        basis: Basis,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__(basis, (out_channels, in_channels, kernel_size, kernel_size), bias)
        self.stride = stride
        self.padding = padding

    def layer(self, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.nn.functional.conv2d(y, weight, bias, self.stride, self.padding)
