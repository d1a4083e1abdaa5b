"""Lie brackets of a controlled equation's columns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jvp, vmap


class LieBracketField(nn.Module):
    """The columns f_i of a field and their brackets ``[f_i, f_j] = (Df_j) f_i - (Df_i) f_j``, i < j.

    On a path of depth-2 log-signatures (:class:`pynode.controls.LogSignatureControl`) it makes :class:`NeuralCDE` the
    log-ODE method: over each window ``dz = sum_i f_i(z) dX_i + sum_i<j [f_i, f_j](z) dA_ij`` (Morrill et al. 2021).

    Parameters
    ----------
    f : torch.nn.Module or callable
        ``f(t, z, *args)``: matrices (batch..., hidden, channels), each depending on its own z only. Differentiable
        twice (SiLU, tanh, softplus inside), as gradients differentiate the brackets.

    Notes
    -----
    One evaluation costs one of f and one of its derivative for each channel.

    References
    ----------
    Morrill, Salvi, Kidger, Foster and Lyons (2021), "Neural Rough Differential Equations for Long Time Series".

    Examples
    --------
    >>> rotations = torch.tensor([[[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]]])  # f_i(z) = A_i z
    >>> field = pynode.nn.LieBracketField(lambda t, z: torch.stack([a @ z for a in rotations], -1))
    >>> field(torch.tensor(0.0), torch.tensor([1.0, 2.0]))[:, 2]  # (A_2 A_1 - A_1 A_2) z
    tensor([-1.,  2.])
    """

    def __init__(self, f: Any) -> None:
        super().__init__()
        self.f = f

    def forward(self, t: Tensor, z: Tensor, *args: Any) -> Tensor:
        """(batch..., hidden, channels + channels * (channels - 1) / 2)."""

        def columns(z: Tensor) -> Tensor:
            matrix: Tensor = self.f(t, z, *args)
            return matrix

        def along(direction: Tensor) -> Tensor:
            derivative: Tensor = jvp(columns, (z,), (direction,))[1]
            return derivative

        matrix = columns(z)
        # moved[i, ..., j]: the derivative of f_j along f_i
        moved = vmap(along)(matrix.movedim(-1, 0))
        first, second = torch.triu_indices(matrix.shape[-1], matrix.shape[-1], 1, device=z.device)
        brackets = moved[first, ..., second] - moved[second, ..., first]
        return torch.cat([matrix, brackets.movedim(0, -1)], -1)
