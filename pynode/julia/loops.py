"""Statements as Julia loops over single elements, the form for arrays in main memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch

from pynode.julia.ir import (
    Expr,
    Gather,
    Literal,
    Load,
    Loop,
    Op,
    Reduce,
    Scalar,
    Scan,
    Shape,
    View,
    leaves,
    mapped,
    numel,
)

_START = {"+": "zero(T)", "*": "one(T)", "max": "T(-Inf)", "min": "T(Inf)", "|": "false", "&": "true"}
_WHOLE = {"+": "0", "*": "1", "max": "typemin(Int64)", "min": "typemax(Int64)", "|": "false", "&": "true"}
COMBINE = {
    "+": "{0} + {1}",
    "*": "{0} * {1}",
    "max": "maximum_({0}, {1})",
    "min": "minimum_({0}, {1})",
    "|": "{0} | {1}",
    "&": "{0} & {1}",
}


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


def bare(text: str) -> str:
    """Text without parentheses around all of it."""
    if not (text.startswith("(") and text.endswith(")")):
        return text
    depth = 0
    for i, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth == 0 and i < len(text) - 1:
            return text
    return text[1:-1]


def collapsed(shape: Shape, views: Sequence[Shape], apart: Sequence[bool]) -> tuple[Shape, list[Shape], list[bool]]:
    """The shape with dimensions merged where all strides allow it; ``apart`` tells two kinds that never merge."""
    sizes: list[int] = []
    strides: list[list[int]] = [[] for _ in views]
    kinds: list[bool] = []
    for d, n in enumerate(shape):
        if n == 1:
            continue
        fits = sizes and kinds[-1] == apart[d] and all(s[-1] == v[d] * n for s, v in zip(strides, views, strict=True))
        if fits:
            sizes[-1] *= n
            for s, v in zip(strides, views, strict=True):
                s[-1] = v[d]
        else:
            sizes.append(n)
            kinds.append(apart[d])
            for s, v in zip(strides, views, strict=True):
                s.append(v[d])
    return tuple(sizes), [tuple(s) for s in strides], kinds


class Nest:
    """Text of expressions inside nested loops, outermost loop first; the innermost variable counts from 1."""

    def __init__(self, sizes: Shape, strides: dict[int, Shape], names: Iterator[int]) -> None:
        self.sizes = sizes
        self._names = names
        self.strides = strides
        self.variables = [_NAMES[len(sizes) - 1 - d] for d in range(len(sizes))]
        self.inner: list[str] = []
        self._texts: dict[int, str] = {}
        self._uses: dict[int, int] = {}
        self._hoisted: dict[int, list[str]] = {}

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

    def count(self, expr: Expr) -> None:
        """Note the uses of an expression that will be rendered, so that what is used twice is computed once."""
        self._uses[id(expr)] = self._uses.get(id(expr), 0) + 1
        if self._uses[id(expr)] == 1:
            if isinstance(expr, Op):
                for arg in expr.args:
                    self.count(arg)
            elif isinstance(expr, Gather):
                for _, _, index in expr.terms:
                    self.count(index)

    def _depth(self, expr: Expr) -> int:
        """The number of outer loops within which the expression changes."""
        found = 0
        for leaf in leaves(expr):
            for d, s in enumerate(self.strides[id(leaf.view)]):
                if s:
                    found = max(found, d + 1)
        return found

    def text(self, expr: Expr, outer: int | None = None) -> str:
        """The expression's text; parts that do not change in the inner loops are put before these."""
        if id(expr) in self._texts:
            return self._texts[id(expr)]
        depth = self._depth(expr)
        full = len(self.sizes)
        if isinstance(expr, Literal):
            text = literal(expr.value, expr.dtype)
        elif isinstance(expr, Scalar):
            text = expr.name
        elif isinstance(expr, Load):
            text = self.index(expr.view)
        elif isinstance(expr, Gather):
            text = self.index(expr.view, self.shift(expr.terms, depth))
        else:
            text = expr.template.format(*(self.text(arg, depth) for arg in expr.args))
        hoist = depth < (full if outer is None else outer) and not isinstance(expr, Literal | Scalar)
        hoist = hoist and any(True for _ in leaves(expr))
        shared = isinstance(expr, Op | Gather) and self._uses.get(id(expr), 0) > 1
        if (hoist and depth < full) or shared:
            name = f"x{next(self._names)}"
            line = f"{name} = {bare(text)}"
            if depth < full:
                self._hoisted.setdefault(depth, []).append(line)
            else:
                self.inner.append(line)
            text = name
        self._texts[id(expr)] = text
        return text

    def shift(self, terms: Sequence[tuple[int, int, Expr]], outer: int | None = None) -> str:
        """What indices add to an address."""
        parts = [(f"{s} * " if s != 1 else "") + f"wrapped({bare(self.text(i, outer))}, {n})" for s, n, i in terms]
        return "".join(" + " + part for part in parts)

    def hoisted(self, depth: int) -> list[str]:
        """What is computed inside ``depth`` loops, before the next one or before the body."""
        return [*self._hoisted.get(depth, []), *(self.inner if depth == len(self.sizes) else [])]

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
        for line in [*before.get(depth, []), *self._hoisted.get(depth, []), *self.inner, *body]:
            yield "    " * depth + line
        for d in reversed(range(depth)):
            yield "    " * d + "end"
            for line in after.get(d, []):
                yield "    " * d + line


_NAMES = ["i", "j", "k", "l", "m", "n", "o", "q", "r", "s_", "v", "w_", "x_", "y_", "z_"]


def views_of(exprs: Sequence[Expr]) -> list[View]:
    return list({id(leaf.view): leaf.view for expr in exprs for leaf in leaves(expr)}.values())


def _gathers(exprs: Sequence[Expr]) -> bool:
    return any(isinstance(leaf, Gather) for expr in exprs for leaf in leaves(expr))


def loop_lines(loop: Loop, names: Iterator[int]) -> list[str]:
    """Stores, element by element."""
    exprs = [expr for store in loop.stores for expr in store.exprs]
    views = [*views_of(exprs), *(store.into for store in loop.stores)]
    sizes, strides, _ = collapsed(loop.shape, [v.strides for v in views], [False] * len(loop.shape))
    if 0 in loop.shape:
        return []
    nest = Nest(sizes, {id(v): s for v, s in zip(views, strides, strict=True)}, names)
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


def _unrolled(reduce: Reduce) -> tuple[Shape, list[bool], list[tuple[View, Expr]]]:
    """Short dimensions that are kept, written out: one result for each index, all in the same loops."""
    parts = [(reduce.into, reduce.expr)]
    shape, reduced = list(reduce.shape), list(reduce.reduced)
    for d in reversed(range(len(shape))):
        n = shape[d]
        if n == 1 or (not reduced[d] and n <= 4 // len(parts) and numel(shape) > 8 * n):
            parts = [
                (part.through(look), mapped(expr, lambda v, look=look: v.through(look)))  # type: ignore[misc]
                for part, expr in parts
                for look in [partial(torch.select, dim=d, index=k) for k in range(n)]
            ]
            del shape[d], reduced[d]
    return tuple(shape), reduced, parts


def reduce_lines(reduce: Reduce, names: Iterator[int]) -> list[str]:
    """A reduction: accumulators where the innermost loop is reduced, else sums in place."""
    combine = COMBINE[reduce.kind]
    start = start_of(reduce.kind, reduce.into.buffer.dtype)
    if 0 in reduce.shape:
        kept = tuple(1 if g else n for n, g in zip(reduce.shape, reduce.reduced, strict=True))
        return _filled(View(reduce.into.buffer, kept, reduce.into.strides, reduce.into.offset), start)
    shape, reduced, parts = _unrolled(reduce)
    exprs, intos = [expr for _, expr in parts], [into for into, _ in parts]
    views = [*views_of(exprs), *intos]
    order = _ordered(shape, views, reduced)
    turned = [tuple(v.strides[d] for d in order) for v in views]
    sizes, strides, gone = collapsed(tuple(shape[d] for d in order), turned, [reduced[d] for d in order])
    nest = Nest(sizes, {id(v): s for v, s in zip(views, strides, strict=True)}, names)
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
    fill = [line for into in intos for line in _filled(_once(into, reduced), start)]
    body = [f"{nest.index(v)} = {combine.format(nest.index(v), text)}" for v, text in zip(intos, texts, strict=True)]
    return [*fill, *_checked(list(nest.lines(body, {}, {}, "" if indirect else "@simd ivdep")), indirect)]


def _once(into: View, reduced: Sequence[bool]) -> View:
    shape = tuple(1 if gone else n for n, gone in zip(into.shape, reduced, strict=True))
    return View(into.buffer, shape, into.strides, into.offset)


def _outer_index(view: View, strides: Shape, variables: list[str]) -> str:
    buffer, base = view.buffer.resolved()
    parts = [v if s == 1 else f"{s}{v}" for v, s in zip(reversed(variables), reversed(strides), strict=True) if s]
    return f"{buffer.name}[{' + '.join([*parts, str(base + view.offset + 1)])}]"


def _filled(view: View, start: str) -> list[str]:
    sizes, (strides,), _ = collapsed(view.shape, [view.strides], [False] * len(view.shape))
    nest = Nest(sizes, {id(view): strides}, iter(()))
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
    nest = Nest(sizes, {id(v): s for v, s in zip(views, strides, strict=True)}, names)
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
