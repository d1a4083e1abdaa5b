"""Elementwise operators as templates of scalar Julia text.

Julia throws where torch gives NaN (sqrt(-1), sin(Inf)); names with a trailing underscore are the prelude's versions
that do not.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from pynode.capture.ir import Expr, Literal, Op, Padded, Value
from pynode.capture.lower import Lowering, arguments, note_of, rule
from pynode.capture.lower_views import repeated

aten = torch.ops.aten

#: Functions of one floating-point number: template and cost.
_UNARY: dict[Any, tuple[str, int]] = {
    aten.neg: ("(-{0})", 1),
    aten.abs: ("abs({0})", 1),
    aten.tanh: ("tanh_({0})", 20),
    aten.sigmoid: ("sigmoid_({0})", 20),
    aten.exp: ("exp_({0})", 15),
    aten.exp2: ("exp2({0})", 20),
    aten.expm1: ("expm1_({0})", 15),
    aten.log: ("log_({0})", 20),
    aten.log2: ("log2_({0})", 20),
    aten.log10: ("log10_({0})", 20),
    aten.log1p: ("log1p_({0})", 20),
    aten.sqrt: ("sqrt_({0})", 5),
    aten.rsqrt: ("inv(sqrt_({0}))", 8),
    aten.reciprocal: ("inv({0})", 4),
    aten.sin: ("sin_({0})", 20),
    aten.cos: ("cos_({0})", 20),
    aten.tan: ("tan_({0})", 20),
    aten.asin: ("asin_({0})", 20),
    aten.acos: ("acos_({0})", 20),
    aten.atan: ("atan({0})", 20),
    aten.sinh: ("sinh({0})", 20),
    aten.cosh: ("cosh({0})", 20),
    aten.asinh: ("asinh({0})", 20),
    aten.acosh: ("acosh_({0})", 20),
    aten.atanh: ("atanh_({0})", 20),
    aten.erf: ("erf_({0})", 30),
    aten.erfc: ("erfc_({0})", 30),
    aten.floor: ("floor({0})", 1),
    aten.ceil: ("ceil({0})", 1),
    aten.trunc: ("trunc({0})", 1),
    aten.round: ("round({0})", 1),
    aten.sign: ("sign_({0})", 2),
    aten.sgn: ("sign_({0})", 2),
    aten.relu: ("relu_({0})", 1),
}
#: Of two numbers of one type.
_BINARY: dict[Any, tuple[str, int]] = {
    aten.div: ("({0} / {1})", 4),
    aten.maximum: ("maximum_({0}, {1})", 1),
    aten.minimum: ("minimum_({0}, {1})", 1),
    aten.fmax: ("fmax_({0}, {1})", 2),
    aten.fmin: ("fmin_({0}, {1})", 2),
    aten.atan2: ("atan({0}, {1})", 30),
    aten.hypot: ("hypot({0}, {1})", 20),
    aten.remainder: ("mod_({0}, {1})", 10),
    aten.fmod: ("rem({0}, {1})", 10),
    aten.copysign: ("copysign({0}, {1})", 1),
    aten.bitwise_and: ("({0} & {1})", 1),
    aten.bitwise_or: ("({0} | {1})", 1),
    aten.bitwise_xor: ("xor({0}, {1})", 1),
}
_COMPARE: dict[Any, str] = {
    aten.eq: "({0} == {1})",
    aten.ne: "({0} != {1})",
    aten.lt: "({0} < {1})",
    aten.le: "({0} <= {1})",
    aten.gt: "({0} > {1})",
    aten.ge: "({0} >= {1})",
}


def _overloads(packets: Any) -> list[Any]:
    return [getattr(packet, name) for packet in packets for name in packet.overloads() if "out" not in name]


def converted(expr: Expr, dtype: torch.dtype) -> Expr:
    """The expression as a number of a type."""
    if expr.dtype == dtype:
        return expr
    if isinstance(expr, Literal):
        number = float(expr.value) if dtype.is_floating_point else expr.value
        return Literal(bool(number) if dtype == torch.bool else number, dtype)
    if dtype == torch.bool:
        return Op("({0} != 0)", (expr,), dtype)
    if dtype.is_floating_point:
        return Op("T({0})", (expr,), dtype)
    # Of what is no whole number torch keeps the whole part.
    return Op("unsafe_trunc(Int64, {0})" if expr.dtype.is_floating_point else "Int64({0})", (expr,), dtype)


def _kind(low: Lowering, dtype: torch.dtype) -> torch.dtype:
    return low.dtype if dtype.is_floating_point else torch.bool if dtype == torch.bool else torch.int64


def result_dtype(low: Lowering, node: fx.Node) -> torch.dtype:
    """What the node's elements are in the program: its precision, integers or truth values."""
    return _kind(low, node.meta["val"].dtype)


def operands(low: Lowering, node: fx.Node, arguments: Any, dtype: torch.dtype) -> tuple[list[Expr], tuple[int, ...]]:
    """The arguments' expressions, converted and repeated to the node's shape."""
    shape = tuple(node.meta["val"].shape)
    values = [low.value(x) for x in arguments]
    exprs = [
        converted(repeated(low, x, shape).expr if x.shape != () else _spread(low, x, shape), dtype) for x in values
    ]
    return exprs, shape


def _spread(low: Lowering, value: Value, shape: tuple[int, ...]) -> Expr:
    return low.seen(value, lambda x: x.expand(shape)).expr


def _apply(low: Lowering, node: fx.Node, template: str, price: int, count: int) -> Value:
    dtype = result_dtype(low, node)
    exprs, shape = operands(low, node, arguments(node)[:count], dtype)
    return Value(Op(template, tuple(exprs), dtype, price), shape)


@rule(*_overloads(_UNARY))
def _unary(low: Lowering, node: fx.Node) -> Value:
    target: Any = node.target
    return _apply(low, node, *_UNARY[target.overloadpacket], 1)


@rule(*_overloads(_BINARY))
def _binary(low: Lowering, node: fx.Node) -> Value:
    target: Any = node.target
    template, price = _BINARY[target.overloadpacket]
    mode = node.kwargs.get("rounding_mode")
    if mode is not None:
        template = {"floor": "fld_({0}, {1})", "trunc": "trunc({0} / {1})"}[str(mode)]
    return _apply(low, node, template, price, 2)


@rule(*_overloads(_COMPARE))
def _comparison(low: Lowering, node: fx.Node) -> Value:
    target: Any = node.target
    a, b = arguments(node)
    values = [x.meta["val"] if isinstance(x, fx.Node) else x for x in (a, b)]
    dtype = _kind(low, torch.result_type(*values))
    exprs, shape = operands(low, node, (a, b), dtype)
    return Value(Op(_COMPARE[target.overloadpacket], tuple(exprs), torch.bool), shape)


def times(a: Expr, b: Expr) -> Expr:
    """A product, without factors of one."""
    for x, y in ((a, b), (b, a)):
        if isinstance(x, Literal) and x.value == 1:
            return y
        if isinstance(x, Literal) and x.value == -1:
            return Op("(-{0})", (y,), y.dtype)
    return Op("({0} * {1})", (a, b), a.dtype)


def plus(a: Expr, b: Expr, sign: str = "+") -> Expr:
    """A sum or difference, without zeros where this keeps every bit but a zero's sign."""
    if isinstance(b, Literal) and b.value == 0:
        return a
    if isinstance(a, Literal) and a.value == 0 and sign == "+":
        return b
    return Op(f"({{0}} {sign} {{1}})", (a, b), a.dtype)


@rule(*_overloads([aten.mul]))
def _mul(low: Lowering, node: fx.Node) -> Value:
    dtype = result_dtype(low, node)
    (a, b), shape = operands(low, node, arguments(node)[:2], dtype)
    if dtype == torch.bool:
        return Value(Op("({0} & {1})", (a, b), dtype), shape)
    return Value(times(a, b), shape)


@rule(*_overloads([aten.add, aten.sub, aten.rsub]))
def _add(low: Lowering, node: fx.Node) -> Value:
    target: Any = node.target
    if any(isinstance(x, fx.Node) and isinstance(low.result(x), Padded) for x in node.args):
        return _collected(low, node)
    dtype = result_dtype(low, node)
    (a, b), shape = operands(low, node, arguments(node)[:2], dtype)
    alpha: Any = node.kwargs.get("alpha", arguments(node)[2] if len(arguments(node)) > 2 else 1)
    factor = Literal(alpha, dtype)
    if dtype == torch.bool:
        return Value(Op("({0} | {1})", (a, b), dtype), shape)
    if target.overloadpacket is aten.rsub:
        a, b = b, a
        return Value(plus(a, times(b, factor) if alpha != 1 else b, "-"), shape)
    b = times(b, factor) if alpha != 1 else b
    return Value(plus(a, b, "+" if target.overloadpacket is aten.add else "-"), shape)


def _collected(low: Lowering, node: fx.Node) -> Value:
    """A sum with tensors that are mostly zero: their parts are added in place, to the sum so far where it is one."""
    note = note_of(node)
    parts = [low.result(x) for x in arguments(node)]
    into = next((low.sums[x] for x in arguments(node) if x in low.sums and len(x.users) == 1), None)
    if into is None:
        shape = tuple(node.meta["val"].shape)
        into = low.fresh(shape, result_dtype(low, node))
        base = next((x for x in parts if isinstance(x, Value)), Value(Literal(0, into.buffer.dtype), ()))
        low.write(into, base, note)
    for part in parts:
        if isinstance(part, Padded):
            low.write(into.through(part.look), part.piece, note, add=True)
    low.sums[node] = into
    return low.loaded(into)


@rule(aten.addcmul.default, aten.addcdiv.default)
def _addc(low: Lowering, node: fx.Node) -> Value:
    dtype = result_dtype(low, node)
    (a, b, c), shape = operands(low, node, arguments(node)[:3], dtype)
    value: Any = node.kwargs.get("value", 1)
    inner = times(b, c) if node.target is aten.addcmul.default else Op("({0} / {1})", (b, c), dtype, 4)
    return Value(plus(a, times(inner, Literal(value, dtype))), shape)


def power(x: Expr, exponent: float) -> Expr:
    """x to a constant power; small whole powers are products."""
    dtype = x.dtype
    if exponent == 0:
        return Literal(1, dtype)
    if exponent == 0.5:
        return Op("sqrt_({0})", (x,), dtype, 5)
    if exponent == -0.5:
        return Op("inv(sqrt_({0}))", (x,), dtype, 8)
    if exponent < 0 and float(exponent).is_integer() and exponent >= -8 and dtype.is_floating_point:
        return Op("inv({0})", (power(x, -exponent),), dtype, 4)
    if float(exponent).is_integer() and 0 < exponent <= 8:
        whole = int(exponent)
        half = power(x, whole // 2) if whole > 1 else x
        if whole == 1:
            return x
        square = Op("({0} * {1})", (half, half), dtype)
        return Op("({0} * {1})", (square, x), dtype) if whole % 2 else square
    return Op("pow_({0}, {1})", (x, Literal(exponent, dtype)), dtype, 40)


@rule(*_overloads([aten.pow]))
def _pow(low: Lowering, node: fx.Node) -> Value:
    dtype = result_dtype(low, node)
    base, exponent = arguments(node)[:2]
    if isinstance(exponent, int | float):
        (x,), shape = operands(low, node, (base,), dtype)
        # A product of dear expressions is one of their value.
        return Value(power(x, exponent), shape)
    (x, e), shape = operands(low, node, (base, exponent), dtype)
    return Value(Op("pow_({0}, {1})", (x, e), dtype, 40), shape)


@rule(aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther, aten.where.Scalar)
def _where(low: Lowering, node: fx.Node) -> Value:
    dtype = result_dtype(low, node)
    (mask,), shape = operands(low, node, arguments(node)[:1], torch.bool)
    (a, b), _ = operands(low, node, arguments(node)[1:3], dtype)
    return Value(Op("ifelse({0}, {1}, {2})", (mask, a, b), dtype), shape)


@rule(aten.clamp.default, aten.clamp.Tensor, aten.clamp_min.default, aten.clamp_max.default, aten.hardtanh.default)
def _clamp(low: Lowering, node: fx.Node) -> Value:
    dtype = result_dtype(low, node)
    (x,), shape = operands(low, node, arguments(node)[:1], dtype)
    bounds: list[Any] = [*arguments(node)[1:], None, None][:2]
    bounds[0] = node.kwargs.get("min", bounds[0])
    bounds[1] = node.kwargs.get("max", bounds[1])
    if node.target is aten.clamp_max.default:
        bounds = [None, bounds[0]]
    for bound, name in zip(bounds, ("maximum_", "minimum_"), strict=True):
        if bound is not None:
            (b,), _ = operands(low, node, (bound,), dtype)
            x = Op(f"{name}({{0}}, {{1}})", (x, b), dtype)
    return Value(x, shape)


@rule(aten.logical_and.default, aten.logical_or.default, aten.logical_xor.default, aten.logical_not.default)
def _logical(low: Lowering, node: fx.Node) -> Value:
    exprs, shape = operands(low, node, arguments(node), torch.bool)
    target: Any = node.target
    template = {
        aten.logical_and.default: "({0} & {1})",
        aten.logical_or.default: "({0} | {1})",
        aten.logical_xor.default: "xor({0}, {1})",
        aten.logical_not.default: "(!{0})",
    }[target]
    return Value(Op(template, tuple(exprs), torch.bool), shape)


@rule(aten.bitwise_not.default)
def _not(low: Lowering, node: fx.Node) -> Value:
    return _apply(low, node, "(~{0})", 1, 1)


@rule(aten.isnan.default, aten.isinf.default, aten.isfinite.default)
def _is(low: Lowering, node: fx.Node) -> Value:
    target: Any = node.target
    (x,), shape = operands(low, node, arguments(node)[:1], low.value(arguments(node)[0]).dtype)
    return Value(Op(f"{target.overloadpacket.__name__}({{0}})", (x,), torch.bool), shape)


@rule(aten._to_copy.default)
def _to(low: Lowering, node: fx.Node) -> Value:
    value = low.value(arguments(node)[0])
    return Value(converted(value.expr, result_dtype(low, node)), value.shape)


@rule(
    aten.full.default,
    aten.full_like.default,
    aten.scalar_tensor.default,
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_strided.default,
    aten.new_empty_strided.default,
    aten.new_empty.default,
    aten.new_zeros.default,
    aten.new_full.default,
    aten.zeros_like.default,
    aten.zeros.default,
    aten.ones_like.default,
    aten.ones.default,
)
def _fill(low: Lowering, node: fx.Node) -> Value:
    number: Any = 0
    if node.target in (aten.full.default, aten.full_like.default):
        number = arguments(node)[1]
    elif node.target is aten.new_full.default:
        number = arguments(node)[2]
    elif node.target is aten.scalar_tensor.default:
        number = arguments(node)[0]
    elif node.target in (aten.ones_like.default, aten.ones.default):
        number = 1
    if not isinstance(number, int | float):
        number = math.nan
    dtype = result_dtype(low, node)
    return Value(converted(Literal(number, dtype), dtype), tuple(node.meta["val"].shape))
