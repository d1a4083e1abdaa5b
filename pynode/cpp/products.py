"""Matrix products: BLAS where one is known, loops of their own otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from pynode.capture.ir import Load, MatMul, Op, Reduce, Statement, View

PRODUCTS = """
// Multiplications up to which a product is done here, and numbers of room on the stack.
#ifndef LARGEST
#define LARGEST 8000000
#endif
#define ROOM 16384

// Fortran's gemm, with 32-bit integers; set before the first call, or left out
extern "C" {
typedef void (*Gemm)(
    const char*, const char*, const int*, const int*, const int*, const T*, const T*, const int*, const T*, const int*,
    const T*, T*, const int*);
static Gemm gemm_ = nullptr;
void field_set_gemm(void* gemm) { gemm_ = reinterpret_cast<Gemm>(gemm); }
}

// c (m, n), rows of stride sc, = or += a b with strides (row, column), in registers; b is laid out in whole vectors
// first, unless it lies so
template <int m, int n, int k, int b1>
struct Small {
    static constexpr int line = vectors_of(n) * lanes;
    static constexpr bool straight = b1 == 1 && n % lanes == 0;
    static constexpr long room = (straight ? 0 : long(k) * line) + (n % lanes == 0 ? 0 : long(m) * line);
    static constexpr bool fits =
        m >= (straight ? 4 : 16) && 2 * n >= line && k <= 256 && long(m) * n * k <= LARGEST && room <= ROOM;
};
template <int m, int n, int k, int sc, int a0, int a1, int b0, int b1, bool add>
static void small_product(T* __restrict c, const T* __restrict a, const T* __restrict b) {
    using S = Small<m, n, k, b1>;
    alignas(64) T room[S::room + 1];
    T* const __restrict right = room;
    if (!S::straight)
        for (int l = 0; l < k; ++l) {
#pragma omp simd
            for (int j = 0; j < n; ++j) right[l * S::line + j] = b[l * b0 + j * b1];
            for (int j = n; j < S::line; ++j) right[l * S::line + j] = T(0);
        }
    const auto left = [&](int i, int l) { return a[i * a0 + l * a1]; };
    const auto place = [&](int l) { return S::straight ? b + l * b0 : right + l * S::line; };
    if constexpr (n % lanes == 0) {
        blocks<m, S::line / lanes, add>(c, sc, k, left, place);
    } else {
        T* const __restrict out = room + (S::straight ? 0 : k * S::line);
        blocks<m, S::line / lanes, false>(out, S::line, k, left, place);
        for (int i = 0; i < m; ++i)
#pragma omp simd
            for (int j = 0; j < n; ++j) c[i * sc + j] = (add ? c[i * sc + j] : T(0)) + out[i * S::line + j];
    }
}

// c = a b, or c + a b; c is (m, n) with rows of stride sc, a and b have strides (row, column)
template <int m, int n, int k, int sc, int a0, int a1, int b0, int b1, bool add>
static void product(T* __restrict c, const T* __restrict a, const T* __restrict b) {
    if constexpr (Small<m, n, k, b1>::fits) {
        small_product<m, n, k, sc, a0, a1, b0, b1, add>(c, a, b);
        return;
    }
    if (gemm_) {
        const int rows = n, columns = m, inner = k, lda = a1 == 1 ? a0 : a1, ldb = b1 == 1 ? b0 : b1, ldc = sc;
        const T one = 1, beta = add ? 1 : 0;
        // Rows of C are columns of Fortran: c' = b' a'.
        gemm_(b1 == 1 ? "N" : "T", a1 == 1 ? "N" : "T", &rows, &columns, &inner, &one, b, &ldb, a, &lda, &beta, c,
              &ldc);
        return;
    }
    // Columns of a length that the cache holds.
    constexpr int width = 256;
    for (long first = 0; first < n; first += width) {
        const long end = first + width < n ? first + width : n;
        for (long i = 0; i < m; ++i) {
            T* __restrict row = c + i * sc;
            if (!add)
                for (long j = first; j < end; ++j) row[j] = T(0);
            for (long l = 0; l < k; ++l) {
                const T x = a[i * a0 + l * a1];
#pragma omp simd
                for (long j = first; j < end; ++j) row[j] += x * b[l * b0 + j * b1];
            }
        }
    }
}
"""


def _leading(view: View) -> tuple[int, int]:
    """Strides as BLAS takes them: one is 1, the other at least the length it steps over."""
    (rows, columns), (s, t) = view.shape, view.strides
    if (t == 1 or columns == 1) and (s >= columns or rows == 1):
        return max(s if rows > 1 else columns, columns), 1
    return 1, max(t if columns > 1 else rows, rows)


def pointer(view: View) -> str:
    """Its first element's address as C++."""
    buffer, offset = view.buffer.resolved()
    offset += view.offset
    return f"{buffer.name} + {offset}" if offset else buffer.name


def turned(view: View) -> View:
    """The transpose of a matrix."""
    return View(view.buffer, view.shape[::-1], view.strides[::-1], view.offset)


def product_text(statement: MatMul) -> str:
    """The call that does it; sizes and strides are compile-time constants."""
    into, a, b = statement.into, statement.a, statement.b
    if _leading(into)[1] != 1:
        into, a, b = turned(into), turned(b), turned(a)
    (m, n), k = into.shape, a.shape[1]
    sizes = [m, n, k, _leading(into)[0], *_leading(a), *_leading(b)]
    listed = ", ".join(map(str, sizes))
    added = "true" if statement.add else "false"
    return f"product<{listed}, {added}>({pointer(into)}, {pointer(a)}, {pointer(b)});"


def as_products(statements: Sequence[Statement]) -> list[Statement]:
    """Sums of products of two matrices' elements, as products where there are enough rows and columns for blocks."""
    return [_as_product(x) if isinstance(x, Reduce) else x for x in statements]


def _as_product(reduce: Reduce) -> Statement:
    expr = reduce.expr
    if reduce.kind != "+" or reduce.reduced != (False, False, True) or not isinstance(expr, Op):
        return reduce
    if expr.template != "({0} * {1})" or not all(isinstance(x, Load) for x in expr.args):
        return reduce
    m, n, k = reduce.shape
    a, b = (x.view for x in expr.args if isinstance(x, Load))
    if m < 4 or n < 8 or a.strides[1] or b.strides[0] or not expr.dtype.is_floating_point:
        return reduce
    left = View(a.buffer, (m, k), (a.strides[0], a.strides[2]), a.offset)
    right = View(b.buffer, (k, n), (b.strides[2], b.strides[1]), b.offset)
    into = View(reduce.into.buffer, (m, n), reduce.into.strides[:2], reduce.into.offset)
    if not all(_taken(x) for x in (left, right, into)):
        return reduce
    return MatMul(into, left, right, False, reduce.note)


def _taken(view: View) -> bool:
    """Whether BLAS takes the strides."""
    (rows, columns), (s, t) = view.shape, view.strides
    return ((t == 1 or columns == 1) and (s >= columns or rows == 1)) or (
        (s == 1 or rows == 1) and (t >= rows or columns == 1)
    )
