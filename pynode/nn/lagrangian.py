"""Lagrangian neural networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pynode.nn.energy_gradient import gradient, summed
from pynode.nn.mass_matrix import accelerated
from pynode.nn.pair import halves, joined


class LagrangianODE(torch.nn.Module):
    """The Euler-Lagrange equations of ``L(q, v)``, solved for the acceleration (Cranmer et al. 2020, "Lagrangian Neural
    Networks"): ``dq/dt = v``, ``dv/dt = (d2L/dv2)^-1 (dL/dq - (d2L/dv dq) v + forces)``.

    Parameters
    ----------
    lagrangian : torch.nn.Module or callable
        ``L(q, v, *args)``: one number a row, (...,) or (..., 1). A network of one input becomes one of two by
        :class:`Concatenated`.
    forces : torch.nn.Module or callable, optional
        Generalised forces ``forces(t, q, v, *args)`` (..., n) that no ``L`` has: friction, controls.

    Notes
    -----
    The state is a pair ``(q, v)`` of tensors (..., n), or one tensor (..., 2 n). The Hessian ``d2L/dv2`` (n, n) is
    formed row by row (n pullbacks at once) and must be regular; torch.linalg.LinAlgError says where it is not. Rows
    must not see one another in ``L``. Training differentiates ``L`` three times: of the usual activations take
    softplus, tanh or SiLU.

    Examples
    --------
    >>> field = pynode.nn.LagrangianODE(lambda q, v: (v**2 - 4 * q**2).sum(-1) / 2)
    >>> field(torch.tensor(0.0), (torch.tensor([[1.0]]), torch.tensor([[3.0]])))  # (v, -4 q)
    (tensor([[3.]]), tensor([[-4.]]))
    """

    def __init__(self, lagrangian: Callable[..., Tensor], *, forces: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        self.lagrangian = lagrangian
        self.forces = forces

    def forward(self, t: Tensor, y: Any, *args: Any) -> Any:
        q, v = halves(y)
        return joined(y, v, self.acceleration(t, q, v, *args))

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor, *args: Any) -> Tensor:
        """dv/dt (..., n)."""

        def momentum(q: Tensor, v: Tensor) -> Tensor:
            found: Tensor = gradient(lambda v: self.lagrangian(q, v, *args), "L", v)[0]
            return found

        momenta, pull, *_ = torch.func.vjp(momentum, q, v)
        n = v.shape[-1]
        rows = torch.eye(n, dtype=v.dtype, device=v.device)
        rows = rows.reshape(n, *[1] * (v.ndim - 1), n).expand(n, *momenta.shape)
        mixed, mass = (x.movedim(0, -2) for x in torch.func.vmap(pull)(rows))
        (forces,) = gradient(lambda q: self.lagrangian(q, v, *args), "L", q)
        forces = forces - (mixed @ v.unsqueeze(-1)).squeeze(-1)
        if self.forces is not None:
            forces = forces + self.forces(t, q, v, *args)
        return accelerated(mass, forces)

    def energy(self, y: Any, *args: Any) -> Tensor:
        """``v dL/dv - L`` of a state, (...,): conserved without ``forces``."""
        q, v = halves(y)

        def own(v: Tensor) -> tuple[Tensor, Tensor]:
            value = self.lagrangian(q, v, *args)
            return summed(value, "L"), value

        momentum, value = torch.func.grad(own, has_aux=True)(v)
        energy: Tensor = (v * momentum).sum(-1) - value.reshape(v.shape[:-1])
        return energy
