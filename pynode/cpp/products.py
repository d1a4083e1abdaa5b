"""Matrix products: BLAS where one is known, loops of their own otherwise."""

from __future__ import annotations

from pynode.julia.ir import MatMul, View

PRODUCTS = """
// Fortran's gemm, with 32-bit integers; set before the first call, or left out
extern "C" {
typedef void (*Gemm)(
    const char*, const char*, const int*, const int*, const int*, const T*, const T*, const int*, const T*, const int*,
    const T*, T*, const int*);
static Gemm gemm_ = nullptr;
void field_set_gemm(void* gemm) { gemm_ = reinterpret_cast<Gemm>(gemm); }
}

// c = a b, or c + a b; c is (m, n) with rows of stride sc, a and b have strides (row, column)
template <int m, int n, int k, int sc, int a0, int a1, int b0, int b1, bool add>
static void product(T* __restrict c, const T* __restrict a, const T* __restrict b) {
    if (gemm_) {
        const int rows = n, columns = m, inner = k, lda = a1 == 1 ? a0 : a1, ldb = b1 == 1 ? b0 : b1, ldc = sc;
        const T one = 1, beta = add ? 1 : 0;
        // Rows of C are columns of Fortran: c' = b' a'.
        gemm_(b1 == 1 ? "N" : "T", a1 == 1 ? "N" : "T", &rows, &columns, &inner, &one, b, &ldb, a, &lda, &beta, c,
              &ldc);
        return;
    }
    for (long i = 0; i < m; ++i) {
        T* __restrict row = c + i * sc;
        if (!add)
            for (long j = 0; j < n; ++j) row[j] = T(0);
        for (long l = 0; l < k; ++l) {
            const T x = a[i * a0 + l * a1];
#pragma omp simd
            for (long j = 0; j < n; ++j) row[j] += x * b[l * b0 + j * b1];
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
    buffer, offset = view.buffer.resolved()
    offset += view.offset
    return f"{buffer.name} + {offset}" if offset else buffer.name


def turned(view: View) -> View:
    return View(view.buffer, view.shape[::-1], view.strides[::-1], view.offset)


def product_text(statement: MatMul) -> str:
    into, a, b = statement.into, statement.a, statement.b
    if _leading(into)[1] != 1:
        into, a, b = turned(into), turned(b), turned(a)
    (m, n), k = into.shape, a.shape[1]
    sizes = [m, n, k, _leading(into)[0], *_leading(a), *_leading(b)]
    listed = ", ".join(map(str, sizes))
    added = "true" if statement.add else "false"
    return f"product<{listed}, {added}>({pointer(into)}, {pointer(a)}, {pointer(b)});"
