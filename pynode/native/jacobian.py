"""The Jacobian ``df/dy`` of a field on flat vectors: dense, or as products with vectors only. Never on a tape."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pynode.errors import FieldError, InputError, UnsupportedError, explain
from pynode.evaluations import changed_input, located, packed, versions, written
from pynode.inference_tensors import explained
from pynode.native.vmap_refusal import refuses

if TYPE_CHECKING:
    from pynode.problem import Field

Product = Callable[[Tensor], Tensor]

#: Most numbers in the states of the rows that are pulled back together.
_TOGETHER = 2**24


def dense_jacobian(field: Field, t: Tensor, y: Tensor) -> Tensor:
    """``df/dy`` (n, n) at time ``t`` (0-dim) and state ``y`` (n,): entry (i, j) is ``df_i/dy_j``.

    By the user's ``jac(t, y, *args)`` where there is one, otherwise one evaluation of ``f`` and a pullback for each of
    its n rows: all at once under ``torch.vmap``, one after the other where that refuses ``f``. Counted as one
    ``njac``, not in ``nfe`` or ``nvjp``.

    Raises
    ------
    InputError
        If ``jac`` does not return a tensor of n x n numbers of the state's dtype and device.
    """
    field.counts.njac += 1
    if field.jac is not None:
        with torch.no_grad():
            return _checked(field.jac(t.detach(), field.layout.unpack(y.detach()), *field.args), field, y)
    y, dy = _evaluated(field, t, y)
    n = y.numel()
    if not dy.requires_grad:  # a field of time alone
        return y.new_zeros(n, n)

    def row(seed: Tensor) -> Tensor:
        (pulled,) = torch.autograd.grad(dy, [y], seed, retain_graph=True, allow_unused=True, materialize_grads=True)
        found: Tensor = pulled
        return found

    if field.batches:
        try:
            chunk = max(1, _TOGETHER // n)
            seeds = torch.eye(n, dtype=dy.dtype, device=dy.device)
            with _unwritten(t):
                return torch.vmap(row, chunk_size=chunk if chunk < n else None)(seeds).detach()
        except Exception as error:
            # An operation whose backward torch.vmap cannot batch. Row by row raises again whatever f itself raised.
            if not refuses(error):
                raise
            field.batches = False
    rows = torch.empty(n, n, dtype=dy.dtype, device=dy.device)
    seed = torch.zeros_like(dy)
    with _unwritten(t):
        for i in range(n):
            seed[i] = 1.0
            rows[i] = row(seed)
            seed[i] = 0.0
    return rows


def jacobian_products(field: Field, t: Tensor, y: Tensor) -> tuple[Product, Product]:
    """``v -> df/dy v`` and ``a -> a df/dy`` at one ``(t, y)``, for vectors (n,): one evaluation of ``f`` for all of
    them, counted as one ``njac``, and each product one ``nvjp``.

    The first one is a pullback through the pullback, which asks that ``f`` be twice differentiable by torch.
    """
    if field.jac is not None:
        matrix = dense_jacobian(field, t, y)
        return matrix.mv, matrix.t().mv
    field.counts.njac += 1
    y, dy = _evaluated(field, t, y)
    if not dy.requires_grad:
        return torch.zeros_like, torch.zeros_like
    # The pullback is linear in u: its derivative by u, pulled back, is the product wanted, whatever u is.
    with torch.enable_grad(), _unwritten(t):
        u = torch.zeros_like(dy).requires_grad_()
        (pulled,) = torch.autograd.grad(dy, [y], u, create_graph=True, allow_unused=True, materialize_grads=True)

    def forward(v: Tensor) -> Tensor:
        field.counts.nvjp += 1
        if not pulled.requires_grad:
            return torch.zeros_like(v)
        with _unwritten(t):
            (found,) = torch.autograd.grad(pulled, [u], v, retain_graph=True, allow_unused=True, materialize_grads=True)
        return _plain(found)

    def backward(a: Tensor) -> Tensor:
        field.counts.nvjp += 1
        with _unwritten(t):
            (found,) = torch.autograd.grad(dy, [y], a, retain_graph=True, allow_unused=True, materialize_grads=True)
        return _plain(found)

    return forward, backward


@contextlib.contextmanager
def _unwritten(t: Tensor) -> Iterator[None]:
    """Raise FieldError where the evaluation at ``t`` wrote into what its Jacobian needs."""
    try:
        yield
    except RuntimeError as error:
        said = written(error, "an evaluation of f for a Jacobian")
        if said is None:
            raise
        found = FieldError(said)
        located(found, t)
        raise found from error


def no_jacobian(what: str) -> UnsupportedError:
    """What a field raises that an implicit method cannot integrate."""
    return UnsupportedError(
        explain(
            f"an implicit method needs the Jacobian of {what}, which is not offered",
            "an explicit method there, or a sensitivity algorithm without it",
            "use CheckpointedAdjoint(), GaussAdjoint() or QuadratureAdjoint(), or give the adjoint algorithm=Tsit5()",
        )
    )


def _evaluated(field: Field, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A state that asks for a gradient, and ``f`` there; not counted in ``nfe``."""
    with torch.inference_mode(False), torch.enable_grad(), explained("a Jacobian"):
        y = y.detach().clone().requires_grad_()
        before = versions(y)
        dy = packed(field.layout, t, field.f(t.detach().clone(), field.layout.unpack(y), *field.args))
        if versions(y) != before:
            error = changed_input()
            located(error, t)
            raise error
        return y, dy


def _plain(x: Tensor) -> Tensor:
    return x.detach()


def _checked(found: object, field: Field, y: Tensor) -> Tensor:
    n = y.numel()
    if not isinstance(found, Tensor) or found.numel() != n * n or found.dtype != y.dtype or found.device != y.device:
        what = (
            f"shape {tuple(found.shape)}, {found.dtype} on {found.device}"
            if isinstance(found, Tensor)
            else type(found).__name__
        )
        raise InputError(
            explain(
                f"jac returned {what}",
                f"a tensor of {n} x {n} numbers df_i/dy_j, {y.dtype} on {y.device}",
                "return df/dy in the state's dtype (shape (*y.shape, *y.shape) is fine), or drop jac=: torch finds it",
            )
        )
    return found.detach().reshape(n, n)
