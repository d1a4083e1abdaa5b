"""Layers whose weights vary with depth, behind ``DepthCat`` (Massaroli et al. 2020)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pynode.compat.torchdyn.nn.bases import Fourier


class GalLayer(torch.nn.Module):
    """Base class: weights ``w(t) = sum_ij coeffs_ij basis_i(n_j, dilation t + shift)``, zero to begin with.

    Parameters
    ----------
    size : int
        Number of weights.
    expfunc : basis
    dilation, shift : bool
        Whether these are learned; 1 and 0 otherwise.
    """

    dilation: Tensor
    shift: Tensor

    def __init__(self, size: int, expfunc: Any, dilation: bool, shift: bool) -> None:
        super().__init__()
        for name, learned, value in (("dilation", dilation, 1.0), ("shift", shift, 0.0)):
            if learned:
                self.register_parameter(name, torch.nn.Parameter(torch.full((1,), value)))
            else:
                self.register_buffer(name, torch.full((1,), value), persistent=False)
        self.expfunc = expfunc
        self.n_eig, self.deg = expfunc.n_eig, expfunc.deg
        self.coeffs = torch.nn.Parameter(torch.zeros(size, self.deg, self.n_eig))

    def reset_parameters(self) -> None:
        """Zero weights."""
        torch.nn.init.zeros_(self.coeffs)

    def calculate_weights(self, t: Tensor) -> Tensor:
        """All weights (size,) at time ``t`` (0-dim)."""
        n = torch.linspace(0, self.deg, self.deg, dtype=self.coeffs.dtype, device=self.coeffs.device)
        basis = torch.stack(self.expfunc(n, (t * self.dilation + self.shift).reshape(())), dim=1)
        return self.coeffs.flatten(1) @ basis.flatten()


class GalLinear(GalLayer):
    """``W(t) x + b(t)``; its input's last feature is ``t`` (:class:`DepthCat` puts it there).

    Parameters
    ----------
    in_features, out_features : int
        Without ``t``.
    bias : bool
    expfunc : basis, optional
        ``Fourier(5)`` by default.
    dilation, shift : bool
        Learn a scale and an offset of the time.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        expfunc: Any = None,
        dilation: bool = True,
        shift: bool = True,
    ) -> None:
        basis = Fourier(5) if expfunc is None else expfunc
        super().__init__((in_features + bias) * out_features, basis, dilation, shift)
        self.in_features, self.out_features = in_features, out_features

    def forward(self, input: Tensor) -> Tensor:
        """(batch, in_features + 1) to (batch, out_features)."""
        weights = self.calculate_weights(input[-1, -1])
        count = self.in_features * self.out_features
        weight = weights[:count].reshape(self.out_features, self.in_features)
        return torch.nn.functional.linear(input[:, :-1], weight, weights[count:] if len(weights) > count else None)


class GalConv2d(GalLayer):
    """A convolution whose kernel varies with depth; its input's last channel is ``t``.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding : int
        Without the channel of ``t``.
    bias, expfunc, dilation, shift
        As for :class:`GalLinear`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        expfunc: Any = None,
        dilation: bool = True,
        shift: bool = True,
    ) -> None:
        basis = Fourier(5) if expfunc is None else expfunc
        super().__init__(out_channels * (in_channels * kernel_size**2 + bias), basis, dilation, shift)
        self.ic, self.oc, self.ks = in_channels, out_channels, kernel_size
        self.stride, self.pad = stride, padding

    def forward(self, input: Tensor) -> Tensor:
        """(batch, in_channels + 1, height, width) to (batch, out_channels, ...)."""
        weights = self.calculate_weights(input[-1, -1, 0, 0])
        count = self.oc * self.ic * self.ks**2
        kernel = weights[:count].reshape(self.oc, self.ic, self.ks, self.ks)
        bias = weights[count:] if len(weights) > count else None
        return torch.nn.functional.conv2d(input[:, :-1], kernel, bias, stride=self.stride, padding=self.pad)
