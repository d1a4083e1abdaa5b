"""A captured field as the text of a C++ program: one translation unit with C functions on flat vectors.

The functions hold no memory of their own: workspace is the caller's, so that they may run at the same time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from pynode.capture import lower_conv, lower_indexing, lower_pointwise, lower_sums, lower_views
from pynode.capture.accesses import reads, writes
from pynode.capture.capturing import Captured
from pynode.capture.fuse import arranged
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
    Store,
    Value,
    View,
    leaves,
    numel,
)
from pynode.capture.lower import Lowering, check_supported
from pynode.capture.nests import bare
from pynode.cpp.arena import Arena
from pynode.cpp.blocks import BLOCKS
from pynode.cpp.convolution import CONVOLUTION, convolution_text, make_room
from pynode.cpp.joint import halves, joined, left_behind, root
from pynode.cpp.loops import AddedReduce, element_lines
from pynode.cpp.lowering import KeepingLowering
from pynode.cpp.nest import CppNest
from pynode.cpp.prelude import prelude
from pynode.cpp.products import PRODUCTS, as_products, product_text
from pynode.cpp.text import literal, type_of

_FAMILIES = (
    lower_conv,
    lower_indexing,
    lower_pointwise,
    lower_sums,
    lower_views,
)  # importing them registers their operators

_INPUTS = "const T* __restrict u, const T* __restrict p, void* const* c, double t"
#: The functions' arguments.
HEADS = {
    "f": f"void field_f(T* __restrict du, {_INPUTS}, T* __restrict w)",
    "forward": f"void field_forward(T* __restrict du, {_INPUTS}, T* __restrict w)",
    "backward": f"void field_backward(T* __restrict da, T* __restrict g, const T* __restrict a, {_INPUTS}, "
    "T* __restrict w, T* __restrict s)",
    "vjp_t": f"T field_vjp_t(const T* __restrict a, {_INPUTS}, T* __restrict w)",
    "tgrad": f"void field_tgrad(T* __restrict dT, {_INPUTS}, T* __restrict w)",
}
_MEANINGS = {
    "f": "du = f(t, u)",
    "forward": "du = f(t, u), leaving in w what field_backward reads",
    "backward": "da = (df/du)' a, g += (df/dp)' a, after field_forward with the same u, p, c, t, w",
    "vjp_t": "a . df/dt",
    "tgrad": "dT = df/dt",
}


@dataclass(frozen=True)
class Program:
    """A field's text, and what its callers have to know.

    Attributes
    ----------
    source : str
        C++17, without the constants' values.
    constants : tuple of Tensor
        The tensors ``c[0]``, ``c[1]``... are to hold: contiguous numbers of the state's precision, 64-bit whole numbers
        or truth values of one byte. See ``prepared``.
    dtype : torch.dtype
    size, parameters_size : int
        Lengths of ``u`` and ``p``.
    f_work, joint_work, backward_work, time_work : int
        Lengths, in numbers of the precision, of the workspace of ``field_f``; of what ``field_forward`` fills; of the
        scratch of ``field_backward``; of the workspace of ``field_vjp_t`` and ``field_tgrad``.
    products : bool
        Whether there is more than ``field_f``.
    """

    source: str
    constants: tuple[Tensor, ...]
    dtype: torch.dtype
    size: int
    parameters_size: int
    f_work: int
    joint_work: int
    backward_work: int
    time_work: int
    products: bool

    def prepared(self) -> list[Tensor]:
        """The constants as the functions read them; keep them alive while these run."""
        return [x.detach().to("cpu", _kind(x.dtype, self.dtype)).contiguous() for x in self.constants]


def _kind(dtype: torch.dtype, real: torch.dtype) -> torch.dtype:
    return real if dtype.is_floating_point else torch.bool if dtype == torch.bool else torch.int64


def emit(captured: Captured) -> Program:
    """C++ text for a captured field.

    Raises
    ------
    NotCapturable
        For operators that have no C++ form.
    """
    return _Writer(captured).program()


class _Writer:
    def __init__(self, captured: Captured) -> None:
        self.captured = captured
        self.dtype = captured.dtype
        self.constants = [
            Buffer(f"c{i + 1}", x.numel(), _kind(x.dtype, self.dtype), "constant")
            for i, x in enumerate(captured.constants)
        ]

    def program(self) -> Program:
        captured = self.captured
        graphs = captured.graphs
        products = "vjp" in graphs
        f_lines, f_work = self._whole("f", graphs["f"], "du")
        functions, joint, backward, time = [f_lines], 0, 0, 0
        if products:
            halved, joint, backward = self._halved()
            vjp_t, time = self._number()
            tgrad, more = self._whole("tgrad", graphs["tgrad"], "dT")
            functions += [*halved, vjp_t, tgrad]
            time = max(time, more)
        sizes = (captured.size, captured.parameters_size, f_work, joint, backward, time, len(self.constants))
        listed = ", ".join(map(str, sizes))
        body = [line for function in functions for line in ["", *function]]
        convolved = any("convolution" in line and "Shape<" in line for line in body)
        multiplied = convolved or any("product<" in line for line in body)
        lines = [
            "// Written by pynode: a torch function and its products, on flat vectors in torch's row-major order.",
            prelude(self.dtype),
            BLOCKS if multiplied else "",
            PRODUCTS if multiplied else 'extern "C" void field_set_gemm(void*) {}',
            CONVOLUTION if convolved else "",
            "// n, length of p, workspace of f, forward, backward (s), vjp_t and tgrad; number of constants",
            f'extern "C" {{\nextern const long field_sizes[7];\nconst long field_sizes[7] = {{{listed}}};',
            *body,
            "}",
            "",
        ]
        return Program(
            "\n".join(lines),
            captured.constants,
            self.dtype,
            captured.size,
            captured.parameters_size,
            f_work,
            joint,
            backward,
            time,
            products,
        )

    def _lowered(self, module: fx.GraphModule) -> tuple[Lowering, list[Value | None]]:
        captured, dtype = self.captured, self.dtype
        check_supported(module.graph)
        u = Buffer("u", captured.size, dtype, "argument")
        a = Buffer("a", captured.size, dtype, "argument")
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
        low = KeepingLowering(module.graph, inputs, dtype)
        values = low.run()
        low.statements = as_products(low.statements)
        make_room(low.statements)
        return low, values

    def _vector(self, name: str, size: int | None = None) -> Buffer:
        return Buffer(name, self.captured.size if size is None else size, self.dtype, "argument")

    def _whole(self, name: str, module: fx.GraphModule, result: str) -> tuple[list[str], int]:
        """A function that fills one vector, and the length of its workspace."""
        low, (value,) = self._lowered(module)
        out = self._vector(result)
        _deliver(low, View.of(out, (out.size,)), value)
        statements = arranged(low.statements)
        arena = Arena("w", self.dtype)
        arena.share(statements)
        return self._function(name, statements, arena.pointers(), ""), arena.size

    def _number(self) -> tuple[list[str], int]:
        low, (value,) = self._lowered(self.captured.graphs["vjp_t"])
        arena = Arena("w", self.dtype)
        if value is None:
            ending = "return T(0);"
        elif isinstance(value.expr, Scalar):
            ending = f"return {value.expr.name};"
        elif isinstance(value.expr, Literal):
            ending = f"return {literal(value.expr.value, self.dtype)};"
        else:
            into = low.fresh((), self.dtype)
            low.write(into, value)
            into.buffer.name, into.buffer.kind = "w", "result"
            arena.keep([into.buffer])
            ending = f"return w[{into.buffer.resolved()[1]}];"
        statements = arranged(low.statements)
        arena.share(statements)
        return self._function("vjp_t", statements, arena.pointers(), ending), arena.size

    def _halved(self) -> tuple[list[list[str]], int, int]:
        """The functions ``forward`` and ``backward``, and the lengths of their workspace."""
        graphs, captured = self.captured.graphs, self.captured
        low, (derivative, product, *gradients) = self._lowered(joined([graphs[x] for x in ("f", "vjp", "vjp_p")]))
        du, da, g = self._vector("du"), self._vector("da"), self._vector("g", captured.parameters_size)
        whole = View.of(du, (du.size,))
        homed = _deliver(low, whole, derivative)
        _deliver(low, View.of(da, (da.size,)), product)
        for slot, gradient in zip(captured.slots, gradients, strict=True):
            if gradient is not None:
                _add(low, View.of(g, slot.shape, slot.offset), gradient)
        first, second = halves(low.statements, du)
        if homed is not None and any(root(view) is du for statement in second for view in reads(statement)):
            # The second half reads the result: it needs a place of its own.
            homed.home = None
            first.append(Loop(whole.shape, [Store(whole, Load(View.of(homed, whole.shape), self.dtype))]))
        second = arranged(second)
        kept = left_behind(second)
        for buffer in kept:
            buffer.kind = "kept"
        first = arranged(first)
        passed, scratch = Arena("w", self.dtype), Arena("s", self.dtype)
        passed.keep(kept)
        passed.share(first)
        scratch.share(second)
        functions = [
            self._function("forward", first, passed.pointers(), ""),
            self._function("backward", second, [*passed.pointers(), *scratch.pointers()], ""),
        ]
        return functions, passed.size, scratch.size

    def _function(self, name: str, statements: Sequence[Statement], pointers: list[str], ending: str) -> list[str]:
        names = itertools.count(1)
        lines = [line for statement in statements for line in self._statement(statement, names)]
        used = "\n".join([*lines, ending])
        opening = ["const T time = T(t);"] if "time" in used else []
        for i, buffer in enumerate(self.constants):
            if f"{buffer.name}[" in used or f"{buffer.name} " in used or f"{buffer.name}," in used:
                kind = type_of(buffer.dtype)
                opening.append(f"const {kind}* const __restrict {buffer.name} = static_cast<const {kind}*>(c[{i}]);")
        body = [*opening, *pointers, *lines, *([ending] if ending else [])]
        indented = [line if line.startswith("#") else "    " + line for line in body]
        return [f"// {_MEANINGS[name]}", f"{HEADS[name]} {{", *indented, "}"]

    def _statement(self, statement: Statement, names: Iterator[int]) -> list[str]:
        lines: list[str]
        if isinstance(statement, Assign):
            kind = type_of(statement.target.dtype)
            lines = [f"const {kind} {statement.target.name} = {_scalar(statement.expr, names)};"]
        elif isinstance(statement, Loop | Reduce | Scan):
            lines = element_lines(statement, names)
        elif isinstance(statement, MatMul):
            lines = [product_text(statement)]
        else:
            lines = [convolution_text(statement)]
        if statement.note and lines:
            lines = [f"// {statement.note}", *lines]
        return lines


def _scalar(expr: Expr, names: Iterator[int]) -> str:
    return bare(CppNest((), {id(leaf.view): () for leaf in leaves(expr)}, names).text(expr))


def _in_shape(low: Lowering, value: Value, shape: tuple[int, ...]) -> Value:
    return low.seen(value, lambda x: x.reshape(shape)) if value.shape != shape else value


def _owned(value: Value) -> Buffer | None:
    """The workspace that holds the value and nothing else, in order."""
    view = value.view
    if view is None or not view.is_contiguous or view.buffer.kind != "work" or view.buffer.home is not None:
        return None
    return view.buffer if view.offset == 0 and numel(view.shape) == view.buffer.size else None


def _deliver(low: Lowering, place: View, value: Value | None) -> Buffer | None:
    """Put a result where it belongs: computed there if it has been computed into workspace of its own, which then is
    returned."""
    if value is None:
        low.write(place, Value(Literal(0, low.dtype), ()), "no dependence")
        return None
    buffer = _owned(value)
    if buffer is not None:
        buffer.home = (place.buffer, place.offset)
        return buffer
    low.write(place, _in_shape(low, value, place.shape))
    return None


def _add(low: Lowering, place: View, value: Value) -> None:
    """Add a result to what is in its place: by the statement that computes it, if that is the only one to know it."""
    buffer = _owned(value)
    if buffer is not None:
        writing = [i for i, x in enumerate(low.statements) if any(v.buffer is buffer for v in writes(x))]
        reading = any(view.buffer is buffer for x in low.statements for view in reads(x))
        last = low.statements[writing[-1]]
        if len(writing) == 1 and not reading:
            if isinstance(last, MatMul) and not last.add:
                last.add = True
                buffer.home = (place.buffer, place.offset)
                return
            if isinstance(last, Reduce) and last.kind == "+":
                low.statements[writing[-1]] = AddedReduce(
                    last.kind, last.shape, last.into, last.reduced, last.expr, last.note
                )
                buffer.home = (place.buffer, place.offset)
                return
    low.write(place, _in_shape(low, value, place.shape), "", add=True)
