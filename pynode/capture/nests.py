"""What nested loops over a statement's elements have in common, whatever language they are printed in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial

import torch

from pynode.capture.ir import Expr, Gather, Literal, Op, Reduce, Scalar, Shape, View, leaves, mapped, numel

#: How two elements of a reduction are joined; ``maximum_`` and ``minimum_`` stand in each language's prelude.
COMBINE = {
    "+": "{0} + {1}",
    "*": "{0} * {1}",
    "max": "maximum_({0}, {1})",
    "min": "minimum_({0}, {1})",
    "|": "{0} | {1}",
    "&": "{0} & {1}",
}

_NAMES = ["i", "j", "k", "l", "m", "n", "o", "q", "r", "s_", "v", "w_", "x_", "y_", "z_"]


class Nest(ABC):
    """Text of expressions inside nested loops, outermost loop first.

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

    @abstractmethod
    def _rendered(self, expr: Expr, depth: int) -> str:
        """One expression; ``depth`` is the number of outer loops within which it changes."""

    @abstractmethod
    def _line(self, name: str, text: str, dtype: torch.dtype) -> str:
        """The statement that gives a local variable its value."""

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
        depth, full = self._depth(expr), len(self.sizes)
        text = self._rendered(expr, depth)
        hoist = depth < (full if outer is None else outer) and not isinstance(expr, Literal | Scalar)
        hoist = hoist and any(True for _ in leaves(expr))
        shared = isinstance(expr, Op | Gather) and self._uses.get(id(expr), 0) > 1
        if (hoist and depth < full) or shared:
            name = f"x{next(self._names)}"
            line = self._line(name, bare(text), expr.dtype)
            if depth < full:
                self._hoisted.setdefault(depth, []).append(line)
            else:
                self._inner.append(line)
            text = name
        self._texts[id(expr)] = text
        return text


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


def views_of(exprs: Sequence[Expr]) -> list[View]:
    """What the expressions read, each once."""
    return list({id(leaf.view): leaf.view for expr in exprs for leaf in leaves(expr)}.values())


def unrolled(reduce: Reduce) -> tuple[Shape, list[bool], list[tuple[View, Expr]]]:
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


def without(shape: Shape, reduced: Sequence[bool]) -> Shape:
    """The shape of a reduction's result, with ones where it summed."""
    return tuple(1 if gone else n for n, gone in zip(shape, reduced, strict=True))
