"""Convolutions: one function of the prelude, ``convolution!``, in three directions."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from pynode.errors import explain
from pynode.julia.ir import Convolve, Value
from pynode.julia.lower import Lowering, arguments, note_of, rule
from pynode.julia.lower_sums import reduced
from pynode.julia.refusal import NotCapturable, source_line

aten = torch.ops.aten


class _Spec:
    """A convolution of images (N, C, H, W) to (N, O, P, Q); signals are images of height 1."""

    def __init__(self, node: fx.Node, x: Any, w: Any, rest: Any) -> None:
        stride, padding, dilation, transposed, _, groups = rest
        rank = len(x) - 2
        if rank not in (1, 2):
            raise NotCapturable(
                explain(
                    f"{node.target}{source_line(node)} in {rank} dimensions",
                    "convolutions in one or two dimensions",
                    "use the callback route",
                )
            )
        one, none = [1] * (2 - rank), [0] * (2 - rank)
        each = [[*one, *(stride * rank)[:rank]], [*none, *(padding * rank)[:rank]], [*one, *(dilation * rank)[:rank]]]
        self.stride, self.padding, self.dilation = each
        self.transposed, self.groups = transposed, groups
        self.image = [*x[:2], *one, *x[2:]]
        self.kernel = [*w[:2], *one, *w[2:]]

    def text(self, other: list[int]) -> str:
        """The sizes as a named tuple; ``other`` is the shape of the other side's image."""
        wide, narrow = (other, self.image) if self.transposed else (self.image, other)
        n, c, h, w = wide
        _, o, p, q = narrow
        r, s = self.kernel[2:]
        names = list("nchwopqrs") + ["groups"]
        sizes = [n, c, h, w, o, p, q, r, s, self.groups]
        parts = [f"{name} = {size}" for name, size in zip(names, sizes, strict=True)]
        for name, pair in (("stride", self.stride), ("padding", self.padding), ("dilation", self.dilation)):
            parts.append(f"{name} = ({pair[0]}, {pair[1]})")
        return f"({', '.join(parts)})"

    def columns(self, other: list[int]) -> int:
        wide, narrow = (other, self.image) if self.transposed else (self.image, other)
        count: int = wide[1] // self.groups * self.kernel[2] * self.kernel[3] * narrow[2] * narrow[3]
        return count


def _image(shape: Any) -> list[int]:
    return [*shape[:2], *[1] * (4 - len(shape)), *shape[2:]]


@rule(aten.convolution.default)
def _convolution(low: Lowering, node: fx.Node) -> Value:
    x, w = low.value(arguments(node)[0]), low.value(arguments(node)[1])
    rest: Any = arguments(node)[3:]
    spec = _Spec(node, x.shape, w.shape, rest)
    shape = tuple(node.meta["val"].shape)
    into = low.fresh(shape)
    other = _image(shape)
    kind = "input" if spec.transposed else "forward"
    columns = low.fresh((spec.columns(other),))
    low.statements.append(
        Convolve(kind, into, low.in_order(x), low.in_order(w), columns, spec.text(other), note_of(node))
    )
    result = low.loaded(into)
    if arguments(node)[2] is None:
        return result
    bias = low.value(arguments(node)[2])
    spread = low.seen(bias, lambda b: b.view(1, -1, *[1] * (len(shape) - 2)).expand(shape))
    from pynode.julia.lower_pointwise import plus

    return Value(plus(result.expr, spread.expr), shape)


@rule(aten.convolution_backward.default)
def _backward(low: Lowering, node: fx.Node) -> list[Value | None]:
    g, x, w = (low.value(a) for a in arguments(node)[:3])
    rest: Any = arguments(node)[4:10]
    wanted: Any = arguments(node)[10]
    used = {user.args[1] for user in node.users if user.users}
    spec = _Spec(node, x.shape, w.shape, rest)
    other = _image(g.shape)
    columns = low.fresh((spec.columns(other),))
    found: list[Value | None] = [None, None, None]
    text = spec.text(other)
    note = note_of(node)
    if wanted[0] and 0 in used:
        into = low.fresh(x.shape)
        kind = "forward" if spec.transposed else "input"
        low.statements.append(Convolve(kind, into, low.in_order(g), low.in_order(w), columns, text, "input's " + note))
        found[0] = low.loaded(into)
    if wanted[1] and 1 in used:
        into = low.fresh(w.shape)
        narrow, wide = (x, g) if spec.transposed else (g, x)
        low.statements.append(
            Convolve("weight", into, low.in_order(narrow), low.in_order(wide), columns, text, "weight's " + note)
        )
        found[1] = low.loaded(into)
    if wanted[2] and 2 in used:
        dims = [0, *range(2, len(g.shape))]
        found[2] = reduced(low, "+", g, dims, False, g.dtype, "bias's " + note)
    return found


CONVOLUTION = """
# Convolution of images (w, h, c, n) by kernels (s, r, c ÷ groups, o) to (q, p, o, n), one image and group at a time:
# its columns (im2col), then a matrix product. Val(:forward) fills the image (q, p, o, n) from (w, h, c, n) and the
# kernel; Val(:input) the image (w, h, c, n) from (q, p, o, n) and the kernel; Val(:weight) the kernel from both.
function columns_convolution!(kind::Val, into, a, b, columns, z)
    cg, og = z.c ÷ z.groups, z.o ÷ z.groups
    k, l = z.s * z.r * cg, z.q * z.p
    patches = reshape(view(columns, 1:(k * l)), z.q, z.p, z.s, z.r, cg)
    flat = reshape(view(columns, 1:(k * l)), l, k)
    kind isa Val{:weight} && fill!(into, zero(T))
    kind isa Val{:input} && fill!(into, zero(T))
    for n in 0:(z.n - 1), g in 0:(z.groups - 1)
        wide = (n * z.c + g * cg) * z.h * z.w
        narrow = (n * z.o + g * og) * l
        weights = g * og * k
        if kind isa Val{:forward}
            image = reshape(view(a, (wide + 1):(wide + z.w * z.h * cg)), z.w, z.h, cg)
            gather!(patches, image, z)
            out = reshape(view(into, (narrow + 1):(narrow + l * og)), l, og)
            product!(out, flat, reshape(view(b, (weights + 1):(weights + k * og)), k, og))
        elseif kind isa Val{:input}
            out = reshape(view(a, (narrow + 1):(narrow + l * og)), l, og)
            product!(flat, out, transpose(reshape(view(b, (weights + 1):(weights + k * og)), k, og)))
            image = reshape(view(into, (wide + 1):(wide + z.w * z.h * cg)), z.w, z.h, cg)
            scatter!(image, patches, z)
        else
            image = reshape(view(b, (wide + 1):(wide + z.w * z.h * cg)), z.w, z.h, cg)
            gather!(patches, image, z)
            out = reshape(view(a, (narrow + 1):(narrow + l * og)), l, og)
            product!(reshape(view(into, (weights + 1):(weights + k * og)), k, og), transpose(flat), out, true)
        end
    end
    return nothing
end

# outputs (first:last) that a kernel's offset maps into the image of a length, and the first place there
@inline function reached(offset, stride, padding, length, outputs)
    shift = offset - padding
    first = shift < 0 ? cld(-shift, stride) : 0
    last = min(outputs - 1, fld(length - 1 - shift, stride))
    return first, last, shift + first * stride
end

function gather!(patches, image, z)
    fill!(patches, zero(T))
    for r in 0:(z.r - 1), s in 0:(z.s - 1)
        p1, p2, y = reached(r * z.dilation[1], z.stride[1], z.padding[1], z.h, z.p)
        q1, q2, x = reached(s * z.dilation[2], z.stride[2], z.padding[2], z.w, z.q)
        (p1 > p2 || q1 > q2) && continue
        rows = (y + 1):z.stride[1]:(y + 1 + (p2 - p1) * z.stride[1])
        columns = (x + 1):z.stride[2]:(x + 1 + (q2 - q1) * z.stride[2])
        view(patches, (q1 + 1):(q2 + 1), (p1 + 1):(p2 + 1), s + 1, r + 1, :) .= view(image, columns, rows, :)
    end
end

function scatter!(image, patches, z)
    for r in 0:(z.r - 1), s in 0:(z.s - 1)
        p1, p2, y = reached(r * z.dilation[1], z.stride[1], z.padding[1], z.h, z.p)
        q1, q2, x = reached(s * z.dilation[2], z.stride[2], z.padding[2], z.w, z.q)
        (p1 > p2 || q1 > q2) && continue
        rows = (y + 1):z.stride[1]:(y + 1 + (p2 - p1) * z.stride[1])
        columns = (x + 1):z.stride[2]:(x + 1 + (q2 - q1) * z.stride[2])
        view(image, columns, rows, :) .+= view(patches, (q1 + 1):(q2 + 1), (p1 + 1):(p2 + 1), s + 1, r + 1, :)
    end
end

# Any function of these arguments may take its place.
const convolution! = columns_convolution!
"""
