"""A field of one small system as straight-line scalar Julia, for kernels that solve one system a thread.

The captured ATen graph is run once on tensors of node numbers (:mod:`pynode.julia.scalars`): what only moves data
(views, indexing, concatenation, padding with zeros) is done by torch itself on the numbers, elementwise operations make
one node an element, and products and reductions are unrolled.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map

from pynode.capture.capturing import Captured
from pynode.capture.refusal import source_line
from pynode.errors import UnsupportedError, explain
from pynode.julia.scalars import Scalars

aten = torch.ops.aten

MAX_STATE = 32
MAX_OPERATIONS = 2000

#: ATen's name of an elementwise operation: the scalar one.
_ELEMENTWISE = {
    "mul": "mul",
    "neg": "neg",
    "maximum": "max",
    "minimum": "min",
    "where": "where",
    "logical_and": "and",
    "bitwise_and": "and",
    "logical_or": "or",
    "bitwise_or": "or",
    "logical_xor": "xor",
    "bitwise_xor": "xor",
    "logical_not": "not",
    "bitwise_not": "not",
    "pow": "pow",
    "atan2": "atan2",
    "fmod": "fmod",
    "remainder": "remainder",
    "reciprocal": "reciprocal",
    **{x: x for x in ("eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "abs", "exp", "exp2", "expm1", "log")},
    **{x: x for x in ("log2", "log10", "log1p", "sqrt", "rsqrt", "sin", "cos", "tan", "asin", "acos", "atan", "sinh")},
    **{
        x: x
        for x in (
            "cosh",
            "tanh",
            "asinh",
            "acosh",
            "atanh",
            "sigmoid",
            "erf",
            "sign",
            "floor",
            "ceil",
            "round",
            "trunc",
        )
    },
}

#: Operations that only move data: torch runs them on node numbers. Zeros they write are node 0, the number 0.
_MOVING = {
    *("view", "_unsafe_view", "reshape", "permute", "transpose", "t", "unsqueeze", "unsqueeze_", "squeeze", "squeeze_"),
    *("expand", "select", "slice", "cat", "stack", "split", "split_with_sizes", "unbind", "flip", "roll", "repeat"),
    *("diagonal", "clone", "alias", "detach", "lift_fresh_copy", "copy", "index", "index_select", "gather", "tril"),
    *("triu", "diag_embed", "unfold", "as_strided", "embedding", "take", "select_scatter", "slice_scatter", "scatter"),
    *("diagonal_scatter", "index_put", "broadcast_in_dim"),
}

_LOGICAL = frozenset({"logical_and", "logical_or", "logical_xor", "logical_not"})
_LIKE = frozenset({"zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full"})


_COMBINING = (aten.scatter.reduce, aten.scatter.value_reduce)


@dataclass(frozen=True)
class Numbers:
    """A tensor whose elements are nodes: their numbers, and the tensor's own dtype."""

    ids: Tensor
    dtype: torch.dtype


@dataclass(frozen=True)
class Kernel:
    """A field of one system as scalar Julia text.

    Attributes
    ----------
    source : str
        Defines ``f(u, p, t)`` returning a tuple, and needs nothing but Base. ``p`` holds the elements of ``shared``,
        then those of the captured field's slots.
    shared : tuple of Tensor
        Floating point tensors that f uses and that are not slots: inputs, so that other values need no other code.
    """

    source: str
    shared: tuple[Tensor, ...]


def kernel(captured: Captured) -> Kernel:
    """Emit the captured field of one system, of at most MAX_STATE state numbers and MAX_OPERATIONS operations.

    Raises
    ------
    UnsupportedError
        Naming the operator, the dtype or the size that stands in the way.
    """
    if captured.size > MAX_STATE:
        raise UnsupportedError(
            explain(
                f"one system has {captured.size} state numbers",
                f"at most {MAX_STATE}, which a thread can hold in registers",
                "solve the batch with pynode.solve",
            )
        )
    emitter = _Emitter(captured)
    try:
        result = emitter.run()
    except OverflowError as error:
        raise UnsupportedError(
            explain(
                f"f takes more than {MAX_OPERATIONS} scalar operations",
                "a small field, unrolled into one thread's code",
                "solve the batch with pynode.solve, or take a smaller f",
            )
        ) from error
    header = (
        f"{captured.size} state numbers, {emitter.size} parameters",
        "f(u, p, t) returns a tuple; u and p are anything with indices",
    )
    return Kernel(emitter.scalars.julia(result, header), tuple(emitter.shared))


class _Emitter:
    def __init__(self, captured: Captured) -> None:
        self.graph, self.dtype = captured.graphs["f"].graph, captured.dtype
        self.scalars = Scalars(self.dtype, MAX_OPERATIONS)
        self.shared = [x.detach() for x in captured.constants if x.is_floating_point()]
        self.size = 0
        self.named: dict[str, Any] = {
            "t": Numbers(torch.tensor(self.scalars.variable("t")), self.dtype),
            "u": self._entries("u", 0, (captured.size,)),
        }
        for index, tensor in enumerate(captured.constants):
            entries = tensor.is_floating_point()
            self.named[f"c{index}"] = self._parameters(tensor.shape) if entries else tensor.detach().cpu()
        for index, slot in enumerate(captured.slots):
            self.named[f"p{index}"] = self._parameters(slot.shape)
        self.values: dict[fx.Node, Any] = {}

    def _entries(self, name: str, offset: int, shape: Sequence[int]) -> Numbers:
        ids = [self.scalars.entry(name, offset + i) for i in range(math.prod(shape))]
        return Numbers(torch.tensor(ids, dtype=torch.int64).reshape(tuple(shape)), self.dtype)

    def _parameters(self, shape: Sequence[int]) -> Numbers:
        entries = self._entries("p", self.size, shape)
        self.size += math.prod(shape)
        return entries

    def _refusal(self, what: str, expectation: str) -> UnsupportedError:
        return UnsupportedError(
            explain(what, expectation, "write f in other operations, or solve the batch with pynode.solve")
        )

    def run(self) -> list[int]:
        """The nodes of the derivative."""
        for node in self.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = self.named[node.name]
            elif node.op == "call_function":
                self.values[node] = self._call(node)
        ((result,),) = self._argument(self.graph.output_node().args)
        return [int(x) for x in self._ids(result, self.dtype).reshape(-1)]

    def _argument(self, argument: Any) -> Any:
        return fx.node.map_arg(argument, lambda n: self.values[n])

    def _call(self, node: fx.Node) -> Any:
        args, kwargs = self._argument(node.args), dict(self._argument(node.kwargs))
        if node.target is operator.getitem:
            return args[0][args[1]]
        assert isinstance(node.target, torch._ops.OpOverload)
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        if not any(isinstance(x, Numbers) for x in tree_leaves((args, kwargs))):
            return node.target(*args, **kwargs)
        name = str(node.target._schema.name).rpartition("::")[2]
        dtype = self._dtype(node)
        if name in _LIKE:
            like = torch.empty(args[0].ids.shape, dtype=args[0].dtype)
            return node.target(like, *args[1:], **kwargs)
        if name in _MOVING and not _adds(node):
            return self._move(node.target, args, kwargs)
        handler: Callable[..., Any] | None = getattr(self, f"_{name.lstrip('_')}_", None)
        if handler is not None:
            return handler(*args, **kwargs)
        if name in _ELEMENTWISE:
            return self._elementwise(name, args, kwargs, dtype)
        raise self._refusal(
            f"the operator {node.target}{source_line(node)} has no scalar form here",
            "elementwise operations, small products, reductions, indexing and reshaping",
        )

    def _dtype(self, node: fx.Node) -> torch.dtype:
        """The dtype of a result that depends on the state: Boolean, or the state's (a number of another one counts
        as the state's, as it does beside tensors)."""
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return self.dtype
        dtype = value.dtype
        if dtype in (self.dtype, torch.bool) or (value.ndim == 0 and dtype.is_floating_point):
            return torch.bool if dtype == torch.bool else self.dtype
        raise self._refusal(
            f"{node.target}{source_line(node)} makes {dtype} of the state, which has no scalar form here",
            f"{self.dtype} throughout",
        )

    def _ids(self, value: Any, dtype: torch.dtype | None = None) -> Tensor:
        """Node numbers of a value: literals for what is constant. ``dtype`` makes Booleans numbers, or the reverse."""
        if isinstance(value, Numbers):
            if dtype is None or value.dtype == dtype:
                return value.ids
            return self._each("nonzero" if dtype == torch.bool else "float", value.ids)
        kind = torch.float64 if isinstance(value, float) else None  # a plain number has no precision to lose
        tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=kind)
        if dtype is not None:
            tensor = tensor.to(dtype)
        literals = tensor.reshape(-1).tolist()
        ids = [self.scalars.constant(x if isinstance(x, bool) else float(x)) for x in literals]
        return torch.tensor(ids, dtype=torch.int64).reshape(tensor.shape)

    def _each(self, op: str, *operands: Tensor) -> Tensor:
        """A scalar operation on every element, the operands broadcast."""
        spread = torch.broadcast_tensors(*operands)  # type: ignore[no-untyped-call]
        ids = [self.scalars.apply(op, *x) for x in zip(*(s.reshape(-1).tolist() for s in spread), strict=True)]
        return torch.tensor(ids, dtype=torch.int64).reshape(spread[0].shape)

    def _move(self, target: torch._ops.OpOverload, args: Any, kwargs: Any) -> Any:
        """Run an operation on node numbers; what is constant beside them becomes literals where it is data."""
        kinds = {x.dtype for x in tree_leaves((args, kwargs)) if isinstance(x, Numbers)}
        own = kinds.pop() if len(kinds) == 1 else self.dtype

        def data(x: Any) -> Any:
            if isinstance(x, Numbers):
                return self._ids(x, own)
            literal = isinstance(x, Tensor) and (x.is_floating_point() or target is aten.cat.default)
            return self._ids(x, own) if literal else x

        args, kwargs = tree_map(data, (args, kwargs))
        if target is aten.scatter.value:
            args = (*args[:3], int(self._ids(args[3], own)))
        out = target(*args, **kwargs)
        if isinstance(out, Tensor):
            return Numbers(out, own)
        return [Numbers(x, own) for x in out]

    def _elementwise(self, name: str, args: Any, kwargs: Any, dtype: torch.dtype) -> Numbers:
        operands = [*args, *kwargs.values()]
        if name == "where":
            ids = [self._ids(operands[0]), *(self._ids(x, dtype) for x in operands[1:])]
        elif name in _LOGICAL or (dtype == torch.bool and all(_is_boolean(x) for x in operands)):
            ids = [self._ids(x, torch.bool) for x in operands]
        else:
            ids = [self._ids(x, self.dtype) for x in operands]
        return Numbers(self._each(_ELEMENTWISE[name], *ids), dtype)

    def _number(self, value: Any) -> Tensor:
        return self._ids(value, self.dtype)

    def _numbers(self, ids: Tensor) -> Numbers:
        return Numbers(ids, self.dtype)

    # operators with a form of their own: _<name>_
    def _add_(self, a: Any, b: Any, alpha: float = 1) -> Numbers:
        return self._numbers(self._each("add", self._number(a), self._scaled(b, alpha)))

    def _sub_(self, a: Any, b: Any, alpha: float = 1) -> Numbers:
        return self._numbers(self._each("sub", self._number(a), self._scaled(b, alpha)))

    def _scaled(self, b: Any, alpha: float) -> Tensor:
        return self._number(b) if alpha == 1 else self._each("mul", self._number(alpha), self._number(b))

    def _div_(self, a: Any, b: Any, rounding_mode: str | None = None) -> Numbers:
        ids = self._each("div", self._number(a), self._number(b))
        return self._numbers(self._each(rounding_mode, ids) if rounding_mode else ids)

    def _relu_(self, x: Any) -> Numbers:
        return self._numbers(self._each("max", self._number(x), self._number(0.0)))

    def _clamp_(self, x: Any, min: Any = None, max: Any = None) -> Numbers:
        ids = self._number(x)
        if min is not None:
            ids = self._each("max", ids, self._number(min))
        if max is not None:
            ids = self._each("min", ids, self._number(max))
        return self._numbers(ids)

    def _to_copy_(self, x: Any, dtype: torch.dtype | None = None, **_: Any) -> Numbers:
        dtype = dtype or x.dtype
        return Numbers(self._ids(x, dtype), dtype)

    def _constant_pad_nd_(self, x: Numbers, pad: list[int], value: float = 0) -> Numbers:
        filler = int(self._ids(value, x.dtype)) if x.dtype == self.dtype else int(self._ids(bool(value)))
        return Numbers(torch.constant_pad_nd(x.ids, pad, filler), x.dtype)

    def _mm_(self, a: Any, b: Any) -> Numbers:
        return self._numbers(self._product(self._number(a), self._number(b)))

    def _bmm_(self, a: Any, b: Any) -> Numbers:
        pairs = zip(self._number(a), self._number(b), strict=True)
        return self._numbers(torch.stack([self._product(x, y) for x, y in pairs]))

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        rows, columns = a.tolist(), b.T.tolist()
        ids = [[self.scalars.dot(row, column) for column in columns] for row in rows]
        return torch.tensor(ids, dtype=torch.int64).reshape(a.shape[0], b.shape[1])

    def _reduce(self, x: Tensor, dims: Any, keepdim: bool, fold: Callable[[list[int]], int]) -> Tensor:
        if dims is None or (isinstance(dims, list | tuple) and not dims):
            dims = list(range(x.ndim))
        dims = sorted({d % max(x.ndim, 1) for d in ([dims] if isinstance(dims, int) else dims)}) if x.ndim else []
        kept = [d for d in range(x.ndim) if d not in dims]
        shape = [x.shape[d] for d in kept]
        groups = x.permute(*kept, *dims).reshape(*shape, -1).reshape(-1, int(x.numel() / max(math.prod(shape), 1)))
        out = torch.tensor([fold(g) for g in groups.tolist()], dtype=torch.int64)
        return out.reshape([1 if d in dims else x.shape[d] for d in range(x.ndim)] if keepdim else shape)

    def _sum_(self, x: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Numbers:
        return self._folded("add", self._number(x), dim, keepdim)

    def _folded(self, op: str, ids: Tensor, dim: Any = None, keepdim: bool = False) -> Numbers:
        return self._numbers(self._reduce(ids, dim, keepdim, lambda g: self.scalars.fold(op, g)))

    def _prod_(self, x: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Numbers:
        return self._folded("mul", self._number(x), dim, keepdim)

    def _amax_(self, x: Any, dim: Any = None, keepdim: bool = False) -> Numbers:
        return self._folded("max", self._number(x), dim, keepdim)

    def _amin_(self, x: Any, dim: Any = None, keepdim: bool = False) -> Numbers:
        return self._folded("min", self._number(x), dim, keepdim)

    def _any_(self, x: Any, dim: Any = None, keepdim: bool = False) -> Numbers:
        return Numbers(self._folded("or", self._ids(x, torch.bool), dim, keepdim).ids, torch.bool)

    def _all_(self, x: Any, dim: Any = None, keepdim: bool = False) -> Numbers:
        return Numbers(self._folded("and", self._ids(x, torch.bool), dim, keepdim).ids, torch.bool)

    def _mean_(self, x: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Numbers:
        total = self._folded("add", self._number(x), dim, keepdim)
        count = self._number(x).numel() / max(total.ids.numel(), 1)
        return self._numbers(self._each("div", total.ids, self._number(float(count))))

    def _var_(self, x: Any, dim: Any = None, correction: float | None = 1, **_: Any) -> Numbers:
        ids = self._number(x)
        mean = self._mean_(x, dim, keepdim=True).ids
        squares = self._each("sub", ids, mean)
        total = self._folded("add", self._each("mul", squares, squares), dim).ids
        count = ids.numel() / max(total.numel(), 1) - (1 if correction is None else correction)
        return self._numbers(self._each("div", total, self._number(float(count))))

    def _cumsum_(self, x: Any, dim: int, dtype: Any = None) -> Numbers:
        ids = self._number(x)
        columns = ids.movedim(dim, -1).reshape(-1, ids.shape[dim])
        rows = [list(itertools.accumulate(c, lambda a, b: self.scalars.apply("add", a, b))) for c in columns.tolist()]
        moved = torch.tensor(rows, dtype=torch.int64).reshape(ids.movedim(dim, -1).shape)
        return self._numbers(moved.movedim(-1, dim))

    def _linalg_vector_norm_(self, x: Any, ord: float = 2, dim: Any = None, keepdim: bool = False, **_: Any) -> Numbers:
        ids = self._number(x)
        if ord == 2:
            return self._numbers(self._each("sqrt", self._folded("add", self._each("mul", ids, ids), dim, keepdim).ids))
        if ord in (1, float("inf")):
            return self._folded("add" if ord == 1 else "max", self._each("abs", ids), dim, keepdim)
        raise self._refusal(f"a norm of order {ord}", "order 1, 2 or infinity")


def _adds(node: fx.Node) -> bool:
    """Whether a scattering operation combines values instead of replacing them."""
    flags = [*node.args[3:], node.kwargs.get("accumulate", False)]
    return (node.target is aten.index_put.default and any(flags)) or node.target in _COMBINING


def _is_boolean(x: Any) -> bool:
    return isinstance(x, bool) or (isinstance(x, Tensor | Numbers) and x.dtype == torch.bool)
