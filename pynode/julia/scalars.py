"""Straight-line scalar programs: numbered expressions without repetitions, and their Julia text.

An expression is its operation and the numbers of its operands, so that equal expressions are one (a hash table instead
of a search for common subexpressions) and operands always precede what uses them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from pynode.capture.error_function import FAR, NEAR

Node = tuple[object, ...]

#: Julia text of an operation, to be filled with its operands. Functions with an underscore are in PRELUDE.
TEMPLATES = {
    "add": "{} + {}",
    "sub": "{} - {}",
    "mul": "{} * {}",
    "div": "{} / {}",
    "neg": "-{}",
    "muladd": "muladd({}, {}, {})",
    "max": "max({}, {})",
    "min": "min({}, {})",
    "where": "where_({}, {}, {})",
    "and": "{} & {}",
    "or": "{} | {}",
    "xor": "xor({}, {})",
    "not": "!{}",
    "eq": "{} == {}",
    "ne": "{} != {}",
    "lt": "{} < {}",
    "le": "{} <= {}",
    "gt": "{} > {}",
    "ge": "{} >= {}",
    "float": "T({})",
    "nonzero": "{} != 0",
    "reciprocal": "inv({})",
    "rsqrt": "inv(sqrt_({}))",
    "pow": "pow_({}, {})",
    "atan2": "atan({}, {})",
    "fmod": "rem_({}, {})",
    "remainder": "mod_({}, {})",
    "sigmoid": "sigmoid_({})",
    "erf": "erf_({})",
    "sign": "sign_({})",
    "round": "round({})",
    "isnan": "isnan({})",
    "isinf": "isinf({})",
    **{x: x + "({})" for x in ("abs", "exp", "exp2", "expm1", "tanh", "sinh", "cosh", "atan", "asinh")},
    **{x: x + "_({})" for x in ("sqrt", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "asin", "acos")},
    **{x: x + "_({})" for x in ("acosh", "atanh")},
    **{x: x + "({})" for x in ("floor", "ceil", "trunc")},
}

_COMMUTATIVE = frozenset({"add", "mul", "max", "min", "and", "or", "xor", "eq", "ne"})

# Julia raises DomainError where torch says NaN, and a trial step may well leave a function's domain.
_GUARDED = {
    "sqrt_": "x < 0",
    "log_": "x < 0",
    "log2_": "x < 0",
    "log10_": "x < 0",
    "log1p_": "x < -1",
    "sin_": "isinf(x)",
    "cos_": "isinf(x)",
    "tan_": "isinf(x)",
    "asin_": "abs(x) > 1",
    "acos_": "abs(x) > 1",
    "acosh_": "x < 1",
    "atanh_": "abs(x) > 1",
}

PRELUDE = {
    **{
        name: f"@inline {name}(x) = {name[:-1]}(ifelse({outside}, oftype(x, NaN), x))"
        for name, outside in _GUARDED.items()
    },
    # ifelse of a dual number and a plain one would be a union of types
    "where_": "@inline function where_(c, a, b)\n    x, y = promote(a, b)\n    return ifelse(c, x, y)\nend",
    "pow_": "@inline pow_(x, y) = ifelse((x < 0) & !isinteger(y), oftype(x, NaN), x)^y",
    "rem_": "@inline rem_(x, y) = rem(ifelse(isinf(x), oftype(x, NaN), x), y)",
    "mod_": "@inline mod_(x, y) = mod(ifelse(isinf(x), oftype(x, NaN), x), y)",
    # torch's sign of NaN is 0
    "sign_": "@inline sign_(x) = ifelse(isnan(x), zero(x), sign(x))",
    # exp of a positive number would overflow, and its derivative with it
    "sigmoid_": "@inline function sigmoid_(x)\n    e = exp(-abs(x))\n"
    "    return ifelse(x < 0, e, one(e)) / (1 + e)\nend",
}


# erfc(a) is nothing beside 1 from 7 on, in either precision, and the approximation needs a finite a.
_ERF = """@inline function erf_(x)
    a = min(abs(x), T(7))
    near = x * evalpoly(x * x, ({near}))
    far = 1 - exp(-a * a) * evalpoly((a - {center}) / (a + {center}), ({far})) / (1 + 2a)
    return ifelse(abs(x) < 1, near, ifelse(isnan(x), x, copysign(far, x)))
end"""


class Scalars:
    """A growing scalar program.

    Parameters
    ----------
    dtype : torch.dtype
        float32 or float64: the type of literals.

    ``limit`` is the largest number of operations; ``OverflowError`` tells that it was passed. Node 0 is the number 0,
    so that what torch pads with zeros may be done with the numbers of nodes.
    """

    def __init__(self, dtype: torch.dtype, limit: int) -> None:
        self.dtype, self.limit = dtype, limit
        self.nodes: list[Node] = []
        self._numbers: dict[Node, int] = {}
        self._operations = 0
        self.zero = self.constant(0.0)

    def _number(self, node: Node) -> int:
        number = self._numbers.get(node)
        if number is None:
            number = self._numbers[node] = len(self.nodes)
            self.nodes.append(node)
        return number

    def constant(self, value: float | bool) -> int:
        """A literal. A float is rounded to the program's type first, so that equal literals are one node."""
        if isinstance(value, bool):
            return self._number(("bool", value))
        rounded = float(np.float32(value)) if self.dtype == torch.float32 else float(value)
        # the text tells -0.0 from 0.0, and makes a NaN equal to itself
        return self._number(("constant", repr(rounded)))

    def entry(self, name: str, index: int) -> int:
        """Entry ``index`` (from 0) of the vector ``name``."""
        return self._number(("entry", name, index))

    def variable(self, name: str) -> int:
        """A scalar argument."""
        return self._number(("variable", name))

    def value(self, number: int) -> float | None:
        """The literal that a node is, if it is one."""
        node = self.nodes[number]
        return float(str(node[1])) if node[0] == "constant" else None

    def apply(self, op: str, *operands: int) -> int:
        """An operation of TEMPLATES."""
        if op in ("add", "sub") and self._is(operands[1], 0.0):
            return operands[0]
        if op == "add" and self._is(operands[0], 0.0):
            return operands[1]
        if op in ("mul", "div") and self._is(operands[1], 1.0):
            return operands[0]
        if op == "mul" and self._is(operands[0], 1.0):
            return operands[1]
        if op == "muladd" and self._is(operands[2], 0.0):
            return self.apply("mul", *operands[:2])
        if op == "pow" and self.value(operands[1]) in (2.0, 3.0, 4.0):
            square = self.apply("mul", operands[0], operands[0])
            if self._is(operands[1], 2.0):
                return square
            return self.apply("mul", square, operands[0] if self._is(operands[1], 3.0) else square)
        if op == "pow" and self._is(operands[1], 0.5):
            return self.apply("sqrt", operands[0])
        if op == "pow" and self._is(operands[1], -1.0):
            return self.apply("reciprocal", operands[0])
        if op in _COMMUTATIVE:
            operands = tuple(sorted(operands))
        node = (op, *operands)
        if node not in self._numbers:
            self._operations += 1
            if self._operations > self.limit:
                raise OverflowError
        return self._number(node)

    def _is(self, number: int, value: float) -> bool:
        """Whether a node is this literal; ``x + 0.0`` is ``x`` but for the sign of a zero."""
        return self.value(number) == value

    def dot(self, xs: Sequence[int], ys: Sequence[int], start: int | None = None) -> int:
        """``start`` plus the sum of products."""
        total = self.zero if start is None else start
        for x, y in zip(xs, ys, strict=True):
            total = self.apply("muladd", x, y, total)
        return total

    def fold(self, op: str, xs: Iterable[int]) -> int:
        """``x1 op x2 op ...`` from the left."""
        first, *rest = xs
        for x in rest:
            first = self.apply(op, first, x)
        return first

    def literal(self, value: float) -> str:
        """The Julia text of a number of the program's type."""
        if math.isnan(value):
            return "T(NaN)"
        if math.isinf(value):
            return "T(Inf)" if value > 0 else "T(-Inf)"
        if self.dtype == torch.float64:
            return repr(value)
        text = str(np.float32(value))
        mantissa, _, exponent = text.partition("e")
        return f"{mantissa}f{int(exponent or 0)}"

    def julia(self, results: Sequence[int], header: Sequence[str]) -> str:
        """The text: comment lines ``header``, the functions needed, and ``f(u, p, t)`` returning a tuple of the
        nodes ``results``.

        It needs no package, allocates nothing, and takes dual numbers (ForwardDiff's) for ``u`` and ``t`` as well.
        """
        needed = sorted(self._reachable(results))
        text: dict[int, str] = {}
        body: list[str] = []
        for number in needed:
            node = self.nodes[number]
            if node[0] == "constant":
                literal = self.literal(float(str(node[1])))
                text[number] = f"({literal})" if literal.startswith("-") else literal
            elif node[0] == "bool":
                text[number] = "true" if node[1] else "false"
            elif node[0] == "variable":
                text[number] = str(node[1])
            else:
                if node[0] == "entry":
                    assert isinstance(node[2], int)
                    right = f"{node[1]}[{node[2] + 1}]"
                else:
                    right = TEMPLATES[str(node[0])].format(*(text[x] for x in self._operands(number)))
                text[number] = f"x{number}"
                body.append(f"    x{number} = {right}")
        kind = "Float32" if self.dtype == torch.float32 else "Float64"
        joined = "\n".join(body)
        prelude = [x for name, x in PRELUDE.items() if f"{name}(" in joined]
        if "erf_(" in joined:
            near, far = (", ".join(map(self.literal, table[kind])) for table in (NEAR, FAR))
            prelude.append(_ERF.format(near=near, far=far, center=self.literal(2.0 if kind == "Float32" else 3.75)))
        values = ", ".join(text[x] for x in results) + ("," if len(results) == 1 else "")
        lines = [*(f"# {x}" for x in header), f"const T = {kind}", *prelude]
        return "\n".join([*lines, "@inline function f(u, p, t)", *body, f"    return ({values})", "end", ""])

    def _operands(self, number: int) -> list[int]:
        node = self.nodes[number]
        if node[0] in ("constant", "bool", "variable", "entry"):
            return []
        return [x for x in node[1:] if isinstance(x, int)]

    def _reachable(self, results: Iterable[int]) -> set[int]:
        seen: set[int] = set()
        stack = list(results)
        while stack:
            number = stack.pop()
            if number not in seen:
                seen.add(number)
                stack += self._operands(number)
        return seen
