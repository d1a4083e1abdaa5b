"""Statements as C++ loops.

Innermost loops carry ``omp simd``: their iterations are independent, or are a sum whose order does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pynode.capture.ir import Loop, Reduce, Scan, Shape, View
from pynode.capture.nests import COMBINE, bare, collapsed, unrolled, views_of, without
from pynode.cpp.nest import CppNest
from pynode.cpp.text import type_of

_START = {"+": "T(0)", "*": "T(1)", "max": "T(-INFINITY)", "min": "T(INFINITY)", "|": "false", "&": "true"}
_WHOLE = {"+": "0", "*": "1", "max": "INT64_MIN", "min": "INT64_MAX", "|": "false", "&": "true"}
SIMD = "#pragma omp simd"


@dataclass(eq=False)
class AddedReduce(Reduce):
    """A sum that is added to what is there."""


def _start(kind: str, into: View) -> str:
    return (_START if into.buffer.dtype.is_floating_point else _WHOLE)[kind]


def loop_lines(loop: Loop, names: Iterator[int]) -> list[str]:
    """Stores, element by element."""
    if 0 in loop.shape:
        return []
    exprs = [expr for store in loop.stores for expr in store.exprs]
    views = [*views_of(exprs), *(store.into for store in loop.stores)]
    sizes, strides, _ = collapsed(loop.shape, [v.strides for v in views], [False] * len(loop.shape))
    nest = CppNest(sizes, {id(v): s for v, s in zip(views, strides, strict=True)}, names)
    for expr in exprs:
        nest.count(expr)
    body = []
    for store in loop.stores:
        text = bare(nest.text(store.expr))
        if store.terms:
            shift, inside = nest.shift(store.terms)
            # A place outside: the nearest one becomes invalid.
            text = f"{inside} ? {text} : nothing_<{type_of(store.into.buffer.dtype)}>()"
            body.append(f"{nest.index(store.into, shift)} {'+=' if store.add else '='} {text};")
        else:
            body.append(f"{nest.index(store.into)} {'+=' if store.add else '='} {text};")
    scattered = any(store.terms for store in loop.stores)
    return list(nest.lines(body, {}, {}, "" if scattered else SIMD))


def _ordered(shape: Shape, reads: Sequence[View], into: View, reduced: Sequence[bool]) -> list[int]:
    """Dimensions, outermost first, so that the innermost loop is long and runs along the memory that is read."""

    def score(d: int) -> tuple[float, int]:
        along = sum(v.strides[d] in (0, 1) for v in reads) / max(len(reads), 1)
        kept = not reduced[d] and into.strides[d] == 1
        return (min(shape[d], 32) * (0.25 + along + 0.5 * kept), d)

    inner = max(range(len(shape)), key=score)
    outer = [d for d in range(len(shape)) if d != inner]
    outer.sort(key=lambda d: (reduced[d], d))
    return [*outer, inner]


def reduce_lines(reduce: Reduce, names: Iterator[int]) -> list[str]:
    """A reduction: accumulators where the innermost loop is reduced, else sums in place."""
    added = isinstance(reduce, AddedReduce)
    combine, start = COMBINE[reduce.kind], _start(reduce.kind, reduce.into)
    kind = type_of(reduce.into.buffer.dtype)
    if 0 in reduce.shape:
        return [] if added else _filled(reduce.into, without(reduce.shape, reduce.reduced), start)
    shape, reduced, parts = unrolled(reduce)
    exprs, intos = [expr for _, expr in parts], [into for into, _ in parts]
    views = [*views_of(exprs), *intos]
    order = _ordered(shape, views_of(exprs), intos[0], reduced)
    turned = [tuple(v.strides[d] for d in order) for v in views]
    sizes, strides, gone = collapsed(tuple(shape[d] for d in order), turned, [reduced[d] for d in order])
    nest = CppNest(sizes, {id(v): s for v, s in zip(views, strides, strict=True)}, names)
    for expr in exprs:
        nest.count(expr)
    texts = [nest.text(expr) for expr in exprs]
    if gone[-1]:
        first = gone.index(True)
        sums = [f"acc{next(names)}" for _ in parts]
        body = [f"{acc} = {combine.format(acc, text)};" for acc, text in zip(sums, texts, strict=True)]
        places = [nest.index(into, outer=first) for into in intos]
        before = {first: [f"{kind} {acc} = {start};" for acc in sums]}
        sign = "+=" if added else "="
        after = {first: [f"{place} {sign} {acc};" for place, acc in zip(places, sums, strict=True)]}
        simd = f"{SIMD} reduction({reduce.kind}:{', '.join(sums)})" if reduce.kind in "+*" else ""
        return list(nest.lines(body, before, after, simd))
    fill = [] if added else [line for into in intos for line in _filled(into, without(into.shape, reduced), start)]
    body = [f"{nest.index(v)} = {combine.format(nest.index(v), text)};" for v, text in zip(intos, texts, strict=True)]
    return [*fill, *nest.lines(body, {}, {}, SIMD)]


def _filled(view: View, shape: Shape, start: str) -> list[str]:
    sizes, (strides,), _ = collapsed(shape, [view.strides], [False] * len(shape))
    nest = CppNest(sizes, {id(view): strides}, iter(()))
    return list(nest.lines([f"{nest.index(view)} = {start};"], {}, {}, SIMD))


def scan_lines(scan: Scan, names: Iterator[int]) -> list[str]:
    """A running sum or product: the innermost loop goes along the dimension."""
    if 0 in scan.shape:
        return []
    views = [*views_of([scan.expr]), scan.into]
    order = [*(d for d in range(len(scan.shape)) if d != scan.dim), scan.dim]
    shape = tuple(scan.shape[d] for d in order)
    turned = [tuple(v.strides[d] for d in order) for v in views]
    sizes, strides, along = collapsed(shape, turned, [d == scan.dim for d in order])
    nest = CppNest(sizes, {id(v): s for v, s in zip(views, strides, strict=True)}, names)
    nest.count(scan.expr)
    text = nest.text(scan.expr)
    acc = f"acc{next(names)}"
    body = [f"{acc} = {COMBINE[scan.kind].format(acc, text)};", f"{nest.index(scan.into)} = {acc};"]
    kind = type_of(scan.into.buffer.dtype)
    before = {len(sizes) - (1 if along and along[-1] else 0): [f"{kind} {acc} = {_start(scan.kind, scan.into)};"]}
    return list(nest.lines(body, before, {}, ""))


def element_lines(statement: Loop | Reduce | Scan, names: Iterator[int]) -> list[str]:
    """A statement as loops, in a block of their own."""
    if isinstance(statement, Loop):
        lines = loop_lines(statement, names)
    else:
        lines = reduce_lines(statement, names) if isinstance(statement, Reduce) else scan_lines(statement, names)
    indented = [line if line.startswith("#") else "    " + line for line in lines]
    return ["{", *indented, "}"] if lines else []
