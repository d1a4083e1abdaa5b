"""Port-Hamiltonian systems: energy, dissipation and control."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pynode.errors import FieldError, explain
from pynode.nn.energy_gradient import gradient
from pynode.nn.pair import halves, joined

Matrix = Tensor | Callable[[Tensor], Tensor]


class PortHamiltonianODE(torch.nn.Module):
    """``d(q, p)/dt = (J - R) grad H + (0, B(q) u)``, ``J = [[0, I], [-I, 0]]``, ``R = L L^T`` (Zhong, Dey and
    Chakraborty 2020, "Symplectic ODE-Net"; with dissipation "Dissipative SymODEN").

    With the output ``w = B(q)^T dH/dp`` the power balance is ``dH/dt = -grad H^T R grad H + w^T u``.

    Parameters
    ----------
    hamiltonian : torch.nn.Module or callable
        ``H(q, p)``: one number a row, (...,) or (..., 1); :class:`MechanicalEnergy` is that of SymODEN.
    actuation : Tensor, torch.nn.Module or callable, optional
        ``B``: a matrix (n, m), or ``B(q)`` that returns (..., n, m); the identity by default.
    dissipation : Tensor, torch.nn.Module or callable, optional
        ``L``: a matrix, or ``L(q)``, of ``n`` rows, for friction on the momenta, or of ``2 n`` rows (..., 2 n, r) for
        both. None by default.
    control : torch.nn.Module or callable, optional
        A feedback ``u = control(t, q, p)`` (..., m).

    Notes
    -----
    The state is a pair ``(q, p)`` of tensors (..., n), or one tensor (..., 2 n). A control of another kind is given
    with the solve: ``args=(u,)`` with a tensor (..., m), held over the solve as in SymODEN's data, or a callable
    ``u(t)``; it adds to the feedback. Tensors become buffers, ``torch.nn.Parameter`` parameters. Rows must not see one
    another in ``H``; training differentiates ``H`` twice: take smooth activations.

    Examples
    --------
    >>> energy, friction = lambda q, p: (q**2 + p**2).sum(-1) / 2, torch.tensor([[1.0]])
    >>> field = pynode.nn.PortHamiltonianODE(energy, dissipation=friction)
    >>> field(torch.tensor(0.0), (torch.tensor([[1.0]]), torch.tensor([[2.0]])))  # (p, -q - p)
    (tensor([[2.]]), tensor([[-3.]]))
    """

    def __init__(
        self,
        hamiltonian: Callable[..., Tensor],
        *,
        actuation: Matrix | None = None,
        dissipation: Matrix | None = None,
        control: Callable[..., Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.hamiltonian = hamiltonian
        for name, matrix in (("actuation", actuation), ("dissipation", dissipation)):
            if isinstance(matrix, Tensor) and not isinstance(matrix, torch.nn.Parameter):
                self.register_buffer(name, matrix)
            else:
                setattr(self, name, matrix)
        self.control = control

    def forward(self, t: Tensor, y: Any, u: Any = None) -> Any:
        q, p = halves(y)
        to_q, to_p = gradient(self.hamiltonian, "H", q, p)
        dq, dp = to_p, -to_q
        friction = self._friction(q, to_q, to_p)
        if friction is not None:
            loss_q, loss_p, _ = friction
            dq, dp = dq if loss_q is None else dq - loss_q, dp - loss_p
        control = self.input(t, y, u)
        if control is not None:
            actuation = self._at("actuation", q)
            dp = dp + (control if actuation is None else (actuation @ control.unsqueeze(-1)).squeeze(-1))
        return joined(y, dq, dp)

    def energy(self, y: Any) -> Tensor:
        """``H`` of a state, as its function gives it."""
        return self.hamiltonian(*halves(y))

    def output(self, y: Any) -> Tensor:
        """The output ``B(q)^T dH/dp`` (..., m), conjugate to the control."""
        q, p = halves(y)
        _, to_p = gradient(self.hamiltonian, "H", q, p)
        actuation = self._at("actuation", q)
        found: Tensor = to_p if actuation is None else (actuation.mT @ to_p.unsqueeze(-1)).squeeze(-1)
        return found

    def dissipated(self, y: Any) -> Tensor:
        """The power ``grad H^T R grad H >= 0`` (...,) lost by friction."""
        q, p = halves(y)
        friction = self._friction(q, *gradient(self.hamiltonian, "H", q, p))
        return q.new_zeros(q.shape[:-1]) if friction is None else friction[2].square().sum(-1)

    def input(self, t: Tensor, y: Any, u: Any = None) -> Tensor | None:
        """The control (..., m) that acts at a state: the feedback, and what the solve was given."""
        given: Tensor | None = u(t) if callable(u) else u
        if self.control is None:
            return given
        feedback: Tensor = self.control(t, *halves(y))
        return feedback if given is None else feedback + given

    def _friction(self, q: Tensor, to_q: Tensor, to_p: Tensor) -> tuple[Tensor | None, Tensor, Tensor] | None:
        """``R grad H`` for ``q`` (None where there is none) and for ``p``, and ``L^T grad H``."""
        root = self._at("dissipation", q)
        if root is None:
            return None
        n = q.shape[-1]
        if root.shape[-2] not in (n, 2 * n):
            raise FieldError(
                explain(
                    f"dissipation has shape {tuple(root.shape)}", f"{n} or {2 * n} rows for {n} positions", "check L"
                )
            )
        slopes = to_p if root.shape[-2] == n else torch.cat([to_q, to_p], dim=-1)
        rates = (root.mT @ slopes.unsqueeze(-1)).squeeze(-1)
        losses = (root @ rates.unsqueeze(-1)).squeeze(-1)
        if root.shape[-2] == n:
            return None, losses, rates
        return losses[..., :n], losses[..., n:], rates

    def _at(self, name: str, q: Tensor) -> Tensor | None:
        matrix: Any = getattr(self, name)
        found: Tensor | None = matrix if matrix is None or isinstance(matrix, Tensor) else matrix(q)
        return found


class MechanicalEnergy(torch.nn.Module):
    """``H(q, p) = p^T M^-1(q) p / 2 + V(q)`` with ``M^-1 = L L^T + floor I``, positive definite whatever ``L(q)`` is
    (Zhong, Dey and Chakraborty 2020).

    Parameters
    ----------
    root : torch.nn.Module or callable
        ``L(q)``: (..., n * n), or (..., n, n); its lower triangle is used.
    potential : torch.nn.Module or callable
        ``V(q)``: (...,) or (..., 1).
    floor : float
        Least eigenvalue of the inverse mass matrix.

    Examples
    --------
    >>> energy = pynode.nn.MechanicalEnergy(lambda q: torch.zeros(*q.shape[:-1], 1), lambda q: q.sum(-1), floor=2.0)
    >>> energy(torch.tensor([[5.0]]), torch.tensor([[3.0]]))  # p^2 * 2 / 2 + q
    tensor([14.])
    """

    def __init__(
        self, root: Callable[[Tensor], Tensor], potential: Callable[[Tensor], Tensor], *, floor: float = 0.1
    ) -> None:
        super().__init__()
        self.root = root
        self.potential = potential
        self.floor = floor

    def inverse_mass(self, q: Tensor) -> Tensor:
        """``M^-1(q)`` (..., n, n)."""
        n = q.shape[-1]
        root = self.root(q).reshape(*q.shape, n).tril()
        return root @ root.mT + self.floor * torch.eye(n, dtype=q.dtype, device=q.device)

    def forward(self, q: Tensor, p: Tensor) -> Tensor:
        velocity = (self.inverse_mass(q) @ p.unsqueeze(-1)).squeeze(-1)
        return 0.5 * (p * velocity).sum(-1) + self.potential(q).reshape(p.shape[:-1])

    def extra_repr(self) -> str:
        return f"floor={self.floor:g}"
