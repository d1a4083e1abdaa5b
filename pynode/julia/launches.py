"""Statements as kernels, the form for a GPU's arrays: one thread for each element.

A kernel is a function of a thread's number and of whole arrays, launched as a broadcast over the numbers, which every
GPU array of Julia runs without a package of its own. It may index single elements; the program around it never does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pynode.capture.ir import Expr, Loop, Reduce, Scan, Shape, View
from pynode.capture.nests import COMBINE, bare, collapsed, views_of
from pynode.julia.loops import JuliaNest, start_of

#: The function that the text of a launch calls.
LAUNCH = """
# `kernel(i, arrays...)` for i in 1:n, each in a thread of its own; what it returns does not matter
function launch!(kernel, n, arrays...)
    threads = view(done, 1:n)
    threads .= kernel.(1:n, map(Ref, arrays)...)
    return nothing
end
"""


@dataclass(frozen=True)
class Launch:
    """A kernel's text, and its number of threads."""

    lines: list[str]
    threads: int


NOTHING = Launch([], 0)


def launched(statement: Loop | Reduce | Scan, names: Iterator[int]) -> Launch:
    """A statement as a kernel."""
    if isinstance(statement, Loop):
        return loop_launch(statement, names)
    return reduce_launch(statement, names) if isinstance(statement, Reduce) else scan_launch(statement, names)


class _Kernel:
    """A nest whose first ``outer`` loops are threads."""

    def __init__(self, sizes: Shape, strides: Sequence[Shape], views: Sequence[View], outer: int, names: Iterator[int]):
        self.sizes, self.outer, self.views = sizes, outer, views
        self.nest = JuliaNest(sizes, {id(v): s for v, s in zip(views, strides, strict=True)}, names)

    def launch(self, body: list[str], before: Sequence[str] = (), after: Sequence[str] = ()) -> Launch:
        """``before`` and ``after`` stand around the inner loops."""
        arrays = ", ".join(dict.fromkeys(v.buffer.resolved()[0].name for v in self.views))
        threads = math.prod(self.sizes[: self.outer])
        inner = [*self._thread(), *self._nested(body, before, after)]
        lines = [f"launch!({threads}, {arrays}) do thread, {arrays}"]
        lines += ["    @inbounds begin", *("        " + x for x in inner), "    end", "    true", "end"]
        return Launch(lines, threads)

    def _thread(self) -> list[str]:
        """The thread's place in the outer loops; the innermost loop of all counts from 1, the others from 0."""
        lines, step = [], 1
        for d in reversed(range(self.outer)):
            place = "thread - 1" if step == 1 else f"(thread - 1) ÷ {step}"
            if d > 0:
                place = f"({place}) % {self.sizes[d]}"
            lines.append(f"{self.nest.variables[d]} = {place}" + (" + 1" if d == len(self.sizes) - 1 else ""))
            step *= self.sizes[d]
        return lines

    def _nested(self, body: list[str], before: Sequence[str], after: Sequence[str]) -> Iterator[str]:
        depth = len(self.sizes)
        for d in range(depth + 1):
            pad = "    " * max(d - self.outer, 0)
            if d == self.outer:
                yield from before
            yield from (pad + line for line in self.nest.hoisted(d))
            if self.outer <= d < depth:
                span = f"1:{self.sizes[d]}" if d == depth - 1 else f"0:{self.sizes[d] - 1}"
                yield f"{pad}for {self.nest.variables[d]} in {span}"
        yield from ("    " * (depth - self.outer) + line for line in body)
        for d in reversed(range(self.outer, depth)):
            yield "    " * (d - self.outer) + "end"
        yield from after


def loop_launch(loop: Loop, names: Iterator[int]) -> Launch:
    """Stores, a thread for each element; one thread for all where several elements may go to one place."""
    if 0 in loop.shape:
        return NOTHING
    exprs: list[Expr] = [expr for store in loop.stores for expr in store.exprs]
    views = [*views_of(exprs), *(store.into for store in loop.stores)]
    sizes, strides, _ = collapsed(loop.shape, [v.strides for v in views], [False] * len(loop.shape))
    meets = any(store.terms for store in loop.stores) or any(0 in s for s in strides[len(views) - len(loop.stores) :])
    kernel = _Kernel(sizes, strides, views, 0 if meets else len(sizes), names)
    for expr in exprs:
        kernel.nest.count(expr)
    body = []
    for store in loop.stores:
        text = kernel.nest.text(store.expr)
        place = kernel.nest.index(store.into, kernel.nest.shift(store.terms))
        body.append(f"{place} {'+=' if store.add else '='} {bare(text)}")
    return kernel.launch(body)


def reduce_launch(reduce: Reduce, names: Iterator[int]) -> Launch:
    """A reduction: a thread for each result."""
    start = start_of(reduce.kind, reduce.into.buffer.dtype)
    order = sorted(range(len(reduce.shape)), key=lambda d: (reduce.reduced[d], d))
    views = [*views_of([reduce.expr]), reduce.into]
    if 0 in reduce.shape:
        kept = tuple(1 if g else n for n, g in zip(reduce.shape, reduce.reduced, strict=True))
        sizes, strides, _ = collapsed(kept, [reduce.into.strides], [False] * len(kept))
        if 0 in sizes:
            return NOTHING
        kernel = _Kernel(sizes, strides, [reduce.into], len(sizes), names)
        return kernel.launch([f"{kernel.nest.index(reduce.into)} = {start}"])
    turned = [tuple(v.strides[d] for d in order) for v in views]
    gone = [reduce.reduced[d] for d in order]
    sizes, strides, apart = collapsed(tuple(reduce.shape[d] for d in order), turned, gone)
    kernel = _Kernel(sizes, strides, views, apart.count(False), names)
    kernel.nest.count(reduce.expr)
    text = kernel.nest.text(reduce.expr)
    acc = f"acc{next(names)}"
    combined = COMBINE[reduce.kind].format(acc, text)
    into = kernel.nest.index(reduce.into)  # has stride 0 in the inner loops
    return kernel.launch([f"{acc} = {combined}"], [f"{acc} = {start}"], [f"{into} = {acc}"])


def scan_launch(scan: Scan, names: Iterator[int]) -> Launch:
    """A running sum or product: a thread for each line along the dimension."""
    if 0 in scan.shape:
        return NOTHING
    order = [*(d for d in range(len(scan.shape)) if d != scan.dim), scan.dim]
    views = [*views_of([scan.expr]), scan.into]
    turned = [tuple(v.strides[d] for d in order) for v in views]
    sizes, strides, along = collapsed(tuple(scan.shape[d] for d in order), turned, [d == scan.dim for d in order])
    kernel = _Kernel(sizes, strides, views, along.count(False), names)
    kernel.nest.count(scan.expr)
    text = kernel.nest.text(scan.expr)
    acc = f"acc{next(names)}"
    body = [f"{acc} = {COMBINE[scan.kind].format(acc, text)}", f"{kernel.nest.index(scan.into)} = {acc}"]
    return kernel.launch(body, [f"{acc} = {start_of(scan.kind, scan.into.buffer.dtype)}"])
