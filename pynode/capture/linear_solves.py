"""Systems of a few linear equations (``torch.linalg.solve``, ``inv``) as elimination, in operators the emitter has.

These are taken apart when a field is traced first, below autograd. There the pullback of a solve is a solve with the
factors that the forward one saved; here "the factors" are the matrix itself, so that the two have to be taken apart in
the same trace.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

#: Whether this torch factorises the transpose of a matrix that lies row by row (and tells the pullback by ``adjoint``).
_PROBE = (torch.tensor([[1.0, 1.0], [0.0, 1.0]], device="cpu"), torch.ones(2, 1, device="cpu"))
_TRANSPOSED = torch._linalg_solve_ex(*_PROBE)[1][1, 0].item() != 0.0

#: Larger systems stay what they are: the program would grow with them.
LARGEST = 12


def eliminated(a: Tensor, b: Tensor) -> Tensor:
    """``a^-1 b`` for ``a`` (..., n, n) and ``b`` (..., n, k): Gauss-Jordan elimination with partial pivoting."""
    n = a.shape[-1]
    lead: torch.Size = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])  # type: ignore[no-untyped-call]
    rest = torch.cat([a.expand(*lead, n, n), b.expand(*lead, n, b.shape[-1])], dim=-1)
    rows = torch.arange(n, device=a.device)
    for k in range(n):
        # The columns before the pivot's are done with.
        best = rest[..., k:, 0].abs().argmax(-1, keepdim=True) + k
        pivot = rest.gather(-2, best.unsqueeze(-1).expand(*lead, 1, rest.shape[-1]))
        if k < n - 1:
            rest = torch.where((rows == best).unsqueeze(-1), rest[..., k : k + 1, :], rest)
        pivot = pivot[..., 1:] / pivot[..., :1]
        others = rest[..., 1:] - rest[..., :1] * pivot
        rest = torch.where((rows == k).unsqueeze(-1), pivot, others)
    return rest


def _solved(a: Tensor, b: Tensor, left: bool) -> Tensor:
    return eliminated(a, b) if left else eliminated(a.mT, b.mT).mT


def _solve(a: Tensor, b: Tensor, *, left: bool = True, check_errors: bool = False) -> Any:
    if a.shape[-1] > LARGEST or a.is_complex():
        return NotImplemented
    vector = b.ndim == 1 or (b.ndim == a.ndim - 1 and b.shape == a.shape[:-1])
    found = _solved(a, b.unsqueeze(-1), left).squeeze(-1) if vector else _solved(a, b, left)
    factors = a.mT if _TRANSPOSED and a.is_contiguous() else a
    codes = torch.zeros(a.shape[:-1], dtype=torch.int32, device=a.device)
    return found, factors, codes, torch.zeros(a.shape[:-2], dtype=torch.int32, device=a.device)


def _solve_again(factors: Tensor, codes: Tensor, b: Tensor, *, left: bool = True, adjoint: bool = False) -> Any:
    if factors.shape[-1] > LARGEST or factors.is_complex():
        return NotImplemented
    return _solved(factors.mT if adjoint else factors, b, left)


def _inverse(a: Tensor, *, check_errors: bool = False) -> Any:
    if a.shape[-1] > LARGEST or a.is_complex():
        return NotImplemented
    unit = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    return eliminated(a, unit), torch.zeros(a.shape[:-2], dtype=torch.int32, device=a.device)


SOLVES: dict[Any, Any] = {
    aten._linalg_solve_ex.default: _solve,
    aten.linalg_lu_solve.default: _solve_again,
    aten.linalg_inv_ex.default: _inverse,
}
