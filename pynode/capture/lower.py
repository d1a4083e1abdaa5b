"""From a captured graph to statements: views are folded into expressions, expressions into as few loops as possible."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pynode.capture.ir import (
    Assign,
    Buffer,
    Expr,
    Literal,
    Load,
    Loop,
    Op,
    Scalar,
    Shape,
    Statement,
    Store,
    Value,
    View,
    contiguous,
    cost,
    leaves,
    mapped,
    numel,
)
from pynode.capture.nests import collapsed
from pynode.capture.refusal import NotCapturable, source_line
from pynode.errors import explain

Rule = Callable[["Lowering", fx.Node], Any]
#: Operators by torch's name for them, and how each is lowered; filled by the modules of operators.
RULES: dict[Any, Rule] = {}

#: Expressions dearer than this are computed once and kept when several nodes use them.
_CHEAP = 2
#: Expressions dearer than this are not fused further: compilers lose track of them.
_LARGE = 400
#: The cost of a single function from which leftovers of vectorised loops matter.
_DEAR = 15
#: Elements that a vectorised loop takes at once, and the length from which its leftovers do not matter.
_VECTORS = 32
_LONG = 512


def rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Register how these operators are lowered."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(targets, function))
        return function

    return register


def check_supported(graph: fx.Graph) -> None:
    """Raise NotCapturable, naming them, for operators without a rule."""
    for node in graph.nodes:
        if node.op == "call_function" and node.target not in RULES:
            raise NotCapturable(
                explain(
                    f"no Julia code can be emitted for {node.target}{source_line(node)}",
                    "operators the emitter knows (linear, convolution, normalisation, elementwise, indexing, ...)",
                    "write it with other operators, or use the callback route",
                )
            )


def arguments(node: fx.Node) -> list[Any]:
    """A node's positional arguments, which the operator's schema types."""
    return list(node.args)


def common_shape(values: Sequence[Value | None]) -> Shape:
    """What the shapes broadcast to."""
    together: Any = torch.broadcast_tensors  # untyped in torch
    shape: Shape = together(*(torch.empty(x.shape, device="meta") for x in values if x is not None))[0].shape
    return tuple(shape)


class Lowering:
    """Lowers one graph.

    Parameters
    ----------
    inputs : dict of str to Value
        By the names of the graph's placeholders.
    dtype : torch.dtype
        The state's.
    """

    def __init__(self, graph: fx.Graph, inputs: dict[str, Value], dtype: torch.dtype) -> None:
        self.graph = graph
        self.dtype = dtype
        self.statements: list[Statement] = []
        #: Workspace of sums that further terms may be added to.
        self.sums: dict[fx.Node, View] = {}
        self._env: dict[fx.Node, Any] = {}
        self._inputs = inputs
        self._scalars = 0

    def run(self) -> list[Value | None]:
        """The values of the graph's outputs."""
        for node in self.graph.nodes:
            if node.op == "placeholder":
                self._env[node] = self._inputs[node.name]
            elif node.op == "call_function":
                self._env[node] = self._settled(node, RULES[node.target](self, node))
        results: Any = self.graph.output_node().args[0]
        return [None if x is None else self.value(x) for x in results]

    def value(self, argument: Any, dtype: torch.dtype | None = None) -> Value:
        """The value of a node, or of a number."""
        if isinstance(argument, fx.Node):
            found: Value = self._env[argument]
            return found
        return Value(Literal(argument, dtype or self.dtype), ())

    def result(self, node: fx.Node) -> Any:
        """What a node stands for, tuples included."""
        return self._env[node]

    def _settled(self, node: fx.Node, found: Any) -> Any:
        """Decide whether an expression is computed here or where it is used."""
        if not isinstance(found, Value):
            return found
        expr = found.expr
        if not isinstance(expr, Op):
            return found
        if not any(True for _ in leaves(expr)):
            return Value(self.scalar(expr, str(node.target)), found.shape)
        if _ragged(found):
            return self._apart(found, note_of(node))
        price = cost(expr)
        shared = len(node.users) > 1 and price > _CHEAP
        if shared or price > _LARGE:
            return self.kept(found, note_of(node))
        return found

    def _apart(self, value: Value, note: str) -> Value:
        """A dear function of a broadcast expression: the expression into memory, then the function along all of it."""
        expr = value.expr
        assert isinstance(expr, Op)
        into = self.fresh(value.shape, expr.args[0].dtype)
        self.write(into, Value(expr.args[0], value.shape), note)
        whole = into.through(lambda x: x.view(-1))
        function = Op(expr.template, (Load(whole, expr.dtype),), expr.dtype, expr.cost)
        self.write(whole, Value(function, whole.shape), note)
        return self.loaded(into)

    def scalar(self, expr: Expr, note: str = "") -> Scalar:
        """A local variable that holds an expression without memory."""
        self._scalars += 1
        target = Scalar(f"s{self._scalars}", expr.dtype)
        self.statements.append(Assign(target, expr, note))
        return target

    def buffer(self, size: int, dtype: torch.dtype) -> Buffer:
        return Buffer("w", size, dtype, "work")

    def fresh(self, shape: Sequence[int], dtype: torch.dtype | None = None) -> View:
        """A view of new workspace."""
        return View.of(self.buffer(numel(shape), dtype or self.dtype), shape)

    def loaded(self, view: View) -> Value:
        return Value(Load(view, view.buffer.dtype), view.shape)

    def write(self, into: View, value: Value, note: str = "", add: bool = False) -> None:
        expr = broadcast(value, into.shape).expr
        self.statements.append(Loop(into.shape, [Store(into, expr, add)], note))

    def kept(self, value: Value, note: str = "") -> Value:
        """The value in memory of its own, contiguous."""
        into = self.fresh(value.shape, value.dtype)
        self.write(into, value, note)
        return self.loaded(into)

    def in_memory(self, value: Value, note: str = "") -> View:
        """A view of the value: itself where it is memory."""
        view = value.view
        if view is None:
            view = self.kept(value, note).view
        assert view is not None
        return view

    def in_order(self, value: Value, note: str = "") -> View:
        """A contiguous view of the value."""
        view = value.view
        if view is None or not view.is_contiguous:
            view = self.kept(value, note).view
        assert view is not None
        return view

    def seen(self, value: Value, operation: Callable[[Tensor], Tensor], note: str = "") -> Value:
        """The value through a view operator; computed first where its expression cannot be looked at that way."""
        if isinstance(value.expr, Scalar | Literal):
            shape = tuple(operation(torch.empty(value.shape, device="meta")).shape)
            return Value(value.expr, shape)
        try:
            return self._through(value, operation)
        except RuntimeError:
            return self._through(self.kept(value, note), operation)

    def _through(self, value: Value, operation: Callable[[Tensor], Tensor]) -> Value:
        shape = tuple(operation(torch.empty(value.shape, device="meta")).shape)
        if numel(shape) > numel(value.shape) > 1 and cost(value.expr) > _CHEAP:
            value = self.kept(value)  # else it would be computed for every copy
        return Value(mapped(value.expr, lambda view: view.through(operation)), shape)


def _ragged(value: Value) -> bool:
    """Whether the value is a dear function, to be computed in a short innermost loop that vectors do not fill.

    What is left over is computed element by element, which for a function like tanh takes longer than all the rest.
    """
    expr = value.expr
    if not isinstance(expr, Op) or len(expr.args) != 1 or expr.cost < _DEAR or expr.dtype != expr.args[0].dtype:
        return False
    strides = [leaf.view.strides for leaf in leaves(expr)]
    sizes, _, _ = collapsed(value.shape, [*strides, contiguous(value.shape)], [False] * len(value.shape))
    return len(sizes) > 1 and sizes[-1] < _LONG and sizes[-1] % _VECTORS != 0 and numel(value.shape) >= 4 * _VECTORS


def note_of(node: fx.Node) -> str:
    """What a statement is, in a comment: the operator and its torch shape."""
    value = node.meta.get("val")
    shape = f" {tuple(value.shape)}" if isinstance(value, Tensor) else ""
    target = node.target
    name = target.overloadpacket.__name__ if isinstance(target, torch._ops.OpOverload) else str(target)
    return f"{name}{shape}"


def broadcast(value: Value, shape: Shape) -> Value:
    """The value repeated to a shape."""
    if value.shape == shape:
        return value
    return Value(mapped(value.expr, lambda view: view.through(lambda x: x.expand(shape))), shape)


@rule(operator.getitem)
def _getitem(low: Lowering, node: fx.Node) -> Any:
    source, index = node.args
    assert isinstance(source, fx.Node)
    assert isinstance(index, int)
    return low.result(source)[index]
