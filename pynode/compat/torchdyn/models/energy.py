"""Fields that come from an energy: one argument ``x`` (batch, dim) each, for a NeuralODE.

The networks have to be twice differentiable where the fields are trained (tanh, softplus, SiLU): not ReLU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pynode.nn import Concatenated, GradientFlow, HamiltonianODE, LagrangianODE
from pynode.nn.energy_gradient import gradient


class HNN(torch.nn.Module):
    """``(dH/dp, -dH/dq)`` for ``x = (q, p)``: :class:`pynode.nn.HamiltonianODE`.

    Parameters
    ----------
    net : torch.nn.Module
        ``H``, from (batch, 2 n) to (batch, 1) or (batch,).
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Derivative (batch, 2 n)."""
        derivative: Tensor = HamiltonianODE(Concatenated(self.net))(x.new_zeros(()), x)
        return derivative


class GNF(torch.nn.Module):
    """``-grad V(x)``: :class:`pynode.nn.GradientFlow`.

    Parameters
    ----------
    energy : torch.nn.Module
        ``V``, from (batch, n) to (batch, 1) or (batch,).
    """

    def __init__(self, energy: Any) -> None:
        super().__init__()
        self.energy = energy

    def forward(self, x: Tensor) -> Tensor:
        """Derivative (batch, n)."""
        derivative: Tensor = GradientFlow(self.energy)(x.new_zeros(()), x)
        return derivative


class LNN(torch.nn.Module):
    """``(v, dv/dt)`` for ``x = (q, v)`` by the Euler-Lagrange equations: :class:`pynode.nn.LagrangianODE`.

    torchdyn takes the pseudo-inverse of ``d2L/dv2``; here a singular one is an error.

    Parameters
    ----------
    net : torch.nn.Module
        ``L``, from (batch, 2 n) to (batch, 1) or (batch,); three times differentiable where it is trained.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Derivative (batch, 2 n)."""
        derivative: Tensor = LagrangianODE(Concatenated(self.net))(x.new_zeros(()), x)
        return derivative


class ConservativeLinearSNF(torch.nn.Module):
    """``S(x) grad H(x)`` with the skew-symmetric ``S = (M - M^T) / 2``, which conserves ``H``.

    Parameters
    ----------
    energy : torch.nn.Module
        ``H``, from (batch, n) to (batch, 1) or (batch,).
    J : torch.nn.Module
        ``M``, from (batch, n) to (batch, n * n).
    """

    def __init__(self, energy: Any, J: Any) -> None:
        super().__init__()
        self.energy = energy
        self.J = J

    def forward(self, x: Tensor) -> Tensor:
        """Derivative (batch, n)."""
        (slope,) = gradient(self.energy, "H", x)
        matrix = self.J(x).reshape(*x.shape, x.shape[-1])
        derivative: Tensor = ((matrix - matrix.mT) / 2 @ slope.unsqueeze(-1)).squeeze(-1)
        return derivative
