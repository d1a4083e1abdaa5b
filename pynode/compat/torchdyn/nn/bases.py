"""torchdyn's bases: each called with ``n`` (deg,), the numbers from 0 to deg, and a 0-dim ``s``, for lists of (deg,).

``n_eig`` of these a basis: a weight is ``sum_ij coefficient_ij basis_i(n_j, s)``. For the classical families over an
interval see :mod:`pynode.nn.bases`.
"""

from __future__ import annotations

import torch
from torch import Tensor


class _Basis(torch.nn.Module):
    n_eig = 1

    def __init__(self, deg: int, adaptive: bool = False) -> None:
        super().__init__()
        self.deg = deg


class Fourier(_Basis):
    """``cos(n s), sin(n s)``."""

    n_eig = 2

    def forward(self, n_range: Tensor, s: Tensor) -> list[Tensor]:
        return [torch.cos(s * n_range), torch.sin(s * n_range)]


class Polynomial(_Basis):
    """``s^n``; the ``n`` are not whole in general, and negative ``s`` then give NaN, as in torchdyn."""

    def forward(self, n_range: Tensor, s: Tensor) -> list[Tensor]:
        return [s**n_range]


class Chebychev(_Basis):
    """Chebyshev polynomials of the first kind of degrees 0 to deg - 1."""

    def forward(self, n_range: Tensor, s: Tensor) -> list[Tensor]:
        found = [torch.ones_like(s), s]
        while len(found) < len(n_range):
            found.append(2 * s * found[-1] - found[-2])
        return [torch.stack(found[: len(n_range)])]


class _Radial(_Basis):
    """Of the distance ``r = |s - centers|``; learned centres and scales, one for each of the ``deg``, if adaptive."""

    centers: Tensor
    eps_scales: Tensor

    def __init__(self, deg: int, adaptive: bool = False, eps_scales: float = 2, centers: float = 0) -> None:
        super().__init__(deg)
        for name, value in (("centers", centers), ("eps_scales", eps_scales)):
            tensor = torch.full((deg,), float(value))
            if adaptive:
                self.register_parameter(name, torch.nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor, persistent=False)


class GaussianRBF(_Radial):
    """``exp(-(r (n - centers) / eps_scales)^2)``."""

    def forward(self, n_range: Tensor, s: Tensor) -> list[Tensor]:
        r = (s - self.centers).abs()
        return [torch.exp(-((r * (n_range - self.centers) / self.eps_scales) ** 2))]


class VanillaRBF(_Radial):
    """``r n / eps_scales``."""

    def forward(self, n_range: Tensor, s: Tensor) -> list[Tensor]:
        return [(s - self.centers).abs() * n_range / self.eps_scales]


class MultiquadRBF(_Radial):
    """``1 + sqrt(1 + (r n / eps_scales)^2)``."""

    def forward(self, n_range: Tensor, s: Tensor) -> list[Tensor]:
        return [1 + torch.sqrt(1 + ((s - self.centers).abs() * n_range / self.eps_scales) ** 2)]
