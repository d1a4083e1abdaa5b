"""A captured field as the text of a Julia program.

The text defines ``f!``, ``vjp!``, ``vjp_p!``, ``vjp_t`` and ``tgrad!`` on flat vectors and needs Julia's standard
library only. Workspace is allocated once, when the text is evaluated: the functions are not reentrant.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pynode.capture import lower_conv, lower_indexing, lower_pointwise, lower_sums, lower_views
from pynode.capture.capturing import Captured
from pynode.capture.fuse import Workspace, arranged
from pynode.capture.ir import (
    Assign,
    Buffer,
    Expr,
    Literal,
    Load,
    Loop,
    MatMul,
    Reduce,
    Scalar,
    Scan,
    Statement,
    Value,
    View,
    leaves,
    numel,
)
from pynode.capture.lower import Lowering, check_supported
from pynode.capture.nests import bare
from pynode.julia.activations import prelude
from pynode.julia.convolution import CONVOLUTION, named_tuple
from pynode.julia.launches import LAUNCH, launched
from pynode.julia.loops import JuliaNest, element_lines, literal
from pynode.julia.matrix_product import product

_FAMILIES = (
    lower_conv,
    lower_indexing,
    lower_pointwise,
    lower_sums,
    lower_views,
)  # importing them registers their operators

_JULIA = {torch.bool: "Bool", torch.int64: "Int64", torch.int32: "Int64"}


@dataclass(frozen=True)
class Program:
    """The text of a module's body.

    Attributes
    ----------
    source : str
        Julia text, without the constants' values.
    constants : list of Tensor
        Values, to be copied row-major into the arrays of the tuple ``constants`` of the program.
    """

    source: str
    constants: list[Tensor]

    def standalone(self) -> str:
        """The text with the constants' values in it."""
        fills = [f"copyto!(constants[{i + 1}], {_values(x)})" for i, x in enumerate(self.constants)]
        return "\n".join([self.source, *(["# values of the constants", *fills] if fills else []), ""])


def _values(x: Tensor) -> str:
    flat = x.detach().cpu().reshape(-1)
    kind = "Bool" if x.dtype == torch.bool else "Float32" if x.dtype == torch.float32 else "Float64"
    kind = kind if x.dtype == torch.bool or x.is_floating_point() else "Int64"
    return f"{kind}[{', '.join(bare(literal(v, x.dtype)) for v in flat.tolist())}]"


def _in_comment(name: str) -> str:
    """A name of the user's, which may hold anything, on one line: a line break would end the comment, and what stood
    behind it would run; other invisible characters could hide what is read."""
    return "".join(x if x.isprintable() else x.encode("unicode_escape").decode() for x in name)


_TIME = re.compile(r"\btime\b")

#: Each function: its head, the array it fills.
_HEADS = {
    "f": ("f!(du, u, p, t)", "du", "the derivative f(t, u)"),
    "vjp": ("vjp!(dλ, λ, u, p, t)", "dλ", "dλ = (∂f/∂u)ᵀ λ"),
    "vjp_p": ("vjp_p!(g, λ, u, p, t)", "g", "g = (∂f/∂p)ᵀ λ"),
    "vjp_t": ("vjp_t(λ, u, p, t)", "", "the number λ · ∂f/∂t"),
    "tgrad": ("tgrad!(dT, u, p, t)", "dT", "dT = ∂f/∂t"),
}


def emit(captured: Captured, array: str = "Array") -> Program:
    """Julia text for a captured field.

    Parameters
    ----------
    captured : Captured
    array : str
        Constructor of the program's arrays. With another one than ``Array`` no single element is indexed.

    Raises
    ------
    NotCapturable
        For operators that have no Julia form.
    """
    writer = _Writer(captured, array)
    lowered = {name: writer.lowered(name) for name in _HEADS}  # first all of them: they share their workspace
    functions = [writer.function(name, *parts) for name, parts in lowered.items()]
    return Program(writer.text(functions), list(captured.constants))


class _Writer:
    def __init__(self, captured: Captured, array: str) -> None:
        self.captured = captured
        self.array = array
        self.loops = array == "Array"
        self.threads = 0
        self.dtype = captured.dtype
        self.constants = [
            Buffer(f"c{i + 1}", x.numel(), self._kind(x.dtype), "constant") for i, x in enumerate(captured.constants)
        ]
        self.workspace = Workspace()
        self.matrices: dict[str, str] = {}

    def _kind(self, dtype: torch.dtype) -> torch.dtype:
        return self.dtype if dtype.is_floating_point else torch.bool if dtype == torch.bool else torch.int64

    def lowered(self, name: str) -> tuple[list[Statement], list[str]]:
        """A function's statements, and the lines after them."""
        captured, dtype = self.captured, self.dtype
        _, result, _ = _HEADS[name]
        module = captured.graphs[name]
        check_supported(module.graph)
        u = Buffer("u", captured.size, dtype, "argument")
        a = Buffer("λ", captured.size, dtype, "argument")
        p = Buffer("p", captured.parameters_size, dtype, "argument")
        inputs: dict[str, Value] = {
            "t": Value(Scalar("time", dtype), ()),
            "u": Value(Load(View.of(u, (u.size,)), dtype), (u.size,)),
            "a": Value(Load(View.of(a, (a.size,)), dtype), (a.size,)),
        }
        for i, slot in enumerate(captured.slots):
            inputs[f"p{i}"] = Value(Load(View.of(p, slot.shape, slot.offset), dtype), slot.shape)
        for i, (buffer, x) in enumerate(zip(self.constants, captured.constants, strict=True)):
            inputs[f"c{i}"] = Value(Load(View.of(buffer, x.shape), buffer.dtype), tuple(x.shape))
        low = Lowering(module.graph, inputs, dtype)
        values = low.run()
        if name == "vjp_t":
            ending = self._number(low, values[0])
        else:
            out = Buffer(result, captured.size if name != "vjp_p" else p.size, dtype, "argument")
            places = [View.of(out, (out.size,))]
            if name == "vjp_p":
                places = [View.of(out, slot.shape, slot.offset) for slot in captured.slots]
            for place, value in zip(places, values, strict=True):
                self._deliver(low, place, value)
            ending = ["return nothing"]
        statements = arranged(low.statements)
        self.workspace.place(statements)
        return statements, ending

    def function(self, name: str, statements: Sequence[Statement], ending: list[str]) -> list[str]:
        """A function's text."""
        head, _, meaning = _HEADS[name]
        names = itertools.count(1)
        lines = [line for statement in statements for line in self._statement(statement, names)]
        if any(_TIME.search(line) for line in [*lines, *ending]):
            lines = ["time = T(t)", *lines]
        return [f"# {meaning}", f"function {head}", *("    " + line for line in [*lines, *ending]), "end"]

    def _number(self, low: Lowering, value: Value | None) -> list[str]:
        """The line that returns a number."""
        if value is None:
            return ["return zero(T)"]
        if isinstance(value.expr, Scalar):
            return [f"return {value.expr.name}"]
        if isinstance(value.expr, Literal):
            return [f"return {literal(value.expr.value, self.dtype)}"]
        into = low.fresh((), self.dtype)
        low.write(into, value)
        into.buffer.name, into.buffer.kind = "product", "result"
        return ["return product[1]" if self.loops else "return sum(product)"]

    def _deliver(self, low: Lowering, place: View, value: Value | None) -> None:
        """Put a result where it belongs: computed there if it has been computed into workspace of its own."""
        if value is None:
            low.write(place, Value(Literal(0, self.dtype), ()), "no dependence")
            return
        view = value.view
        if view is not None and view.is_contiguous and view.buffer.kind == "work" and view.buffer.home is None:
            whole = view.offset == 0 and numel(view.shape) == view.buffer.size
            if whole:
                view.buffer.home = (place.buffer, place.offset)
                return
        low.write(place, low.seen(value, lambda x: x.reshape(place.shape)) if value.shape != place.shape else value)

    def _statement(self, statement: Statement, names: Iterator[int]) -> list[str]:
        lines: list[str]
        if isinstance(statement, Assign):
            lines = [f"{statement.target.name} = {self._scalar_text(statement.expr, names)}"]
        elif isinstance(statement, Loop | Reduce | Scan):
            lines = (element_lines if self.loops else self._launch)(statement, names)
        elif isinstance(statement, MatMul):
            lines = [self._product(statement)]
        else:
            flat = ", ".join(self._flat(v) for v in (statement.into, statement.a, statement.b, statement.columns))
            lines = [f"convolution!(Val(:{statement.kind}), {flat}, {named_tuple(statement.sizes)})"]
        if statement.note and lines:
            lines = [f"# {statement.note}", *lines]
        return lines

    def _launch(self, statement: Loop | Reduce | Scan, names: Iterator[int]) -> list[str]:
        launch = launched(statement, names)
        self.threads = max(self.threads, launch.threads)
        return launch.lines

    def _scalar_text(self, expr: Expr, names: Iterator[int]) -> str:
        nest = JuliaNest((), {id(leaf.view): () for leaf in leaves(expr)}, names)
        return bare(nest.text(expr))

    def _product(self, statement: MatMul) -> str:
        into, a, b = (self._matrix(v) for v in (statement.into, statement.a, statement.b))
        # Rows of torch are columns of Julia: intoᵀ = bᵀ aᵀ.
        more = ", true" if statement.add else ""
        return f"product!({into}, {b}, {a}{more})"

    def _flat(self, view: View) -> str:
        buffer, offset = view.buffer.resolved()
        start = offset + view.offset
        count = numel(view.shape)
        if start == 0 and count == buffer.size and buffer.kind != "slot":
            return buffer.name
        return f"view({buffer.name}, {start + 1}:{start + count})"

    def _matrix(self, view: View) -> str:
        """A matrix of torch, transposed, as a Julia matrix."""
        (rows, columns), (s, t) = view.shape, view.strides
        turned = not ((t == 1 or columns == 1) and (s >= columns or rows == 1))
        if turned:
            rows, columns, s, t = columns, rows, t, s
        s = columns if rows == 1 else s
        buffer, offset = view.buffer.resolved()
        start = offset + view.offset
        span = s * (rows - 1) + columns
        if s == columns:
            text = self._reshaped(buffer, start, columns, rows)
        else:
            text = f"view({self._reshaped(buffer, start, s, rows, span)}, 1:{columns}, :)"
        return f"transpose({text})" if turned else text

    def _reshaped(self, buffer: Buffer, start: int, rows: int, columns: int, span: int | None = None) -> str:
        count = rows * columns
        whole = buffer.kind != "argument"
        text = f"view({buffer.name}, {start + 1}:{start + count})"
        if whole:
            text = buffer.name if buffer.size == count and start == 0 else text
            definition = f"reshape({text}, {rows}, {columns})"
            return self.matrices.setdefault(definition, f"m{len(self.matrices) + 1}")
        return f"reshape({text}, {rows}, {columns})"

    def text(self, functions: Sequence[list[str]]) -> str:
        captured = self.captured
        kind = "Float32" if self.dtype == torch.float32 else "Float64"
        body = [line for function in functions for line in function]
        lines = [
            "# Written by pynode: a torch function and its products, on flat vectors in torch's row-major order.",
            f"# n = {captured.size}, state {kind}; workspace is shared: the functions are not reentrant.",
            "using LinearAlgebra: BLAS, Transpose, mul!",
            "",
            f"const T = {kind}",
        ]
        if captured.slots:
            lines += ["# p holds"]
            for slot in captured.slots:
                lines.append(f"#   {slot.offset + 1}:{slot.offset + slot.size}  {_in_comment(slot.name)} {slot.shape}")
        for buffer, x in zip(self.constants, captured.constants, strict=True):
            lines.append(f"const {buffer.name} = {self._allocated(buffer.dtype, buffer.size)}  # {tuple(x.shape)}")
        comma = "," if len(self.constants) == 1 else ""
        lines.append(f"const constants = ({', '.join(buffer.name for buffer in self.constants)}{comma})")
        for array in [*self.workspace.slots, Buffer("product", 1, self.dtype, "result")]:
            lines.append(f"const {array.name} = {self._allocated(array.dtype, array.size)}")
        for definition, name in self.matrices.items():
            lines.append(f"const {name} = {definition}")
        if self.threads:
            lines += [f"const done = {self._allocated(torch.bool, self.threads)}", LAUNCH.rstrip()]
        convolved = any("convolution!(" in line for line in body)
        if convolved or any("product!(" in line for line in body):
            lines += ["", product(self.array == "Array")]
        if convolved:
            lines += ["", CONVOLUTION.strip("\n")]
        for text in prelude(body, self.dtype):
            lines += ["", text]
        for function in functions:
            lines += ["", *function]
        return "\n".join([*lines, ""])

    def _allocated(self, dtype: torch.dtype, size: int) -> str:
        return f"{self.array}{{{_JULIA.get(dtype, 'T')}}}(undef, {size})"
