"""Operators that look at memory in another way, and those that lay pieces side by side."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from pynode.capture.ir import Buffer, Gather, Literal, Load, Padded, Value, View, contiguous, mapped, numel
from pynode.capture.lower import Lowering, arguments, broadcast, common_shape, note_of, rule

aten = torch.ops.aten


@rule(
    aten.expand.default,
    aten.permute.default,
    aten.transpose.int,
    aten.t.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.diagonal.default,
    aten.unfold.default,
)
def _view(low: Lowering, node: fx.Node) -> Value:
    source, *rest = arguments(node)
    target: Any = node.target
    return low.seen(low.value(source), lambda x: target(x, *rest, **node.kwargs), note_of(node))


@rule(aten.view.default, aten._unsafe_view.default, aten.reshape.default)
def _reshape(low: Lowering, node: fx.Node) -> Value:
    shape = list(node.meta["val"].shape)
    return low.seen(low.value(arguments(node)[0]), lambda x: x.view(shape), note_of(node))


@rule(
    aten.clone.default,
    aten.alias.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
    aten.contiguous.default,
)
def _same(low: Lowering, node: fx.Node) -> Value:
    return low.value(arguments(node)[0])


@rule(aten.copy.default)
def _copy(low: Lowering, node: fx.Node) -> Value:
    value = low.value(arguments(node)[1])
    return repeated(low, value, tuple(node.meta["val"].shape))


def repeated(low: Lowering, value: Value, shape: tuple[int, ...]) -> Value:
    """As broadcast, computing dear expressions once."""
    if value.shape == shape:
        return value
    return low.seen(value, lambda x: x.expand(shape))


@rule(aten.as_strided.default)
def _as_strided(low: Lowering, node: fx.Node) -> Value:
    # The strides speak of the memory that torch's input has: contiguous, or the trace's.
    source, size, stride, *rest = arguments(node)
    assert isinstance(source, fx.Node)
    seen: Tensor = source.meta["val"]
    value = low.value(source)
    memory = low.kept(value) if not seen.is_contiguous() else value
    view = low.in_order(memory)
    offset = view.offset + (int(rest[0]) if rest and rest[0] else 0)
    return low.loaded(View(view.buffer, tuple(size), tuple(stride), offset))


@rule(aten.flip.default)
def _flip(low: Lowering, node: fx.Node) -> Value:
    value = low.value(arguments(node)[0])
    dims = {d % len(value.shape) for d in arguments(node)[1]}

    def backward(view: View) -> View:
        strides, offset = list(view.strides), view.offset
        for d in dims:
            offset += strides[d] * (view.shape[d] - 1)
            strides[d] = -strides[d]
        return View(view.buffer, view.shape, tuple(strides), offset)

    return low.kept(Value(mapped(value.expr, backward), value.shape), note_of(node))


@rule(aten.cat.default)
def _cat(low: Lowering, node: fx.Node) -> Value:
    pieces = [low.value(x) for x in arguments(node)[0]]
    pieces = [x for x in pieces if x.shape != (0,)]
    shape = tuple(node.meta["val"].shape)
    dim = int(arguments(node)[1]) % len(shape) if len(arguments(node)) > 1 else 0
    into = low.fresh(shape, node.meta["val"].dtype)
    start = 0
    for piece in pieces:
        length = piece.shape[dim]
        low.write(into.through(lambda x, s=start, n=length: x.narrow(dim, s, n)), piece, note_of(node))  # type: ignore[misc]
        start += length
    return low.loaded(into)


@rule(aten.constant_pad_nd.default)
def _pad(low: Lowering, node: fx.Node) -> Value:
    value = low.value(arguments(node)[0])
    amounts: Any = arguments(node)[1]
    number: Any = arguments(node)[2] if len(arguments(node)) > 2 else 0
    shape = tuple(node.meta["val"].shape)
    into = low.fresh(shape, value.dtype)
    low.write(into, Value(Literal(number, value.dtype), ()), note_of(node))
    inner, target = value, into
    for k in range(len(amounts) // 2):
        dim = len(shape) - 1 - k
        before, after = amounts[2 * k], amounts[2 * k + 1]
        cut = (max(-before, 0), inner.shape[dim] - max(-before, 0) - max(-after, 0))
        inner = low.seen(inner, lambda x, d=dim, c=cut: x.narrow(d, *c))  # type: ignore[misc]
        place = (max(before, 0), cut[1])
        target = target.through(lambda x, d=dim, c=place: x.narrow(d, *c))  # type: ignore[misc]
    low.write(target, inner, note_of(node))
    return low.loaded(into)


@rule(aten.slice_scatter.default, aten.select_scatter.default, aten.diagonal_scatter.default)
def _scatter_view(low: Lowering, node: fx.Node) -> Value | Padded:
    base, piece = low.value(arguments(node)[0]), low.value(arguments(node)[1])
    target: Any = node.target
    look = {
        aten.slice_scatter.default: aten.slice.Tensor,
        aten.select_scatter.default: aten.select.int,
        aten.diagonal_scatter.default: aten.diagonal.default,
    }[target]

    def part(x: Tensor) -> Tensor:
        seen: Tensor = look(x, *arguments(node)[2:], **node.kwargs)
        return seen

    if isinstance(base.expr, Literal) and base.expr.value == 0 and all(_adds(user) for user in node.users):
        return Padded(piece, part, base.shape)
    into = low.fresh(base.shape, base.dtype)
    low.write(into, base, note_of(node))
    low.write(into.through(part), piece, note_of(node))
    return low.loaded(into)


def _adds(node: fx.Node) -> bool:
    """Whether it is a sum of two tensors of one shape."""
    if node.target is not aten.add.Tensor or node.kwargs or len(node.args) != 2:
        return False
    return all(isinstance(x, fx.Node) and x.meta["val"].shape == node.meta["val"].shape for x in node.args)


def indirect(low: Lowering, value: Value, indices: list[Value | None], shape: tuple[int, ...], start: int) -> Value:
    """``value[indices]`` over the broadcast shape of the indices, which stands at dimension ``start``."""
    view = low.in_memory(value)
    index_shape = common_shape(indices)
    strides: list[int] = []
    terms = []
    for d, stride in enumerate(view.strides):
        index = indices[d] if d < len(indices) else None
        if index is None:
            strides.append(stride)
            continue
        spread = broadcast(index, index_shape)
        before, after = start, len(shape) - start - len(index_shape)
        placed = low.seen(spread, lambda x, b=before, a=after: x.view((1,) * b + index_shape + (1,) * a).expand(shape))  # type: ignore[misc]
        terms.append((stride, view.shape[d], placed.expr))
    strides[start:start] = [0] * len(index_shape)
    return Value(Gather(View(view.buffer, shape, tuple(strides), view.offset), tuple(terms), value.dtype), shape)


@rule(aten.index.Tensor)
def _index(low: Lowering, node: fx.Node) -> Value:
    indices: Any = arguments(node)[1]
    values = [None if i is None else low.value(i) for i in indices]
    where = [d for d, i in enumerate(values) if i is not None]
    together = where == list(range(where[0], where[-1] + 1))
    shape = tuple(node.meta["val"].shape)
    return indirect(low, low.value(arguments(node)[0]), values, shape, where[0] if together else 0)


@rule(aten.gather.default)
def _gather(low: Lowering, node: fx.Node) -> Value:
    value, index = low.value(arguments(node)[0]), low.value(arguments(node)[2])
    if not value.shape:
        return value
    view = low.in_memory(value)
    dim = int(arguments(node)[1]) % len(value.shape)
    strides = tuple(0 if d == dim else s for d, s in enumerate(view.strides))
    term = (view.strides[dim], view.shape[dim], index.expr)
    return Value(Gather(View(view.buffer, index.shape, strides, view.offset), (term,), value.dtype), index.shape)


def flat(buffer: Buffer, shape: tuple[int, ...]) -> Load:
    """All of a buffer in a shape."""
    assert numel(shape) == buffer.size
    return Load(View(buffer, shape, contiguous(shape)), buffer.dtype)
