"""Statements as Julia loops over single elements, the form for arrays in main memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from pynode.julia.ir import Expr, Gather, Literal, Load, Loop, Op, Reduce, Scalar, Shape, View, leaves

_START = {"+": "zero(T)", "*": "one(T)", "max": "T(-Inf)", "min": "T(Inf)", "|": "false", "&": "true"}
_COMBINE = {
    "+": "{0} + {1}",
    "*": "{0} * {1}",
    "max": "maximum_({0}, {1})",
    "min": "minimum_({0}, {1})",
    "|": "{0} | {1}",
    "&": "{0} & {1}",
}


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
        parts = [v if s == 1 else f"{s}{v}" for v, s in zip(reversed(self.variables), reversed(strides), strict=True) if s]
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
            extra = "".join(
                f" + {s} * wrapped({bare(self.text(i, depth))}, {n})" if s != 1 else f" + wrapped({bare(self.text(i, depth))}, {n})"
                for s, n, i in expr.terms
            )
            text = self.index(expr.view, extra)
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

    def lines(self, body: list[str], before: dict[int, list[str]], after: dict[int, list[str]], simd: str) -> Iterator[str]:
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


def _views(exprs: Sequence[Expr]) -> list[View]:
    return list({id(leaf.view): leaf.view for expr in exprs for leaf in leaves(expr)}.values())


def _gathers(exprs: Sequence[Expr]) -> bool:
    return any(isinstance(leaf, Gather) for expr in exprs for leaf in leaves(expr))


def loop_lines(loop: Loop, names: Iterator[int]) -> list[str]:
    """Stores, element by element."""
    exprs = [store.expr for store in loop.stores]
    views = [*_views(exprs), *(store.into for store in loop.stores)]
    sizes, strides, _ = collapsed(loop.shape, [v.strides for v in views], [False] * len(loop.shape))
    if 0 in loop.shape:
        return []
    nest = Nest(sizes, {id(v): s for v, s in zip(views, strides, strict=True)}, names)
    for expr in exprs:
        nest.count(expr)
    body = []
    for store in loop.stores:
        text = nest.text(store.expr)
        body.append(f"{nest.index(store.into)} {'+=' if store.add else '='} {bare(text)}")
    indirect = _gathers(exprs)
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


def _ordered(reduce: Reduce) -> list[int]:
    """Dimensions, outermost first, so that the innermost loop runs along memory."""
    views = [*_views([reduce.expr]), reduce.into]
    rank = len(reduce.shape)

    def score(d: int) -> tuple[float, int]:
        if reduce.shape[d] == 1:
            return (-1.0, 0)
        good = [v.strides[d] in (0, 1) for v in views]
        return (sum(good) + (0.5 if reduce.reduced[d] else 0.0) + min(reduce.shape[d], 64) / 200, d)

    inner = max(range(rank), key=score)
    outer = [d for d in range(rank) if d != inner]
    outer.sort(key=lambda d: (reduce.reduced[d], d))
    return [*outer, inner]


def reduce_lines(reduce: Reduce, names: Iterator[int]) -> list[str]:
    """A reduction: an accumulator per element where the innermost loop is reduced, else sums in place."""
    views = [*_views([reduce.expr]), reduce.into]
    order = _ordered(reduce)
    shape = tuple(reduce.shape[d] for d in order)
    turned = [tuple(v.strides[d] for d in order) for v in views]
    sizes, strides, gone = collapsed(shape, turned, [reduce.reduced[d] for d in order])
    start = _START[reduce.kind]
    if 0 in reduce.shape:
        kept = tuple(1 if g else n for n, g in zip(reduce.shape, reduce.reduced, strict=True))
        return _filled(reduce.into, kept, start)
    nest = Nest(sizes, {id(v): s for v, s in zip(views, strides, strict=True)}, names)
    nest.count(reduce.expr)
    text = nest.text(reduce.expr)
    into = nest.index(reduce.into)
    indirect = _gathers([reduce.expr])
    if gone[-1]:
        first = gone.index(True)
        acc = f"acc{next(names)}"  # a name of its own: Julia's loops share the function's variables
        body = [f"{acc} = {_COMBINE[reduce.kind].format(acc, text)}"]
        before = {first: [f"{acc} = {start}"]}
        # Past the loop its variables are gone: the place is told by the outer ones.
        place = _outer_index(reduce.into, strides[-1][:first], nest.variables[:first])
        after = {first: [f"{place} {'+=' if reduce.add else '='} {acc}"]}
        simd = "@simd" if len(sizes) - first == 1 and not indirect and reduce.kind in "+*" else ""
        return _checked(list(nest.lines(body, before, after, simd)), indirect)
    kept = tuple(1 if g else n for n, g in zip(reduce.shape, reduce.reduced, strict=True))
    fill = [] if reduce.add else _filled(reduce.into, kept, start)
    body = [f"{into} = {_COMBINE[reduce.kind].format(into, text)}"]
    return [*fill, *_checked(list(nest.lines(body, {}, {}, "" if indirect else "@simd ivdep")), indirect)]


def _outer_index(view: View, strides: Shape, variables: list[str]) -> str:
    buffer, base = view.buffer.resolved()
    parts = [v if s == 1 else f"{s}{v}" for v, s in zip(reversed(variables), reversed(strides), strict=True) if s]
    return f"{buffer.name}[{' + '.join([*parts, str(base + view.offset + 1)])}]"


def _filled(into: View, shape: Shape, start: str) -> list[str]:
    view = View(into.buffer, shape, into.strides, into.offset)
    sizes, (strides,), _ = collapsed(shape, [view.strides], [False] * len(shape))
    nest = Nest(sizes, {id(view): strides}, iter(()))
    body = [f"{nest.index(view)} = {start}"]
    return _checked(list(nest.lines(body, {}, {}, "@simd ivdep")), False)
