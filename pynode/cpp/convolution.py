"""Convolutions in C++: each image's columns, then a matrix product."""

from __future__ import annotations

from collections.abc import Sequence

from pynode.capture.ir import ConvolutionSizes, Convolve, Statement, View
from pynode.cpp.direct import DIRECT
from pynode.cpp.products import pointer

_KINDS = {"forward": 0, "input": 1, "weight": 2}

CONVOLUTION = """
// Images (n, c, h, w) and (n, o, p, q), kernels (o, c / groups, r, s).
template <int n_, int c_, int h_, int w_, int o_, int p_, int q_, int r_, int s_, int groups_, int sy_, int sx_,
          int py_, int px_, int dy_, int dx_>
struct Shape {
    static constexpr int n = n_, c = c_, h = h_, w = w_, o = o_, p = p_, q = q_, r = r_, s = s_, groups = groups_;
    static constexpr int sy = sy_, sx = sx_, py = py_, px = px_, dy = dy_, dx = dx_;
    static constexpr int cg = c / groups, og = o / groups, k = r * s * cg, l = p * q;
};

// Places (first..last) of a row or column of outputs that an offset of the kernel maps into an image of a length.
struct Reach {
    int first, last, start;
};
static constexpr Reach reached(int offset, int stride, int padding, int length, int outputs) {
    const int shift = offset - padding;
    const int first = shift < 0 ? (-shift + stride - 1) / stride : 0;
    const int room = length - 1 - shift;
    const int last = room < 0 ? -1 : (room / stride < outputs - 1 ? room / stride : outputs - 1);
    return {first, last, shift + first * stride};
}

// columns (cg, r, s, p, q) of an image (cg, h, w), or these added to it
template <class Z, bool back>
static void columns_of(T* __restrict columns, T* __restrict image) {
    for (int ch = 0; ch < Z::cg; ++ch)
        for (int r = 0; r < Z::r; ++r)
            for (int s = 0; s < Z::s; ++s) {
                T* __restrict patch = columns + ((ch * Z::r + r) * Z::s + s) * Z::l;
                const Reach y = reached(r * Z::dy, Z::sy, Z::py, Z::h, Z::p);
                const Reach x = reached(s * Z::dx, Z::sx, Z::px, Z::w, Z::q);
                if (!back && (y.first > 0 || x.first > 0 || y.last < Z::p - 1 || x.last < Z::q - 1))
                    for (int i = 0; i < Z::l; ++i) patch[i] = T(0);
                for (int p = y.first; p <= y.last; ++p) {
                    T* __restrict row = image + (ch * Z::h + y.start + (p - y.first) * Z::sy) * Z::w + x.start;
                    T* __restrict line = patch + p * Z::q + x.first;
                    const int count = x.last - x.first + 1;
#pragma omp simd
                    for (int q = 0; q < count; ++q) {
                        if (back) row[q * Z::sx] += line[q];
                        else line[q] = row[q * Z::sx];
                    }
                }
            }
}

// kind 0: into (n, o, p, q) from the images a (n, c, h, w) and the kernel b; 1: into (n, c, h, w) from the images
// a (n, o, p, q) and the kernel b; 2: the kernel from the images a (n, o, p, q) and b (n, c, h, w)
template <class Z, int kind>
static void convolution_(T* __restrict into, const T* __restrict a, const T* __restrict b, T* __restrict columns) {
    constexpr int k = Z::k, l = Z::l, og = Z::og;
    constexpr long wide = long(Z::cg) * Z::h * Z::w, narrow = long(og) * l;
    if (kind == 1)
        for (long i = 0; i < wide * Z::n * Z::groups; ++i) into[i] = T(0);
    if (kind == 2)
        for (long i = 0; i < long(Z::o) * k; ++i) into[i] = T(0);
    for (long i = 0; i < long(Z::n) * Z::groups; ++i) {
        const long group = i % Z::groups;
        if (kind == 0) {
            columns_of<Z, false>(columns, const_cast<T*>(a) + i * wide);
            product<og, l, k, l, k, 1, l, 1, false>(into + i * narrow, b + group * og * k, columns);
        } else if (kind == 1) {
            product<k, l, og, l, 1, k, l, 1, false>(columns, b + group * og * k, a + i * narrow);
            columns_of<Z, true>(columns, into + i * wide);
        } else {
            columns_of<Z, false>(columns, const_cast<T*>(b) + i * wide);
            product<og, k, l, k, l, 1, 1, l, true>(into + group * og * k, a + i * narrow, columns);
        }
    }
}
"""
CONVOLUTION += DIRECT


#: Numbers in the longest vector, and columns of the widest block.
_LANES = 16


def _direct(z: ConvolutionSizes) -> bool:
    """Whether it is done without columns."""
    reach = [(n - 1) * d for n, d in zip((z.r, z.s), z.dilation, strict=True)]
    return z.stride == (1, 1) and all(x >= y for x, y in zip(reach, z.padding, strict=True))


def _scratch(z: ConvolutionSizes, kind: str) -> int:
    """Numbers of workspace."""
    if not _direct(z):
        return z.columns
    c, o = z.c // z.groups, z.o // z.groups
    kernel = z.r * z.s
    ci, co, p, q = (o, c, z.h, z.w) if kind == "input" else (c, o, z.p, z.q)
    high, wide = p + (z.r - 1) * z.dilation[0], q + (z.s - 1) * z.dilation[1]
    line = (p - 1) * wide + q + _LANES
    image = ci * high * wide + line + _LANES
    if kind == "weight":
        return image + (p * q + ci * kernel) * (co + _LANES)
    return image + co * line + (ci * co * kernel if kind == "input" else 0)


def make_room(statements: Sequence[Statement]) -> None:
    """Give convolutions the workspace they need here."""
    for statement in statements:
        if isinstance(statement, Convolve):
            buffer = statement.columns.buffer
            buffer.size = _scratch(statement.sizes, statement.kind)
            statement.columns = View.of(buffer, (buffer.size,))


def convolution_text(statement: Convolve) -> str:
    """The call that does it; all sizes are compile-time constants."""
    z = statement.sizes
    numbers = (z.n, z.c, z.h, z.w, z.o, z.p, z.q, z.r, z.s, z.groups, *z.stride, *z.padding, *z.dilation)
    places = ", ".join(pointer(v) for v in (statement.into, statement.a, statement.b, statement.columns))
    name = "direct_convolution" if _direct(z) else "convolution_"
    return f"{name}<Shape<{', '.join(map(str, numbers))}>, {_KINDS[statement.kind]}>({places});"
