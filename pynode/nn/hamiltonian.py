"""Hamiltonian neural networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pynode.errors import InputError, explain
from pynode.nn.energy_gradient import gradient
from pynode.nn.pair import halves, joined


class HamiltonianODE(torch.nn.Module):
    """``dq/dt = dH/dp``, ``dp/dt = -dH/dq``: the field conserves ``H`` (Greydanus, Dzamba and Yosinski 2019,
    "Hamiltonian Neural Networks").

    Parameters
    ----------
    hamiltonian : torch.nn.Module or callable
        ``H(q, p, *args)``: one number a row, (...,) or (..., 1). A network of one input becomes one of two by
        :class:`Concatenated`.
    kinetic, potential : torch.nn.Module or callable
        Instead: ``T(p, *args)`` and ``V(q, *args)`` of a separable ``H = T + V``. Symplectic methods
        (``VelocityVerlet``, ``Yoshida6``) then evaluate each half alone.

    Notes
    -----
    The state is a pair ``(q, p)`` of tensors (..., n), as symplectic methods need it, or one tensor (..., 2 n).
    Rows must not see one another in ``H`` (no batch norm). Training differentiates ``H`` twice: take smooth
    activations (tanh, softplus, SiLU), as the second derivative of ReLU is zero.

    Raises
    ------
    InputError
        Unless there is either ``hamiltonian``, or both ``kinetic`` and ``potential``.

    Examples
    --------
    >>> field = pynode.nn.HamiltonianODE(lambda q, p: (q**2 + p**2).sum(-1) / 2)
    >>> field(torch.tensor(0.0), (torch.tensor([[1.0]]), torch.tensor([[2.0]])))  # (p, -q)
    (tensor([[2.]]), tensor([[-1.]]))
    """

    def __init__(
        self,
        hamiltonian: Callable[..., Tensor] | None = None,
        *,
        kinetic: Callable[..., Tensor] | None = None,
        potential: Callable[..., Tensor] | None = None,
    ) -> None:
        super().__init__()
        parts = [part is not None for part in (hamiltonian, kinetic, potential)]
        if parts not in ([True, False, False], [False, True, True]):
            raise InputError(
                explain(
                    f"HamiltonianODE got {sum(parts)} of hamiltonian, kinetic and potential",
                    "hamiltonian= alone, or kinetic= with potential=",
                    "write HamiltonianODE(H) or HamiltonianODE(kinetic=T, potential=V)",
                )
            )
        self.hamiltonian = hamiltonian
        self.kinetic = kinetic
        self.potential = potential

    def forward(self, t: Tensor, y: Any, *args: Any) -> Any:
        q, p = halves(y)
        if self.hamiltonian is None:
            return joined(y, self._velocity(t, p, *args), self._force(t, q, *args))
        to_q, to_p = gradient(self.hamiltonian, "H", q, p, args=args)
        return joined(y, to_p, -to_q)

    def energy(self, y: Any, *args: Any) -> Tensor:
        """``H`` of a state, as its function gives it."""
        q, p = halves(y)
        if self.kinetic is not None and self.potential is not None:
            return self.kinetic(p, *args) + self.potential(q, *args)
        assert self.hamiltonian is not None
        return self.hamiltonian(q, p, *args)

    @property
    def velocity(self) -> Callable[..., Tensor]:
        """``velocity(t, p, *args) = dT/dp``, of a separable ``H``."""
        return self._half(self._velocity)

    @property
    def force(self) -> Callable[..., Tensor]:
        """``force(t, q, *args) = -dV/dq``, of a separable ``H``."""
        return self._half(self._force)

    def _half(self, half: Callable[..., Tensor]) -> Callable[..., Tensor]:
        if self.hamiltonian is not None:
            raise AttributeError("HamiltonianODE(H) has no halves: give kinetic= and potential=")
        return half

    def _velocity(self, t: Tensor, p: Tensor, *args: Any) -> Tensor:
        assert self.kinetic is not None
        found: Tensor = gradient(self.kinetic, "kinetic", p, args=args)[0]
        return found

    def _force(self, t: Tensor, q: Tensor, *args: Any) -> Tensor:
        assert self.potential is not None
        found: Tensor = gradient(self.potential, "potential", q, args=args)[0]
        return -found
