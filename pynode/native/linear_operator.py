"""The linear systems of implicit methods, ``(M - c df/dy) x = b``: dense by LU factors, or matrix-free by GMRES."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from pynode.errors import UnsupportedError, explain
from pynode.solution import Counts

if TYPE_CHECKING:
    from pynode.problem import Field

#: Largest state whose Jacobian is made dense: in float64 the matrix and its factors take 0.5 GiB.
DENSE_LIMIT = 6000
#: GMRES: vectors kept before a restart, restarts, and the relative residual wanted.
_RESTART, _CYCLES = 40, 10


class Solver(Protocol):
    """``(M - c J)^-1`` at one ``(t, y)`` and for one ``c``."""

    def solve(self, b: Tensor) -> Tensor:
        """``x`` (n,) for a right-hand side ``b`` (n,). Differentiable with respect to ``b``; the matrix is constant.

        Not finite where the matrix is singular or GMRES did not converge: the caller rejects the step.
        """
        ...


class Linearisation(Protocol):
    """``J = df/dy`` at one ``(t, y)``, with the mass matrix."""

    def times(self, v: Tensor) -> Tensor:
        """``J v`` (n,), off the tape."""
        ...

    def pulled(self, a: Tensor) -> Tensor:
        """``a J`` (n,), off the tape."""
        ...

    def operator(self, c: float) -> Solver:
        """The solver of ``(M - c J) x = b``."""
        ...


def linearise(field: Field, t: Any, y: Tensor, linsolve: str = "dense") -> Linearisation:
    """The Jacobian of ``field`` at ``(t, y)``, as ``linsolve`` (``"dense"`` or ``"gmres"``) needs it.

    Raises
    ------
    UnsupportedError
        For a dense one of more than ``DENSE_LIMIT`` states.
    """
    time = field.time(t).detach()
    if linsolve == "gmres":
        return Products(field, time, y)
    n = y.numel()
    if n > DENSE_LIMIT:
        raise UnsupportedError(
            explain(
                f"an implicit method on a state of {n} numbers would factor a dense {n} x {n} matrix",
                f"at most {DENSE_LIMIT} numbers for linsolve='dense'",
                "use the method with linsolve='gmres', which needs products with the Jacobian only",
            )
        )
    return DenseJacobian(field.jacobian(time, y), field.mass_matrix, field.counts)


class DenseJacobian:
    """``J`` as a matrix.

    Attributes
    ----------
    matrix : Tensor (n, n)
    """

    def __init__(self, matrix: Tensor, mass: Tensor | None, counts: Counts) -> None:
        self.matrix, self._mass, self._counts = matrix, mass, counts

    def times(self, v: Tensor) -> Tensor:
        """See :class:`Linearisation`."""
        return self.matrix.mv(v.detach())

    def pulled(self, a: Tensor) -> Tensor:
        """See :class:`Linearisation`."""
        return self.matrix.t().mv(a.detach())

    def operator(self, c: float) -> Factored:
        """See :class:`Linearisation`."""
        return self.shifted(1.0, c)

    def shifted(self, m: complex, c: float) -> Factored:
        """The solver of ``(m M - c J) x = b``, complex where ``m`` is."""
        matrix = (-c * self.matrix).to(self.matrix.dtype.to_complex() if isinstance(m, complex) else self.matrix.dtype)
        if self._mass is None:
            matrix.diagonal().add_(m)
        else:
            matrix += m * self._mass
        return Factored(matrix, self._counts)


class Factored:
    """LU factors of a square matrix, made once and used for many right-hand sides; counted as one ``nlu``."""

    def __init__(self, matrix: Tensor, counts: Counts) -> None:
        counts.nlu += 1
        self._lu, self._pivots, _ = torch.linalg.lu_factor_ex(matrix)

    def solve(self, b: Tensor) -> Tensor:
        """See :class:`Solver`."""
        solution: Tensor = torch.linalg.lu_solve(self._lu, self._pivots, b[:, None])
        return solution[:, 0]


class Products:
    """``J`` by its products with vectors alone."""

    def __init__(self, field: Field, t: Tensor, y: Tensor) -> None:
        self._forward, self._backward = field.jacobian_products(t, y)
        self._mass = field.mass_matrix

    def times(self, v: Tensor) -> Tensor:
        """See :class:`Linearisation`."""
        return self._forward(v.detach())

    def pulled(self, a: Tensor) -> Tensor:
        """See :class:`Linearisation`."""
        return self._backward(a.detach())

    def operator(self, c: float) -> Krylov:
        """See :class:`Linearisation`."""
        mass = self._mass
        return Krylov(
            lambda v: (v if mass is None else mass.mv(v)) - c * self._forward(v),
            lambda a: (a if mass is None else mass.t().mv(a)) - c * self._backward(a),
        )


class Krylov:
    """GMRES on products with a matrix; its transpose pulls back."""

    def __init__(self, times: Callable[[Tensor], Tensor], transposed: Callable[[Tensor], Tensor]) -> None:
        self._times, self._transposed = times, transposed

    def solve(self, b: Tensor) -> Tensor:
        """See :class:`Solver`."""
        if b.requires_grad and torch.is_grad_enabled():
            found: Tensor = _Solved.apply(b, self._times, self._transposed)  # type: ignore[no-untyped-call]
            return found
        return gmres(self._times, b.detach())


class _Solved(torch.autograd.Function):
    """A solve by GMRES whose pullback is one with the transpose."""

    @staticmethod
    def forward(ctx: Any, b: Tensor, times: Callable[[Tensor], Tensor], transposed: Callable[[Tensor], Tensor]) -> Any:
        ctx.times, ctx.transposed = times, transposed
        return gmres(times, b)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        # A function again: a mark on the way to a second derivative must not be lost here.
        return _Solved.apply(gradient, ctx.transposed, ctx.times), None, None  # type: ignore[no-untyped-call]


def gmres(times: Callable[[Tensor], Tensor], b: Tensor) -> Tensor:
    """Saad and Schultz (1986): the solution of ``A x = b``, restarted, by products ``times(v) = A v``.

    The residual is brought down to 1e-10 of ``b`` in float64, 1e-5 in float32: an inexact inner solve would slow Newton
    down and make steps unrepeatable. NaN where it does not get there.
    """
    n = b.numel()
    size = torch.linalg.vector_norm(b).item()
    if size == 0.0:
        return torch.zeros_like(b)
    wanted = size * (1e-10 if b.dtype == torch.float64 else 1e-5)
    x, residual, norm = torch.zeros_like(b), b, size
    width = min(_RESTART, n)
    for _ in range(_CYCLES):
        if not math.isfinite(norm):
            break
        basis = b.new_zeros(width + 1, n)
        hessenberg = torch.zeros(width + 1, width, dtype=torch.float64)
        basis[0] = residual / norm
        used = 0
        for j in range(width):
            w = times(basis[j])
            for _twice in range(2):  # classical Gram-Schmidt, repeated: as stable as the modified one, in two products
                overlap = basis[: j + 1] @ w
                w = w - overlap @ basis[: j + 1]
                hessenberg[: j + 1, j] += overlap.to("cpu", torch.float64)
            length = torch.linalg.vector_norm(w).item()
            hessenberg[j + 1, j] = length
            used = j + 1
            if not math.isfinite(length):
                return torch.full_like(b, math.nan)
            left = _least(hessenberg[: used + 1, :used], norm)[1]
            if left <= wanted or length <= 1e-14 * norm:
                break
            basis[j + 1] = w / length
        weights, _left = _least(hessenberg[: used + 1, :used], norm)
        x = x + weights.to(b.device, b.dtype) @ basis[:used]
        residual = b - times(x)
        norm = torch.linalg.vector_norm(residual).item()
        if norm <= 10.0 * wanted:
            return x
    return torch.full_like(b, math.nan)


def _least(hessenberg: Tensor, norm: float) -> tuple[Tensor, float]:
    """The weights that make ``norm e_1 - H w`` smallest, and its length."""
    right = torch.zeros(hessenberg.shape[0], 1, dtype=torch.float64)
    right[0] = norm
    weights = torch.linalg.lstsq(hessenberg, right).solution
    return weights[:, 0], torch.linalg.vector_norm(right - hessenberg @ weights).item()
