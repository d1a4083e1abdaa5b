"""What lies between graphs and Julia text: expressions over strided views of flat arrays, and statements.

Every array of a program is flat memory in row-major order of torch's shapes. A view (offset, shape, strides, counted in
elements) is all that reshaping, transposing, slicing and broadcasting amount to; none of them is a statement.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Shape: TypeAlias = tuple[int, ...]


def numel(shape: Sequence[int]) -> int:
    """How many elements it has."""
    return torch.Size(shape).numel()


def contiguous(shape: Sequence[int]) -> Shape:
    """Row-major strides."""
    steps = itertools.accumulate(reversed(shape[1:]), lambda a, b: a * b, initial=1)
    return tuple(reversed(list(steps)))[-len(shape) :] if shape else ()


@dataclass(eq=False)
class Buffer:
    """Flat memory: an argument of the function, a constant, or workspace.

    ``kind`` is "argument", "constant" or "work"; ``dtype`` the torch dtype of its elements. A workspace buffer may be
    given a ``home``: a place (buffer, offset) it is part of.
    """

    name: str
    size: int
    dtype: torch.dtype
    kind: str
    home: tuple[Buffer, int] | None = None

    def resolved(self) -> tuple[Buffer, int]:
        """Where it really lies."""
        if self.home is None:
            return self, 0
        buffer, offset = self.home[0].resolved()
        return buffer, offset + self.home[1]


@dataclass(frozen=True, eq=False)
class View:
    """Elements of a buffer, by shape, strides and offset in elements."""

    buffer: Buffer
    shape: Shape
    strides: Shape
    offset: int = 0

    @staticmethod
    def of(buffer: Buffer, shape: Sequence[int], offset: int = 0) -> View:
        return View(buffer, tuple(shape), contiguous(shape), offset)

    @property
    def is_contiguous(self) -> bool:
        expected = contiguous(self.shape)
        return all(n == 1 or s == e for n, s, e in zip(self.shape, self.strides, expected, strict=True))

    def through(self, operation: Callable[[Tensor], Tensor]) -> View:
        """This view after a view operator of torch.

        Raises
        ------
        RuntimeError
            If the strides do not allow it.
        """
        # Memory is irrelevant here: a meta tensor knows how an operator changes shape, strides and offset.
        memory = torch.empty(max(self.buffer.size, 1), device="meta")
        seen = operation(memory.as_strided(self.shape, self.strides, self.offset))
        return View(self.buffer, tuple(seen.shape), tuple(seen.stride()), int(seen.storage_offset()))


@dataclass(frozen=True, eq=False)
class Load:
    """The element of a view at the loops' place."""

    view: View
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Gather:
    """``view`` shifted by integers: element ``i`` lies at ``view[i] + Σ stride * wrapped(index[i], size)``."""

    view: View
    terms: tuple[tuple[int, int, Expr], ...]
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Scalar:
    """A local variable of the function."""

    name: str
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Literal:
    """A number known when the program is written."""

    value: float | int | bool
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Op:
    """A scalar function of scalars as a template of Julia text; ``cost`` counts roughly its instructions."""

    template: str
    args: tuple[Expr, ...]
    dtype: torch.dtype
    cost: int = 1


Expr: TypeAlias = Load | Gather | Scalar | Literal | Op


def leaves(expr: Expr) -> Iterator[Load | Gather]:
    """The memory an expression reads."""
    if isinstance(expr, Op):
        for arg in expr.args:
            yield from leaves(arg)
    elif isinstance(expr, Gather):
        yield expr
        for _, _, index in expr.terms:
            yield from leaves(index)
    elif isinstance(expr, Load):
        yield expr


def cost(expr: Expr) -> int:
    """Instructions of one evaluation."""
    if isinstance(expr, Op):
        return expr.cost + sum(map(cost, expr.args))
    if isinstance(expr, Gather):
        return 2 + sum(cost(index) for _, _, index in expr.terms)
    return 0


def mapped(expr: Expr, change: Callable[[View], View], memo: dict[int, Expr] | None = None) -> Expr:
    """The expression with all its views changed; nodes that are shared stay shared."""
    memo = {} if memo is None else memo
    if id(expr) not in memo:
        new: Expr = expr
        if isinstance(expr, Load):
            new = Load(change(expr.view), expr.dtype)
        elif isinstance(expr, Gather):
            terms = tuple((stride, size, mapped(index, change, memo)) for stride, size, index in expr.terms)
            new = Gather(change(expr.view), terms, expr.dtype)
        elif isinstance(expr, Op):
            new = Op(expr.template, tuple(mapped(x, change, memo) for x in expr.args), expr.dtype, expr.cost)
        memo[id(expr)] = new
    return memo[id(expr)]


@dataclass(frozen=True)
class Value:
    """What a node of the graph stands for: an expression over the elements of a shape."""

    expr: Expr
    shape: Shape

    @property
    def dtype(self) -> torch.dtype:
        return self.expr.dtype

    @property
    def view(self) -> View | None:
        """The memory it is, if it is nothing but memory."""
        return self.expr.view if isinstance(self.expr, Load) else None


@dataclass(frozen=True, eq=False)
class Padded:
    """Zero but for a part, which ``look`` sees: the gradient of what a view operator sees."""

    piece: Value
    look: Callable[[Tensor], Tensor]
    shape: Shape


@dataclass(eq=False)
class Assign:
    """A local scalar."""

    target: Scalar
    expr: Expr
    note: str = ""


@dataclass(eq=False)
class Store:
    """``into[i] = expr[i]``, or ``+=``; ``terms`` shift the place by indices, as in Gather."""

    into: View
    expr: Expr
    add: bool = False
    terms: tuple[tuple[int, int, Expr], ...] = ()

    @property
    def exprs(self) -> list[Expr]:
        return [self.expr, *(index for _, _, index in self.terms)]


@dataclass(eq=False)
class Loop:
    """Stores over one shape, element by element."""

    shape: Shape
    stores: list[Store]
    note: str = ""


@dataclass(eq=False)
class Reduce:
    """``into[i] = combine over the reduced dimensions of expr``; ``into`` has stride 0 in these."""

    kind: str
    shape: Shape
    into: View
    reduced: tuple[bool, ...]
    expr: Expr
    note: str = ""


@dataclass(eq=False)
class MatMul:
    """``into = a b`` or ``into += a b``, matrices (m, k), (k, n)."""

    into: View
    a: View
    b: View
    add: bool = False
    note: str = ""


@dataclass(eq=False)
class Scan:
    """``into`` = the running sum or product of an expression along a dimension."""

    kind: str
    shape: Shape
    into: View
    dim: int
    expr: Expr
    note: str = ""


@dataclass(frozen=True)
class ConvolutionSizes:
    """Images (n, c, h, w) and (n, o, p, q), kernels (o, c / groups, r, s)."""

    n: int
    c: int
    h: int
    w: int
    o: int
    p: int
    q: int
    r: int
    s: int
    groups: int
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def columns(self) -> int:
        """Numbers in the columns of one image and group."""
        return self.c // self.groups * self.r * self.s * self.p * self.q


@dataclass(eq=False)
class Convolve:
    """A convolution in one of three directions, on contiguous memory.

    Attributes
    ----------
    kind : {"forward", "input", "weight"}
        Which of the three is ``into``: the narrow image (n, o, p, q), the wide one (n, c, h, w) or the kernel.
    a, b : View
        The other two: wide image and kernel, narrow image and kernel, narrow image and wide one.
    columns : View
        Room for :attr:`ConvolutionSizes.columns`.
    """

    kind: str
    into: View
    a: View
    b: View
    columns: View
    sizes: ConvolutionSizes
    note: str = ""


Statement: TypeAlias = Assign | Loop | Reduce | MatMul | Scan | Convolve
