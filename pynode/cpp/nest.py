"""Expressions inside nested C++ loops."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import torch

from pynode.cpp.text import literal, translated, type_of
from pynode.julia.ir import Expr, Gather, Literal, Load, Op, Scalar, Shape, View, leaves
from pynode.julia.loops import bare

_NAMES = ["i", "j", "k", "l", "m", "n", "o", "q", "r", "s_", "v", "w_", "x_", "y_", "z_"]

_BITWISE = re.compile(r"^\(\{0\} [&|] \{1\}\)$")

#: Elements beyond which indices are 64 bits wide.
_WIDE = 2**30


class Nest:
    """Text of expressions inside nested loops, outermost loop first; all variables count from 0.

    Parameters
    ----------
    sizes : tuple of int
        The loops' lengths.
    strides : dict of int to tuple of int
        By the views' ids, over these loops.
    names : iterator of int
        Numbers of local variables.
    """

    def __init__(self, sizes: Shape, strides: dict[int, Shape], names: Iterator[int]) -> None:
        self.sizes = sizes
        self.strides = strides
        self.variables = [_NAMES[len(sizes) - 1 - d] for d in range(len(sizes))]
        self._names = names
        self._inner: list[str] = []
        self._texts: dict[int, str] = {}
        self._uses: dict[int, int] = {}
        self._hoisted: dict[int, list[str]] = {}
        reach = [sum(abs(s) * n for s, n in zip(steps, sizes, strict=True)) for steps in strides.values()]
        self.integer = "long" if max(reach, default=0) > _WIDE else "int"

    def index(self, view: View, extra: str = "", outer: int | None = None) -> str:
        """An element; ``outer`` keeps the first loops only, the others do not matter."""
        buffer, base = view.buffer.resolved()
        pairs = list(zip(self.variables, self.strides[id(view)], strict=True))[:outer]
        parts = [v if s == 1 else f"{s} * {v}" for v, s in reversed(pairs) if s]
        constant = base + view.offset
        if constant:
            parts.append(str(constant))
        text = (" + ".join(parts) + extra).replace("+ -", "- ").removeprefix(" + ")
        return f"{buffer.name}[{text or '0'}]"

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
            shift, inside = self.shift(expr.terms, depth)
            text = f"({inside} ? {self.index(expr.view, shift)} : nothing_<{type_of(expr.dtype)}>())"
        else:
            text = translated(expr.template).format(*(self.text(arg, depth) for arg in expr.args))
            if expr.dtype == torch.bool and _BITWISE.search(expr.template):
                text = f"bool{text}"  # of truth values C++ makes an int
        hoist = depth < (full if outer is None else outer) and any(True for _ in leaves(expr))
        shared = isinstance(expr, Op | Gather) and self._uses.get(id(expr), 0) > 1
        if (hoist and depth < full) or shared:
            text = self._named(text, type_of(expr.dtype), depth)
        self._texts[id(expr)] = text
        return text

    def _named(self, text: str, kind: str, depth: int) -> str:
        name = f"x{next(self._names)}"
        line = f"const {kind} {name} = {bare(text)};"
        if depth < len(self.sizes):
            self._hoisted.setdefault(depth, []).append(line)
        else:
            self._inner.append(line)
        return name

    def shift(self, terms: Sequence[tuple[int, int, Expr]], outer: int | None = None) -> tuple[str, str]:
        """What indices add to an address, and the condition that they are valid."""
        texts = [(stride, size, bare(self.text(index, outer))) for stride, size, index in terms]
        parts = [(f"{s} * " if s != 1 else "") + f"wrapped_({text}, {n})" for s, n, text in texts]
        inside = " & ".join(f"inside_({text}, {n})" for _, n, text in texts)
        return "".join(" + " + part for part in parts), f"({inside})" if len(texts) > 1 else inside

    def lines(
        self, body: list[str], before: dict[int, list[str]], after: dict[int, list[str]], pragma: str
    ) -> Iterator[str]:
        """The nest; ``before[d]`` and ``after[d]`` stand around the loop at depth d."""
        depth = len(self.sizes)
        for d in range(depth):
            pad = "    " * d
            for line in [*self._hoisted.get(d, []), *before.get(d, [])]:
                yield pad + line
            if pragma and d == depth - 1:
                yield pragma
            v = self.variables[d]
            yield f"{pad}for ({self.integer} {v} = 0; {v} < {self.sizes[d]}; ++{v}) {{"
        for line in [*self._hoisted.get(depth, []), *before.get(depth, []), *self._inner, *body]:
            yield "    " * depth + line
        if depth == 0:
            yield from after.get(0, [])
        for d in reversed(range(depth)):
            yield "    " * d + "}"
            for line in after.get(d, []):
                yield "    " * d + line
