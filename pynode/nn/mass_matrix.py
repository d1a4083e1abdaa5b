"""Accelerations from a mass matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from pynode.errors import FieldError, explain


def accelerated(mass: Tensor, forces: Tensor) -> Tensor:
    """``M^-1 f`` (..., n) of forces (..., n).

    ``mass``: matrices (..., n, n), or one vector (n,) of the masses on the diagonal.

    Raises
    ------
    FieldError
        If the masses do not fit the forces.
    """
    n = forces.shape[-1]
    if mass.shape == (n,):
        return forces / mass
    if mass.shape[-2:] != (n, n):
        raise FieldError(
            explain(
                f"the mass matrix has shape {tuple(mass.shape)}",
                f"(..., {n}, {n}), or ({n},) for a diagonal one, as there are {n} positions",
                "check what mass is or returns",
            )
        )
    found: Tensor = torch.linalg.solve(mass, forces.unsqueeze(-1)).squeeze(-1)
    return found
