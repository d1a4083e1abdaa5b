"""Reductions and matrix products."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from pynode.capture.ir import Assign, Literal, Load, MatMul, Op, Reduce, Value, View, contiguous, cost, numel
from pynode.capture.lower import Lowering, arguments, note_of, rule
from pynode.capture.lower_pointwise import converted, plus, result_dtype, times

aten = torch.ops.aten

#: Inner products of at most this many terms are written out.
_UNROLLED = 4
#: Products with fewer multiplications are loops: calling BLAS costs more.
_SMALL = 6_000


def reduced(
    low: Lowering, kind: str, value: Value, dims: list[int], keep: bool, dtype: torch.dtype, note: str
) -> Value:
    """The value combined over dimensions."""
    rank = len(value.shape)
    dims = sorted({d % rank for d in dims}) if rank else []
    gone = tuple(d in dims for d in range(rank))
    kept = tuple(1 if g else n for n, g in zip(value.shape, gone, strict=True))
    into = low.fresh(kept, dtype)
    if not dims or numel(kept) == numel(value.shape):
        low.write(into, Value(converted(low.seen(value, lambda x: x.view(kept)).expr, dtype), kept), note)
    else:
        strides = tuple(0 if g else s for s, g in zip(contiguous(kept), gone, strict=True))
        spread = View(into.buffer, value.shape, strides)
        low.statements.append(Reduce(kind, value.shape, spread, gone, converted(value.expr, dtype), note))
    result = low.loaded(into)
    if keep:
        return result
    shape = tuple(n for n, g in zip(value.shape, gone, strict=True) if not g)
    return low.seen(result, lambda x: x.view(shape))


_KINDS: dict[Any, str] = {
    aten.sum: "+",
    aten.mean: "+",
    aten.amax: "max",
    aten.amin: "min",
    aten.max: "max",
    aten.min: "min",
    aten.prod: "*",
    aten.any: "|",
    aten.all: "&",
}


@rule(
    aten.sum.dim_IntList,
    aten.sum.default,
    aten.mean.dim,
    aten.mean.default,
    aten.amax.default,
    aten.amin.default,
    aten.max.default,
    aten.min.default,
    aten.prod.default,
    aten.prod.dim_int,
    aten.any.default,
    aten.any.dim,
    aten.any.dims,
    aten.all.default,
    aten.all.dim,
)
def _reduce(low: Lowering, node: fx.Node) -> Value:
    target: Any = node.target
    packet = target.overloadpacket
    value = low.value(arguments(node)[0])
    dims: Any = arguments(node)[1] if len(arguments(node)) > 1 else None
    dims = [dims] if isinstance(dims, int) else list(dims or range(len(value.shape)))
    keep = bool(arguments(node)[2]) if len(arguments(node)) > 2 else bool(node.kwargs.get("keepdim", False))
    dtype = result_dtype(low, node)
    found = reduced(low, _KINDS[packet], value, dims, keep, dtype, note_of(node))
    if packet is aten.mean:
        count = numel([value.shape[d] for d in dims]) if value.shape else 1
        return Value(Op("({0} / {1})", (found.expr, Literal(float(count), dtype)), dtype, 4), found.shape)
    return found


def matrix(low: Lowering, value: Value) -> View:
    """A view of a matrix that BLAS takes: one stride is 1, the other is not shorter than a column."""
    view = low.in_memory(value)
    (rows, columns), (s, t) = view.shape, view.strides
    as_is = (t == 1 or columns == 1) and (s >= columns or rows == 1)
    turned = (s == 1 or rows == 1) and (t >= rows or columns == 1)
    if not (as_is or turned):
        view = low.kept(value).view or view
    return view


def product(low: Lowering, a: Value, b: Value, note: str) -> Value:
    """The product of matrices (m, k) and (k, n)."""
    (m, k), n = a.shape, b.shape[1]
    dtype = a.dtype
    if k == 0:
        return Value(Literal(0, dtype), (m, n))
    if k <= _UNROLLED or m * n * k <= _SMALL:
        a, b = (x if cost(x.expr) <= 2 and _direct(x) else low.loaded(low.in_memory(x)) for x in (a, b))
        if k <= _UNROLLED:
            terms = []
            for i in range(k):
                x = low.seen(a, lambda v, i=i: v.narrow(1, i, 1).expand(m, n)).expr  # type: ignore[misc]
                y = low.seen(b, lambda v, i=i: v.narrow(0, i, 1).expand(m, n)).expr  # type: ignore[misc]
                terms.append(times(x, y))
            total = terms[0]
            for term in terms[1:]:
                total = plus(total, term)
            return Value(total, (m, n))
        into = low.fresh((m, n), dtype)
        x = low.seen(a, lambda v: v.unsqueeze(1).expand(m, n, k)).expr
        y = low.seen(b, lambda v: v.t().unsqueeze(0).expand(m, n, k)).expr
        spread = View(into.buffer, (m, n, k), (n, 1, 0))
        low.statements.append(Reduce("+", (m, n, k), spread, (False, False, True), times(x, y), note))
        return low.loaded(into)
    into = low.fresh((m, n), dtype)
    low.statements.append(MatMul(into, matrix(low, a), matrix(low, b), False, note))
    return low.loaded(into)


def _direct(value: Value) -> bool:
    return isinstance(value.expr, Load | Op)


@rule(aten.mm.default)
def _mm(low: Lowering, node: fx.Node) -> Value:
    return product(low, low.value(arguments(node)[0]), low.value(arguments(node)[1]), note_of(node))


@rule(aten.bmm.default)
def _bmm(low: Lowering, node: fx.Node) -> Value:
    a, b = low.value(arguments(node)[0]), low.value(arguments(node)[1])
    (count, m, k), n = a.shape, b.shape[2]
    dtype = a.dtype
    if k == 0 or count == 0:
        return Value(Literal(0, dtype), (count, m, n))
    into = low.fresh((count, m, n), dtype)
    if m * n * k <= _SMALL:
        a, b = (x if cost(x.expr) <= 2 else low.loaded(low.in_memory(x)) for x in (a, b))
        shape = (count, m, n, k)
        x = low.seen(a, lambda v: v.unsqueeze(2).expand(shape)).expr
        y = low.seen(b, lambda v: v.transpose(1, 2).unsqueeze(1).expand(shape)).expr
        spread = View(into.buffer, shape, (m * n, n, 1, 0))
        low.statements.append(Reduce("+", shape, spread, (False, False, False, True), times(x, y), note_of(node)))
        return low.loaded(into)
    va, vb = low.in_memory(a), low.in_memory(b)
    for i in range(count):
        each = [low.loaded(v.through(lambda x, i=i: x.select(0, i))) for v in (va, vb)]  # type: ignore[misc]
        target = into.through(lambda x, i=i: x.select(0, i))  # type: ignore[misc]
        low.statements.append(MatMul(target, matrix(low, each[0]), matrix(low, each[1]), False, note_of(node)))
    return low.loaded(into)


__all__ = ["Assign", "matrix", "product", "reduced"]
