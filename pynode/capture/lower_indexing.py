"""Writes to indexed places, and running sums."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from pynode.capture.ir import Expr, Literal, Load, Loop, Op, Scan, Store, Value, View
from pynode.capture.lower import Lowering, arguments, broadcast, common_shape, note_of, rule
from pynode.capture.lower_pointwise import converted, result_dtype
from pynode.capture.lower_sums import reduced
from pynode.capture.refusal import NotCapturable, source_line
from pynode.errors import explain

aten = torch.ops.aten


@rule(aten.index_put.default, aten._unsafe_index_put.default)
def _index_put(low: Lowering, node: fx.Node) -> Value:
    base, values = low.value(arguments(node)[0]), low.value(arguments(node)[2])
    given: Any = arguments(node)[1]
    indices = [None if i is None else low.value(i) for i in given]
    accumulate = bool(arguments(node)[3]) if len(arguments(node)) > 3 else False
    into = low.kept(base, note_of(node)).view
    assert into is not None
    if any(i is not None and i.dtype == torch.bool for i in indices):
        raise NotCapturable(
            explain(f"{node.target}{source_line(node)} has a mask", "indices", "write it with torch.where")
        )
    where = [d for d, i in enumerate(indices) if i is not None]
    together = where == list(range(where[0], where[-1] + 1))
    start = where[0] if together else 0
    index_shape = common_shape(indices)
    rest = [n for d, n in enumerate(base.shape) if d not in where]
    strides = [s for d, s in enumerate(into.strides) if d not in where]
    shape = (*rest[:start], *index_shape, *rest[start:])
    after = len(rest) - start
    terms: list[tuple[int, int, Expr]] = []
    for d in where:
        index = indices[d]
        assert index is not None
        spread = broadcast(index, index_shape)
        placed = low.seen(spread, lambda x: x.view((1,) * start + index_shape + (1,) * after).expand(shape))
        terms.append((into.strides[d], base.shape[d], placed.expr))
    place = View(into.buffer, shape, (*strides[:start], *[0] * len(index_shape), *strides[start:]), into.offset)
    expr = low.seen(values, lambda x: x.expand(shape)).expr
    low.statements.append(
        Loop(shape, [Store(place, converted(expr, base.dtype), accumulate, tuple(terms))], note_of(node))
    )
    return low.loaded(into)


@rule(aten.scatter_add.default, aten.scatter.src, aten.scatter.value)
def _scatter(low: Lowering, node: fx.Node) -> Value:
    base, index = low.value(arguments(node)[0]), low.value(arguments(node)[2])
    dim = int(arguments(node)[1]) % max(len(base.shape), 1)
    source = low.value(arguments(node)[3])
    into = low.kept(base, note_of(node)).view
    assert into is not None
    shape = index.shape
    if source.shape:
        for d, n in enumerate(shape):
            source = low.seen(source, lambda x, d=d, n=n: x.narrow(d, 0, n))  # type: ignore[misc]
    else:
        source = low.seen(source, lambda x: x.expand(shape))
    strides = tuple(0 if d == dim else s for d, s in enumerate(into.strides))
    place = View(into.buffer, shape, strides, into.offset)
    term = (into.strides[dim], base.shape[dim], index.expr)
    add = node.target is aten.scatter_add.default
    low.statements.append(Loop(shape, [Store(place, converted(source.expr, base.dtype), add, (term,))], note_of(node)))
    return low.loaded(into)


@rule(aten.cumsum.default)
def _cumsum(low: Lowering, node: fx.Node) -> Value:
    return _scan(low, node, "+")


@rule(aten.cumprod.default)
def _cumprod(low: Lowering, node: fx.Node) -> Value:
    return _scan(low, node, "*")


def _scan(low: Lowering, node: fx.Node, kind: str) -> Value:
    value = low.value(arguments(node)[0])
    dtype = result_dtype(low, node)
    if not value.shape:
        return Value(converted(value.expr, dtype), ())
    dim = int(arguments(node)[1]) % len(value.shape)
    into = low.fresh(value.shape, dtype)
    expr = converted(value.expr, dtype)
    low.statements.append(Scan(kind, value.shape, into, dim, expr, note_of(node)))
    return low.loaded(into)


@rule(aten.argmax.default, aten.argmin.default)
def _argmax(low: Lowering, node: fx.Node) -> Value:
    value = low.loaded(low.in_memory(low.value(arguments(node)[0])))
    dim: Any = arguments(node)[1] if len(arguments(node)) > 1 else None
    keep = bool(arguments(node)[2]) if len(arguments(node)) > 2 else False
    if dim is None:
        value, dim, keep = low.seen(value, lambda x: x.reshape(-1)), 0, False
    if not value.shape:
        return Value(Literal(0, torch.int64), ())
    dim %= len(value.shape)
    return _extreme(low, node, "max" if node.target is aten.argmax.default else "min", value, dim, keep)[1]


@rule(aten.max.dim, aten.min.dim)
def _max(low: Lowering, node: fx.Node) -> tuple[Value, Value]:
    value = low.loaded(low.in_memory(low.value(arguments(node)[0])))
    dim = int(arguments(node)[1]) % max(len(value.shape), 1)
    keep = bool(arguments(node)[2]) if len(arguments(node)) > 2 else False
    return _extreme(low, node, "max" if node.target is aten.max.dim else "min", value, dim, keep)


def _extreme(low: Lowering, node: fx.Node, kind: str, value: Value, dim: int, keep: bool) -> tuple[Value, Value]:
    """Extremes along a dimension, and the first index of each: the least of those whose value equals it."""
    if not value.shape:
        return value, Value(Literal(0, torch.int64), ())
    best = reduced(low, kind, value, [dim], True, value.dtype, note_of(node))
    count = low.fresh((value.shape[dim],), torch.int64)
    low.write(count, Value(Literal(1, torch.int64), count.shape), note_of(node))
    order = low.fresh(count.shape, torch.int64)
    low.statements.append(Scan("+", count.shape, order, 0, Load(count, torch.int64)))
    shape = value.shape
    after = len(shape) - dim - 1
    number = low.seen(low.loaded(order), lambda x: x.view((-1,) + (1,) * after).expand(shape)).expr
    at = broadcast(best, shape).expr
    same = Op("(({0} == {1}) | ({0} != {0}))", (value.expr, at), torch.bool, 2)
    place = Op("ifelse({0}, {1} - 1, typemax(Int64))", (same, number), torch.int64, 2)
    first = reduced(low, "min", Value(place, shape), [dim], keep, torch.int64, note_of(node))
    return (best if keep else low.seen(best, lambda x: x.squeeze(dim))), first
