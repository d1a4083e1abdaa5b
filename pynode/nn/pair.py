"""States of mechanics: a pair ``(q, p)``, or one tensor that holds both halves side by side."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pynode.errors import InputError, explain


def halves(y: Any) -> tuple[Tensor, Tensor]:
    """Positions and momenta (or velocities) of a state: a tuple of two tensors (..., n), or a tensor (..., 2 n).

    Raises
    ------
    InputError
        For anything else.
    """
    if isinstance(y, torch.Tensor):
        if y.ndim == 0 or y.shape[-1] % 2:
            raise InputError(
                explain(f"the state has shape {tuple(y.shape)}", "(..., 2 n): positions, then momenta", "pass a pair")
            )
        q, p = y.chunk(2, dim=-1)
        return q, p
    if not isinstance(y, tuple | list) or len(y) != 2 or not all(isinstance(part, Tensor) for part in y):
        raise InputError(
            explain(
                f"the state is a {type(y).__name__}", "a pair (q, p) of tensors, or a tensor (..., 2 n)", "pass one"
            )
        )
    return y[0], y[1]


def joined(y: Any, first: Tensor, second: Tensor) -> Any:
    """The two halves in the form of the state ``y``."""
    if isinstance(y, torch.Tensor):
        return torch.cat([first, second], dim=-1)
    return type(y)(first, second) if hasattr(y, "_fields") else type(y)((first, second))


class Concatenated(torch.nn.Module):
    """A network of several inputs: ``net(cat([x1, x2, ...], -1))``, as ``H(q, p)`` or ``L(q, v)`` for one.

    Parameters
    ----------
    net : torch.nn.Module or callable

    Examples
    --------
    >>> hamiltonian = pynode.nn.Concatenated(torch.nn.Linear(2, 1))
    >>> hamiltonian(torch.ones(4, 1), torch.ones(4, 1)).shape
    torch.Size([4, 1])
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, *inputs: Tensor) -> Tensor:
        """``inputs`` of shapes (..., n_i)."""
        value: Tensor = self.net(torch.cat(inputs, dim=-1))
        return value
