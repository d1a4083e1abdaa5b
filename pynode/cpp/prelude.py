"""Scalar functions that emitted C++ calls: without branches, so that compilers vectorise loops over them.

The approximations are those of ``pynode.julia.activations``, where they are derived.
"""

from __future__ import annotations

import torch

from pynode.capture.error_function import FAR, NEAR
from pynode.capture.exponential import LN2, exponential
from pynode.cpp.elementary import ELEMENTARY, elementary, horner
from pynode.cpp.text import literal

_HEAD = """\
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>

#define INLINE static inline __attribute__((always_inline))
"""

_SCALARS = """
using Bits = {bits};
using Unsigned = u{bits};
INLINE T from_bits(Bits x) { T y; std::memcpy(&y, &x, sizeof y); return y; }
INLINE Bits to_bits(T x) { Bits y; std::memcpy(&y, &x, sizeof y); return y; }

template <class A> INLINE A ifelse(bool c, A x, A y) { return c ? x : y; }
INLINE T inv_(T x) { return T(1) / x; }
INLINE bool isnan_(T x) { return x != x; }
INLINE bool isinf_(T x) { return std::abs(x) == T(INFINITY); }
INLINE bool isfinite_(T x) { return std::abs(x) < T(INFINITY); }
INLINE bool isnan_(int64_t) { return false; }
INLINE bool isinf_(int64_t) { return false; }
INLINE bool isfinite_(int64_t) { return true; }
INLINE bool xor_(bool x, bool y) { return x != y; }
INLINE int64_t xor_(int64_t x, int64_t y) { return x ^ y; }
INLINE bool not_(bool x) { return !x; }
INLINE int64_t not_(int64_t x) { return ~x; }
INLINE int64_t whole_(T x) { return static_cast<int64_t>(x); }
template <class A> INLINE A relu_(A x) { return x < A(0) ? A(0) : x; }
template <class A> INLINE A sign_(A x) { return x > A(0) ? A(1) : x < A(0) ? A(-1) : A(0); }
template <class A> INLINE A maximum_(A x, A y) { return ((x > y) | (x != x)) ? x : y; }
template <class A> INLINE A minimum_(A x, A y) { return ((x < y) | (x != x)) ? x : y; }
template <class A> INLINE A fmax_(A x, A y) { return ((x > y) | (y != y)) ? x : y; }
template <class A> INLINE A fmin_(A x, A y) { return ((x < y) | (y != y)) ? x : y; }
INLINE T rem_(T x, T y) { return std::fmod(x, y); }
INLINE int64_t rem_(int64_t x, int64_t y) { return x % y; }
template <class A> INLINE A mod_(A x, A y) {
    const A r = rem_(x, y);
    return ((r != A(0)) & ((r < A(0)) != (y < A(0)))) ? r + y : r;
}
INLINE T fld_(T x, T y) { return std::floor((x - mod_(x, y)) / y + T(0.5)); }
INLINE int64_t fld_(int64_t x, int64_t y) { return (x - mod_(x, y)) / y; }
INLINE T sqrt_(T x) { return std::sqrt(x); }
INLINE T asin_(T x) { return std::asin(x); }
INLINE T acos_(T x) { return std::acos(x); }
INLINE T acosh_(T x) { return std::acosh(x); }
INLINE T atanh_(T x) { return std::atanh(x); }
INLINE T atan_(T x) { return std::atan(x); }
INLINE T atan_(T y, T x) { return std::atan2(y, x); }
INLINE T pow_(T x, T y) { return std::pow(x, y); }

// a torch index, from either end; one that is outside leads to the nearest element, and gives what cannot be missed
INLINE bool inside_(int64_t i, int64_t n) { return (i >= -n) & (i < n); }
INLINE int64_t wrapped_(int64_t i, int64_t n) {
    const int64_t k = i < 0 ? i + n : i;
    return k < 0 ? 0 : k >= n ? n - 1 : k;
}
template <class A> INLINE A nothing_() { return A(INT64_MIN); }
template <> T nothing_<T>() { return T(NAN); }

// exp(x) = 2^k (1 + q)
INLINE T reduced_(T x, Bits& k) {
    const T shifted = x * {inverse_ln2} + {magic};
    k = to_bits(shifted) - to_bits({magic});
    const T n = shifted - {magic};
    T r = x - n * {ln2_high};
    r = r - n * {ln2_low};
    const T polynomial = {exponential(r)};
    return (r * r) * polynomial + r;
}
// q, and 2^k in two factors, one of which alone could be too large or too small
INLINE T expm1_parts(T x, T& a, T& b) {
    Bits k;
    const T q = reduced_(x, k);
    const Bits half = k >> 1;
    a = from_bits((half + {bias}) << {mantissa});
    b = from_bits((k - half + {bias}) << {mantissa});
    return q;
}
INLINE T exp_(T x) {
    const T y = x > {exp_top} ? {exp_top} : x < {exp_bottom} ? {exp_bottom} : x;
    T a, b;
    const T q = expm1_parts(y, a, b);
    const T e = (q * a + a) * b;
    return x > {exp_top} ? T(INFINITY) : x < {exp_bottom} ? T(0) : e;
}
INLINE T expm1_(T x) {
    const T y = x > {exp_top} ? {exp_top} : x < T(-40) ? T(-40) : x;
    T a, b;
    const T q = expm1_parts(y, a, b);
    const T s = a * b;
    const T near = s * q + (s - T(1)), far = (q * a + a) * b;
    const T e = y > {exp_top} - T(1) ? far : near;
    return x > {exp_top} ? T(INFINITY) : e;
}
INLINE T tanh_(T x) {
    const T y = x > {tanh_end} ? {tanh_end} : x < -{tanh_end} ? -{tanh_end} : x;
    Bits k;
    const T q = reduced_(y + y, k);
    const T s = from_bits((k + {bias}) << {mantissa});
    const T e = s * q + (s - T(1));
    return e / (e + T(2));
}
INLINE T sigmoid_(T x) { return T(1) / (T(1) + exp_(-x)); }
// erfc(a), a >= 1/2
INLINE T erfc_far(T a) {
    const T square = a * a;
    const T rest = std::fma(a, a, -square);
    const T z = (a - {centre}) / (a + {centre});
    const T far = {far(z)} / (T(1) + a + a);
    return exp_(-square) * (far - far * rest);
}
INLINE T erf_(T x) {
    const T a = std::abs(x), square = x * x;
    const T near = x * {near(square)};
    const T b = a > T(6) ? T(6) : a < T(0.5) ? T(0.5) : a;
    return a < T(1) ? near : std::copysign(T(1) - erfc_far(b), x);
}
INLINE T erfc_(T x) {
    const T a = std::abs(x), square = x * x;
    const T near = T(1) - x * {near(square)};
    const T b = a > T(28) ? T(28) : a < T(0.5) ? T(0.5) : a;
    const T far = erfc_far(b);
    return a < T(0.5) ? near : x < T(0) ? T(2) - far : far;
}
"""


def prelude(dtype: torch.dtype) -> str:
    """The text that stands before emitted functions of a precision."""
    single = dtype == torch.float32
    kind = "Float32" if single else "Float64"

    def pick(few: float, many: float) -> str:
        return literal(few if single else many, dtype)

    parts = {
        "bits": "int32_t" if single else "int64_t",
        "inverse_ln2": pick(1 / LN2, 1 / LN2),
        # Added and taken away again, it rounds to a whole number, whose bits are then the lowest ones.
        "magic": pick(1.2582912e7, 6.755399441055744e15),
        "ln2_high": pick(0.693359375, 0.6931471803691238),
        "ln2_low": pick(-2.12194440e-4, 1.9082149292705877e-10),
        "bias": "127" if single else "1023",
        "mantissa": "23" if single else "52",
        "tanh_end": pick(9.2, 19.2),
        "exp_top": pick(88.72284, 709.782712893384),
        "exp_bottom": pick(-103.97208, -745.1332191019412),
        "centre": pick(2.0, 3.75),
        "exponential(r)": horner([float(c) for c in exponential(4 if single else 10)], "r", dtype),
        "far(z)": horner(FAR[kind], "z", dtype),
        "near(square)": horner(NEAR[kind], "square", dtype),
    }
    text = _SCALARS + ELEMENTARY
    for name, value in (parts | elementary(dtype)).items():
        text = text.replace("{" + name + "}", value)
    return f"{_HEAD}\nusing T = {'float' if single else 'double'};\n{text}"
