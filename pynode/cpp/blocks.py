"""Products in registers: a block of rows times some vectors, the core of small products and of convolutions."""

from __future__ import annotations

BLOCKS = """
#if defined(__AVX512F__)
#define VECTOR 64
#define ROWS 6
#define COLUMNS 4
#elif defined(__AVX__)
#define VECTOR 32
#define ROWS 6
#define COLUMNS 2
#elif defined(__aarch64__)
#define VECTOR 16
#define ROWS 6
#define COLUMNS 4
#else
#define VECTOR 16
#define ROWS 4
#define COLUMNS 2
#endif
typedef T V __attribute__((vector_size(VECTOR)));
typedef T U __attribute__((vector_size(VECTOR), aligned(sizeof(T)), may_alias));  // a vector anywhere in memory
static constexpr int lanes = VECTOR / sizeof(T);
static constexpr int vectors_of(int n) { return (n + lanes - 1) / lanes; }

// into (rows, vectors) = or += the sum over l of a(i, l) b(l); a(i, l) is a number, b(l) a place of vectors
template <int rows, int vectors, bool add, class A, class B>
INLINE void block(T* __restrict into, long step, int count, A a, B b) {
    V sum[rows][vectors];
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < vectors; ++j)
            sum[i][j] = V{};
    for (int l = 0; l < count; ++l) {
        const T* const line = b(l);
        V right[vectors];
#pragma GCC unroll 8
        for (int j = 0; j < vectors; ++j) right[j] = *reinterpret_cast<const U*>(line + j * lanes);
#pragma GCC unroll 8
        for (int i = 0; i < rows; ++i) {
            const T left = a(i, l);
#pragma GCC unroll 8
            for (int j = 0; j < vectors; ++j) sum[i][j] += left * right[j];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < vectors; ++j) {
            U* const to = reinterpret_cast<U*>(into + i * step + j * lanes);
            // Added at the end: every term added to a large total would be rounded at its size.
            *to = add ? V(*to) + sum[i][j] : sum[i][j];
        }
}

// The same for any number of rows and vectors: a(i, l), b(l, j) for the block's first row and vector.
template <int rows, int vectors, bool add, class A, class B>
INLINE void blocks(T* __restrict into, long step, int count, A a, B b) {
    constexpr int full = rows / ROWS * ROWS;
    for (int j = 0; j < vectors; j += COLUMNS) {
        const auto some = [&](auto wide) {
            constexpr int width = decltype(wide)::value;
            const auto right = [&](int l) { return b(l) + j * lanes; };
            for (int i = 0; i < full; i += ROWS)
                block<ROWS, width, add>(
                    into + i * step + j * lanes, step, count, [&](int r, int l) { return a(i + r, l); }, right);
            if constexpr (rows > full)
                block<rows - full, width, add>(
                    into + full * step + j * lanes, step, count, [&](int r, int l) { return a(full + r, l); }, right);
        };
        if (j + COLUMNS <= vectors) some(std::integral_constant<int, COLUMNS>());
        else if constexpr (vectors % COLUMNS != 0) some(std::integral_constant<int, vectors % COLUMNS>());
    }
}
"""
