"""Convolutions of stride one, without columns: a padded image, every offset of the kernel a shift of its rows.

Rows of a padded image follow each other in memory, so that outputs of all rows are one vector with a few places
between rows that nobody reads.
"""

from __future__ import annotations

DIRECT = """
// From images (ci, h, w) to images (co, p, q) with kernels (r, s) at distances (dy, dx) after padding by (py, px).
template <int ci_, int h_, int w_, int co_, int p_, int q_, int r_, int s_, int dy_, int dx_, int py_, int px_>
struct Direct {
    static constexpr int ci = ci_, h = h_, w = w_, co = co_, p = p_, q = q_, r = r_, s = s_;
    static constexpr int dy = dy_, dx = dx_, py = py_, px = px_;
    static constexpr int wide = q + (s - 1) * dx, high = p + (r - 1) * dy, k = ci * r * s;
    static constexpr int across = vectors_of((p - 1) * wide + q), line = across * lanes;
    static constexpr long image = long(ci) * high * wide + line + lanes;

    static int offset(int l) { return (l / (r * s) * high + l / s % r * dy) * wide + l % s * dx; }
};

template <class D>
static void padded(T* __restrict to, const T* __restrict from) {
    std::memset(to, 0, sizeof(T) * D::ci * D::high * D::wide);
    constexpr int rows = D::h < D::high - D::py ? D::h : D::high - D::py;
    constexpr int columns = D::w < D::wide - D::px ? D::w : D::wide - D::px;
    for (int c = 0; c < D::ci; ++c)
        for (int y = 0; y < rows; ++y)
            std::memcpy(to + (c * D::high + y + D::py) * D::wide + D::px, from + (c * D::h + y) * D::w,
                        sizeof(T) * columns);
}

// One image; weights (co, ci, r, s).
template <class D>
static void direct(T* __restrict into, const T* __restrict image, const T* __restrict weights,
                   const int* __restrict offsets, T* __restrict scratch) {
    T* const __restrict pad = scratch;
    T* const __restrict out = scratch + D::image;
    padded<D>(pad, image);
    blocks<D::co, D::across, false>(
        out, D::line, D::k, [&](int i, int l) { return weights[i * D::k + l]; },
        [&](int l) { return pad + offsets[l]; });
    for (int o = 0; o < D::co; ++o)
        for (int y = 0; y < D::p; ++y)
            std::memcpy(into + (o * D::p + y) * D::q, out + o * D::line + y * D::wide, sizeof(T) * D::q);
}

// The kernel (co, ci, r, s) from images and results of n images, whose groups lie apart.
template <class D, int n>
static void direct_weight(T* __restrict into, const T* __restrict results, long between_results,
                          const T* __restrict images, long between_images, const int* __restrict offsets,
                          T* __restrict scratch) {
    constexpr int across = vectors_of(D::co), line = across * lanes;
    T* const __restrict pad = scratch;
    T* const __restrict turned = pad + D::image;
    T* const __restrict sums = turned + long(D::p) * D::q * line;
    std::memset(turned, 0, sizeof(T) * D::p * D::q * line);
    std::memset(sums, 0, sizeof(T) * D::k * line);
    int places[D::p * D::q];
    for (int l = 0; l < D::p * D::q; ++l) places[l] = l / D::q * D::wide + l % D::q;
    for (int i = 0; i < n; ++i) {
        padded<D>(pad, images + i * between_images);
        const T* const __restrict result = results + i * between_results;
        for (int o = 0; o < D::co; ++o)
            for (int l = 0; l < D::p * D::q; ++l) turned[l * line + o] = result[o * D::p * D::q + l];
        blocks<D::k, across, true>(
            sums, line, D::p * D::q, [&](int row, int l) { return pad[offsets[row] + places[l]]; },
            [&](int l) { return turned + l * line; });
    }
    for (int l = 0; l < D::k; ++l)
        for (int o = 0; o < D::co; ++o) into[o * D::k + l] = sums[l * line + o];
}

template <class Z, int kind>
static void direct_convolution(T* __restrict into, const T* __restrict a, const T* __restrict b,
                               T* __restrict scratch) {
    constexpr long wide = long(Z::cg) * Z::h * Z::w, narrow = long(Z::og) * Z::l;
    using Forward = Direct<Z::cg, Z::h, Z::w, Z::og, Z::p, Z::q, Z::r, Z::s, Z::dy, Z::dx, Z::py, Z::px>;
    using Backward = Direct<Z::og, Z::p, Z::q, Z::cg, Z::h, Z::w, Z::r, Z::s, Z::dy, Z::dx, (Z::r - 1) * Z::dy - Z::py,
                            (Z::s - 1) * Z::dx - Z::px>;
    using D = typename std::conditional<kind == 1, Backward, Forward>::type;
    int offsets[D::k];
    for (int l = 0; l < D::k; ++l) offsets[l] = D::offset(l);
    for (int group = 0; group < Z::groups; ++group) {
        const T* weights = b + long(group) * Z::og * Z::k;
        if (kind == 1) {
            // Turned round, channels exchanged.
            T* const __restrict flipped = scratch;
            for (int o = 0; o < Z::og; ++o)
                for (int c = 0; c < Z::cg; ++c)
                    for (int l = 0; l < Z::r * Z::s; ++l)
                        flipped[(c * Z::og + o) * Z::r * Z::s + Z::r * Z::s - 1 - l] =
                            weights[(o * Z::cg + c) * Z::r * Z::s + l];
            weights = flipped;
        }
        T* const rest = scratch + (kind == 1 ? long(Z::og) * Z::k : 0);
        if (kind == 2) {
            direct_weight<D, Z::n>(into + long(group) * Z::og * Z::k, a + group * narrow, narrow * Z::groups,
                                   b + group * wide, wide * Z::groups, offsets, scratch);
        } else {
            const long from = kind == 1 ? narrow : wide, to = kind == 1 ? wide : narrow;
            for (long i = group; i < long(Z::n) * Z::groups; i += Z::groups)
                direct<D>(into + i * to, a + i * from, weights, offsets, rest);
        }
    }
}
"""
