"""The mass matrix of ``M dy/dt = f(t, y)``, validated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pynode.errors import InputError, explain
from pynode.layout import Layout


class MassMatrix:
    """A constant mass matrix and what follows from its singular values.

    Attributes
    ----------
    matrix : Tensor (n, n)
    inverse : Tensor (n, n)
        The pseudoinverse: ``dy/dt = inverse f`` but for components that only algebraic equations determine.
    left, right : Tensor (n, k)
        Bases of what ``M`` annihilates from the left and from the right. ``left^T f = 0`` are the algebraic equations.
    """

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        u, s, vh = torch.linalg.svd(matrix)
        rank = int((s > s.max() * len(s) * torch.finfo(s.dtype).eps).sum())
        self.inverse = (vh[:rank].t() / s[:rank]) @ u[:, :rank].t()
        self.left, self.right = u[:, rank:], vh[rank:].t()

    @property
    def singular(self) -> bool:
        return bool(self.left.shape[1])


def as_mass_matrix(mass: Any, state: Layout, whole: Layout) -> MassMatrix:
    """A constant matrix for all that is integrated from one for the state: what comes behind the state (a running
    cost) has the unit matrix.

    Raises
    ------
    InputError
        If it is not a finite (n, n) tensor of the state's real dtype and device that asks for no gradient.
    """
    n = state.size
    if not isinstance(mass, Tensor) or mass.shape != (n, n) or mass.dtype != state.dtype or mass.device != state.device:
        what = (
            f"of shape {tuple(mass.shape)}, {mass.dtype} on {mass.device}"
            if isinstance(mass, Tensor)
            else f"a {type(mass).__name__}"
        )
        raise InputError(
            explain(
                f"mass_matrix is {what}",
                f"a tensor of shape ({n}, {n}), {state.dtype} on {state.device}, for the {n} numbers of the state",
                "build it with torch.diag or torch.eye in the state's dtype",
            )
        )
    if mass.requires_grad:
        raise InputError(
            explain(
                "mass_matrix requires a gradient",
                "a constant matrix: no gradient with respect to it is offered",
                "pass mass_matrix.detach(), or put what is learned into f",
            )
        )
    if not bool(torch.isfinite(mass).all()):
        raise InputError(explain("mass_matrix has a NaN or an infinity", "finite numbers", "check how it is built"))
    if whole.size == n:
        return MassMatrix(mass.clone())
    block = torch.eye(whole.size, dtype=mass.dtype, device=mass.device)
    block[:n, :n] = mass
    return MassMatrix(block)
