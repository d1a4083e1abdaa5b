"""Expressions inside nested C++ loops."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import torch

from pynode.capture.ir import Expr, Gather, Literal, Load, Scalar, Shape, View
from pynode.capture.nests import Nest, bare
from pynode.cpp.text import literal, translated, type_of

_BITWISE = re.compile(r"^\(\{0\} [&|] \{1\}\)$")

#: Elements beyond which indices are 64 bits wide.
_WIDE = 2**30


class CppNest(Nest):
    """Nested loops in C++; all variables count from 0."""

    def __init__(self, sizes: Shape, strides: dict[int, Shape], names: Iterator[int]) -> None:
        super().__init__(sizes, strides, names)
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

    def _rendered(self, expr: Expr, depth: int) -> str:
        if isinstance(expr, Literal):
            return literal(expr.value, expr.dtype)
        if isinstance(expr, Scalar):
            return expr.name
        if isinstance(expr, Load):
            return self.index(expr.view)
        if isinstance(expr, Gather):
            shift, inside = self.shift(expr.terms, depth)
            return f"({inside} ? {self.index(expr.view, shift)} : nothing_<{type_of(expr.dtype)}>())"
        text = translated(expr.template).format(*(self.text(arg, depth) for arg in expr.args))
        if expr.dtype == torch.bool and _BITWISE.search(expr.template):
            return f"bool{text}"  # of truth values C++ makes an int
        return text

    def _line(self, name: str, text: str, dtype: torch.dtype) -> str:
        return f"const {type_of(dtype)} {name} = {text};"

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
