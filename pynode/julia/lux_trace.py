"""Modules whose ``forward`` is code of the user's own, as chains: what it does, read by ``torch.fx``."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.nn import functional

from pynode.errors import UnsupportedError
from pynode.julia.lux_layers import LuxLayer, chain, concat_time, elementwise

if TYPE_CHECKING:
    from pynode.julia.lux_convert import Conversion

#: Functions that do what a module does, given its arguments.
_MODULES: dict[Any, type[nn.Module]] = {
    torch.tanh: nn.Tanh,
    torch.sigmoid: nn.Sigmoid,
    torch.relu: nn.ReLU,
    torch.selu: nn.SELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU,
    functional.tanh: nn.Tanh,
    functional.sigmoid: nn.Sigmoid,
    functional.relu: nn.ReLU,
    functional.relu6: nn.ReLU6,
    functional.leaky_relu: nn.LeakyReLU,
    functional.elu: nn.ELU,
    functional.celu: nn.CELU,
    functional.selu: nn.SELU,
    functional.gelu: nn.GELU,
    functional.silu: nn.SiLU,
    functional.mish: nn.Mish,
    functional.softplus: nn.Softplus,
    functional.softsign: nn.Softsign,
    functional.logsigmoid: nn.LogSigmoid,
    functional.tanhshrink: nn.Tanhshrink,
    functional.softshrink: nn.Softshrink,
    functional.hardshrink: nn.Hardshrink,
    functional.threshold: nn.Threshold,
    functional.hardtanh: nn.Hardtanh,
    functional.hardsigmoid: nn.Hardsigmoid,
    functional.hardswish: nn.Hardswish,
}

#: Functions and methods of one tensor, by the Julia function that does the same.
_UNARY: dict[Any, str] = {
    **{
        key: name
        for name in ("sin", "cos", "tan", "sinh", "cosh", "asinh", "atan", "exp", "abs")
        for key in (name, getattr(torch, name))
    },
    **dict.fromkeys(("neg", torch.neg, operator.neg), "-"),
    **dict.fromkeys(("square", torch.square), "abs2"),
}

#: Functions of a tensor and a number.
_BINARY: dict[Any, str] = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.truediv: "/",
    torch.add: "+",
    torch.sub: "-",
    torch.mul: "*",
    torch.div: "/",
}

#: What only reads a shape, and what gives the time the shape of the state.
_SHAPES: tuple[Any, ...] = ("size", "dim", operator.getitem, getattr, len)
_FILLS: tuple[Any, ...] = ("expand", "expand_as", "reshape", "view", "unsqueeze", "repeat", torch.unsqueeze, "to")


class _Tracer(fx.Tracer):
    def __init__(self, known: Callable[[nn.Module], object]) -> None:
        super().__init__()
        self.known = known

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self.known(m) is not None or bool(m._forward_hooks or m._forward_pre_hooks)


class _Walk:
    """Follows the state through a graph: one value after the other, each made from the last."""

    def __init__(self, module: nn.Module, convert: Conversion) -> None:
        self.module = module
        self.convert = convert
        self.layers: list[LuxLayer] = []
        self.state: fx.Node | None = None
        self.clock: fx.Node | None = None
        #: The time in the state's shape with one channel, and numbers read from shapes.
        self.times: set[fx.Node] = set()
        self.shapes: set[fx.Node] = set()

    def refuse(self, node: fx.Node) -> UnsupportedError:
        what = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        return self.convert.refuse(f"is not a chain of layers ({node.op} {what} of {node.args})")

    def constant(self, x: Any) -> bool:
        return isinstance(x, int | float) and not isinstance(x, bool)

    def node(self, node: fx.Node) -> None:
        if node.op == "call_module":
            layer = self.convert(self.module.get_submodule(str(node.target)), str(node.target))
            given = (self.clock, self.state) if layer.timed else (self.state,)
            if node.args != given or node.kwargs:
                raise self.refuse(node)
            self.advance(node, layer)
        elif node.op in ("call_function", "call_method"):
            self.call(node, node.target)
        elif node.op == "output":
            if node.args != (self.state,):
                raise self.refuse(node)
        elif node.op != "placeholder":
            raise self.refuse(node)

    def call(self, node: fx.Node, target: Any) -> None:
        args = node.args
        shape = target is getattr and args[1:] in (("shape",), ("dtype",), ("device",), ("ndim",))
        if shape or (target in _SHAPES and target is not getattr and self.reads_shape(target, args)):
            self.shapes.add(node)
        elif target in _FILLS and args[0] in (self.clock, *self.times):
            self.times.add(node)
        elif target in (torch.cat, torch.concat, torch.concatenate):
            self.advance(node, self.concatenation(node))
        elif target in _MODULES and args[:1] == (self.state,):
            self.advance(node, self.convert(_MODULES[target](*args[1:], **node.kwargs), str(node)))
        elif node.kwargs:
            raise self.refuse(node)
        elif target in _UNARY and args == (self.state,):
            self.advance(node, elementwise(_UNARY[target]))
        elif target in (operator.pow, torch.pow, "pow") and args[0] is self.state and isinstance(args[1], int):
            # Written out: the exponent is part of the code, and no derivative with respect to it is taken.
            self.advance(node, elementwise(f"y -> y^{args[1]}"))
        elif target in _BINARY and len(args) == 2 and args[0] is self.state and self.constant(args[1]):
            self.advance(node, elementwise(_BINARY[target], args[1]))  # type: ignore[arg-type]
        elif target in _BINARY and len(args) == 2 and args[1] is self.state and self.constant(args[0]):
            self.advance(node, elementwise(f"(y, c) -> c {_BINARY[target]} y", args[0]))  # type: ignore[arg-type]
        else:
            raise self.refuse(node)

    def reads_shape(self, target: Any, args: tuple[Any, ...]) -> bool:
        return target in ("size", "dim") or args[0] in self.shapes

    def concatenation(self, node: fx.Node) -> LuxLayer:
        tensors = node.args[0]
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        if not isinstance(tensors, list | tuple) or len(tensors) != 2 or not isinstance(dim, int):
            raise self.refuse(node)
        first, second = tensors
        if first is self.state and second in self.times:
            return concat_time(dim)
        if second is self.state and first in self.times:
            return concat_time(dim, before=True)
        raise self.refuse(node)

    def advance(self, node: fx.Node, layer: LuxLayer) -> None:
        self.layers.append(layer)
        self.state = node


def traced(module: nn.Module, convert: Conversion, known: Callable[[nn.Module], object]) -> LuxLayer:
    """The chain that a module's own ``forward(y)`` or ``forward(t, y)`` computes.

    Raises
    ------
    UnsupportedError
        If it computes something else, or ``torch.fx`` cannot follow it.
    """
    count = _positional(type(module).forward)
    if count not in (1, 2):
        raise convert.refuse("has no counterpart in Lux, nor a forward(y) or forward(t, y)")
    try:
        graph = _Tracer(known).trace(module)
    except Exception as error:  # what the user's code makes of a proxy is anybody's guess
        first = str(error).split(". ")[0].rstrip(".")
        raise convert.refuse(f"cannot be followed by torch.fx ({type(error).__name__}: {first})") from error
    walk = _Walk(module, convert)
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    walk.clock, walk.state = inputs if count == 2 else (None, inputs[0])
    for node in graph.nodes:
        walk.node(node)
    return chain(walk.layers)


def _positional(forward: Callable[..., Any]) -> int:
    """The number of positional arguments, ``self`` not counted; -1 where it is not fixed."""
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    plain = all(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
    return len(parameters) if plain else -1
