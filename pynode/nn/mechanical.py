"""Second-order mechanical systems."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pynode.nn.mass_matrix import accelerated
from pynode.nn.pair import halves, joined


class MechanicalODE(torch.nn.Module):
    """``M(q) q'' = forces(t, q, v)`` with ``v = q'``: ``dq/dt = v``, ``dv/dt = M(q)^-1 forces(t, q, v)``.

    Parameters
    ----------
    forces : torch.nn.Module or callable
        ``forces(t, q, v, *args)`` of shape (..., n).
    mass : Tensor, torch.nn.Module or callable, optional
        Masses: (n,), a matrix (n, n), or ``mass(q)`` that returns matrices (..., n, n) (or a vector (n,)); 1 by
        default. A tensor becomes a buffer, a ``torch.nn.Parameter`` a parameter.

    Notes
    -----
    The state is a pair ``(q, v)`` of tensors (..., n), or one tensor (..., 2 n). Where ``M`` is constant and the forces
    do not depend on ``v``, symplectic methods (``VelocityVerlet``) take the pair. ``M`` must be regular;
    torch.linalg.LinAlgError says where it is not.

    Examples
    --------
    >>> field = pynode.nn.MechanicalODE(lambda t, q, v: -q, mass=torch.tensor([2.0]))
    >>> field(torch.tensor(0.0), (torch.tensor([[1.0]]), torch.tensor([[3.0]])))  # (v, -q / 2)
    (tensor([[3.]]), tensor([[-0.5000]]))
    """

    def __init__(self, forces: Callable[..., Tensor], mass: Tensor | Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.forces = forces
        if isinstance(mass, Tensor) and not isinstance(mass, torch.nn.Parameter):
            self.register_buffer("mass", mass)
        else:
            self.mass = mass

    def forward(self, t: Tensor, y: Any, *args: Any) -> Any:
        q, v = halves(y)
        forces, mass = self.forces(t, q, v, *args), self.mass
        if mass is None:
            return joined(y, v, forces)
        return joined(y, v, accelerated(mass if isinstance(mass, Tensor) else mass(q), forces))
