"""Convolutions in Julia: one function of the prelude, ``convolution!``, in three directions."""

from __future__ import annotations

from dataclasses import fields

from pynode.capture.ir import ConvolutionSizes


def named_tuple(sizes: ConvolutionSizes) -> str:
    """A convolution's sizes as ``convolution!`` reads them."""
    return f"({', '.join(f'{field.name} = {getattr(sizes, field.name)}' for field in fields(sizes))})"


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
