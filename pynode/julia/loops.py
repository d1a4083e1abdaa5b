"""Statements as Julia loops over single elements, the form for arrays in main memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from pynode.capture.ir import Expr, Gather, Literal, Load, Loop, Reduce, Scalar, Scan, Shape, View, leaves
from pynode.capture.nests import COMBINE, Nest, bare, collapsed, unrolled, views_of, without

_START = {"+": "zero(T)", "*": "one(T)", "max": "T(-Inf)", "min": "T(Inf)", "|": "false", "&": "true"}
_WHOLE = {"+": "0", "*": "1", "max": "typemin(Int64)", "min": "typemax(Int64)", "|": "false", "&": "true"}


def start_of(kind: str, dtype: torch.dtype) -> str:
    """What a reduction starts from."""
    return _START[kind] if dtype.is_floating_point else _WHOLE[kind]


def literal(value: float | int | bool, dtype: torch.dtype) -> str:
    """A number as Julia source."""
    if dtype == torch.bool:
        return "true" if value else "false"
    if not dtype.is_floating_point:
        return str(int(value))
    single = dtype == torch.float32
    number = float(np.float32(value)) if single else float(value)
    if math.isnan(number):
        return "T(NaN)"
    if math.isinf(number):
        return "T(Inf)" if number > 0 else "T(-Inf)"
    text = str(np.float32(value)) if single else repr(number)
    mantissa, _, exponent = text.partition("e")
    if single:
        text = f"{mantissa}f{int(exponent or 0)}"
    elif exponent:
        text = f"{mantissa}e{int(exponent)}"
    return f"({text})" if text.startswith("-") else text


class JuliaNest(Nest):
    """Nested loops in Julia; the innermost variable counts from 1."""

    def index(self, view: View, extra: str = "") -> str:
        buffer, base = view.buffer.resolved()
        strides = self.strides[id(view)]
        constant = base + view.offset + 1 - (strides[-1] if strides else 0)
        parts = [
            v if s == 1 else f"{s}{v}" for v, s in zip(reversed(self.variables), reversed(strides), strict=True) if s
        ]
        text = " + ".join(parts).replace("+ -", "- ")
        text += extra
        if not text:
            return f"{buffer.name}[{constant}]"
        if constant:
            text += f" {'+' if constant > 0 else '-'} {abs(constant)}"
        return f"{buffer.name}[{text.removeprefix(' + ')}]"

    def _rendered(self, expr: Expr, depth: int) -> str:
        if isinstance(expr, Literal):
            return literal(expr.value, expr.dtype)
        if isinstance(expr, Scalar):
            return expr.name
        if isinstance(expr, Load):
            return self.index(expr.view)
        if isinstance(expr, Gather):
            return self.index(expr.view, self.shift(expr.terms, depth))
        return expr.template.format(*(self.text(arg, depth) for arg in expr.args))

    def _line(self, name: str, text: str, dtype: torch.dtype) -> str:
        return f"{name} = {text}"

    def shift(self, terms: Sequence[tuple[int, int, Expr]], outer: int | None = None) -> str:
        """What indices add to an address."""
        parts = [(f"{s} * " if s != 1 else "") + f"wrapped({bare(self.text(i, outer))}, {n})" for s, n, i in terms]
        return "".join(" + " + part for part in parts)

    def hoisted(self, depth: int) -> list[str]:
        """What is computed inside ``depth`` loops, before the next one or before the body."""
        return [*self._hoisted.get(depth, []), *(self._inner if depth == len(self.sizes) else [])]

    def lines(
        self, body: list[str], before: dict[int, list[str]], after: dict[int, list[str]], simd: str
    ) -> Iterator[str]:
        """The nest; ``before[d]`` and ``after[d]`` stand around the loop at depth d."""
        depth = len(self.sizes)
        for d in range(depth):
            pad = "    " * d
            for line in [*self._hoisted.get(d, []), *before.get(d, [])]:
                yield pad + line
            innermost = d == depth - 1
            span = f"1:{self.sizes[d]}" if innermost else f"0:{self.sizes[d] - 1}"
            yield f"{pad}{simd + ' ' if innermost and simd else ''}for {self.variables[d]} in {span}"
        for line in [*before.get(depth, []), *self._hoisted.get(depth, []), *self._inner, *body]:
            yield "    " * depth + line
        for d in reversed(range(depth)):
            yield "    " * d + "end"
            for line in after.get(d, []):
                yield "    " * d + line


def _gathers(exprs: Sequence[Expr]) -> bool:
    return any(isinstance(leaf, Gather) for expr in exprs for leaf in leaves(expr))


def loop_lines(loop: Loop, names: Iterator[int]) -> list[str]:
    """Stores, element by element."""
    exprs = [expr for store in loop.stores for expr in store.exprs]
    views = [*views_of(exprs), *(store.into for store in loop.stores)]
    sizes, strides, _ = collapsed(loop.shape, [v.strides for v in views], [False] * len(loop.shape))
    if 0 in loop.shape:
        return []
    nest = JuliaNest(sizes, {id(v): s for v, s in zip(views, strides, strict=True)}, names)
    for expr in exprs:
        nest.count(expr)
    body = []
    for store in loop.stores:
        text = nest.text(store.expr)
        place = nest.index(store.into, nest.shift(store.terms))
        body.append(f"{place} {'+=' if store.add else '='} {bare(text)}")
    indirect = _gathers(exprs) or any(store.terms for store in loop.stores)
    lines = list(nest.lines(body, {}, {}, "" if indirect else "@simd ivdep"))
    return _checked(lines, indirect)


def _checked(lines: list[str], indirect: bool) -> list[str]:
    if indirect:
        return lines  # indices are data: they stay checked
    if len(lines) == 1:
        return ["@inbounds " + lines[0]]
    if lines[0].lstrip().startswith("for ") or lines[0].startswith("@simd"):
        return ["@inbounds " + lines[0], *lines[1:]]
    return ["@inbounds begin", *("    " + line for line in lines), "end"]


def _ordered(shape: Shape, views: Sequence[View], reduced: Sequence[bool]) -> list[int]:
    """Dimensions, outermost first, so that the innermost loop is long and runs along memory."""

    def score(d: int) -> tuple[float, int]:
        along = sum(v.strides[d] in (0, 1) for v in views) / len(views)
        return (min(shape[d], 32) * (0.25 + along), d)

    inner = max(range(len(shape)), key=score)
    outer = [d for d in range(len(shape)) if d != inner]
    outer.sort(key=lambda d: (reduced[d], d))
    return [*outer, inner]


def reduce_lines(reduce: Reduce, names: Iterator[int]) -> list[str]:
    """A reduction: accumulators where the innermost loop is reduced, else sums in place."""
    combine = COMBINE[reduce.kind]
    start = start_of(reduce.kind, reduce.into.buffer.dtype)
    if 0 in reduce.shape:
        return _filled(reduce.into, without(reduce.shape, reduce.reduced), start)
    shape, reduced, parts = unrolled(reduce)
    exprs, intos = [expr for _, expr in parts], [into for into, _ in parts]
    views = [*views_of(exprs), *intos]
    order = _ordered(shape, views, reduced)
    turned = [tuple(v.strides[d] for d in order) for v in views]
    sizes, strides, gone = collapsed(tuple(shape[d] for d in order), turned, [reduced[d] for d in order])
    nest = JuliaNest(sizes, {id(v): s for v, s in zip(views, strides, strict=True)}, names)
    for expr in exprs:
        nest.count(expr)
    texts = [nest.text(expr) for expr in exprs]
    indirect = _gathers(exprs)
    if gone[-1]:
        first = gone.index(True)
        # Names of their own: Julia's loops share the function's variables.
        sums = [f"acc{next(names)}" for _ in parts]
        body = [f"{acc} = {combine.format(acc, text)}" for acc, text in zip(sums, texts, strict=True)]
        places = [_outer_index(v, s[:first], nest.variables[:first]) for v, s in zip(views, strides, strict=True)][
            -len(parts) :
        ]
        before = {first: [f"{acc} = {start}" for acc in sums]}
        after = {first: [f"{place} = {acc}" for place, acc in zip(places, sums, strict=True)]}
        simd = "@simd" if not indirect and reduce.kind in "+*" else ""
        return _checked(list(nest.lines(body, before, after, simd)), indirect)
    fill = [line for into in intos for line in _filled(into, without(into.shape, reduced), start)]
    body = [f"{nest.index(v)} = {combine.format(nest.index(v), text)}" for v, text in zip(intos, texts, strict=True)]
    return [*fill, *_checked(list(nest.lines(body, {}, {}, "" if indirect else "@simd ivdep")), indirect)]


def _outer_index(view: View, strides: Shape, variables: list[str]) -> str:
    buffer, base = view.buffer.resolved()
    parts = [v if s == 1 else f"{s}{v}" for v, s in zip(reversed(variables), reversed(strides), strict=True) if s]
    return f"{buffer.name}[{' + '.join([*parts, str(base + view.offset + 1)])}]"


def _filled(view: View, shape: Shape, start: str) -> list[str]:
    sizes, (strides,), _ = collapsed(shape, [view.strides], [False] * len(shape))
    nest = JuliaNest(sizes, {id(view): strides}, iter(()))
    body = [f"{nest.index(view)} = {start}"]
    return _checked(list(nest.lines(body, {}, {}, "@simd ivdep")), False)


def scan_lines(scan: Scan, names: Iterator[int]) -> list[str]:
    """A running sum or product: the innermost loop goes along the dimension."""
    if 0 in scan.shape:
        return []
    views = [*views_of([scan.expr]), scan.into]
    order = [*(d for d in range(len(scan.shape)) if d != scan.dim), scan.dim]
    shape = tuple(scan.shape[d] for d in order)
    turned = [tuple(v.strides[d] for d in order) for v in views]
    sizes, strides, along = collapsed(shape, turned, [d == scan.dim for d in order])
    nest = JuliaNest(sizes, {id(v): s for v, s in zip(views, strides, strict=True)}, names)
    nest.count(scan.expr)
    text = nest.text(scan.expr)
    acc = f"acc{next(names)}"
    body = [f"{acc} = {COMBINE[scan.kind].format(acc, text)}", f"{nest.index(scan.into)} = {acc}"]
    start = start_of(scan.kind, scan.into.buffer.dtype)
    before = {len(sizes) - (1 if along and along[-1] else 0): [f"{acc} = {start}"]}
    return _checked(list(nest.lines(body, before, {}, "")), _gathers([scan.expr]))


def element_lines(statement: Loop | Reduce | Scan, names: Iterator[int]) -> list[str]:
    """A statement as loops."""
    if isinstance(statement, Loop):
        return loop_lines(statement, names)
    return reduce_lines(statement, names) if isinstance(statement, Reduce) else scan_lines(statement, names)
