"""Logarithm and circular functions of emitted C++, without branches, and the polynomials in them.

``x = 2^k m`` with m in (sqrt(1/2), sqrt(2)), ``log m = 2 atanh(s)`` with ``s = (m - 1) / (m + 1)``; ``x = n pi/2 + r``
with |r| <= pi/4, which is exact in float64 with fused multiply-adds: float32 goes through float64. All polynomials are
interpolations in Chebyshev points of series that are summed exactly.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import torch

from pynode.capture.interpolation import interpolated
from pynode.cpp.text import literal

#: Of s^2 where m is at an end, and of r^2.
_SQUARE_OF_S = 0.02944
_SQUARE_OF_R = (math.pi / 4) ** 2 * 1.0001


def _artanh(z: Fraction) -> Fraction:
    """(atanh(s) / s - 1) / z for s^2 = z."""
    return sum((z**k / (2 * k + 3) for k in range(24)), Fraction(0))


def _sine(z: Fraction) -> Fraction:
    """(sin(r) / r - 1) / z for r^2 = z."""
    return sum(((-1) ** (k + 1) * z**k / Fraction(math.factorial(2 * k + 3)) for k in range(14)), Fraction(0))


def _cosine(z: Fraction) -> Fraction:
    """(cos(r) - 1 + z / 2) / z^2 for r^2 = z."""
    return sum(((-1) ** k * z**k / Fraction(math.factorial(2 * k + 4)) for k in range(14)), Fraction(0))


@functools.lru_cache(maxsize=64)
def _interpolated(function: Callable[[Fraction], Fraction], end: float, degree: int) -> tuple[float, ...]:
    """Coefficients, lowest first, on (0, end)."""
    count = degree + 1
    nodes = [Fraction((1 + math.cos((2 * i + 1) * math.pi / (2 * count))) * end / 2) for i in range(count)]
    return tuple(float(c) for c in interpolated(nodes, [function(x) for x in nodes]))


def horner(coefficients: Sequence[float], x: str, dtype: torch.dtype) -> str:
    """A polynomial's text, lowest coefficient first."""
    text = literal(coefficients[-1], dtype)
    for c in reversed(coefficients[:-1]):
        text = f"({text} * {x} + {literal(c, dtype)})"
    return text


ELEMENTARY = """
// log x = k ln 2 + log m, of a positive finite number
INLINE T log_parts(T x, T& k) {
    const bool small = x < std::numeric_limits<T>::min();
    const Bits bits = to_bits(small ? x * {two_up} : x);
    const Bits whole = Bits(Unsigned(bits) - Unsigned({root_half})) >> {mantissa};
    k = T(whole) - (small ? {up} : T(0));
    const T f = from_bits(Bits(Unsigned(bits) - (Unsigned(whole) << {mantissa}))) - T(1);
    const T s = f / (T(2) + f), z = s * s, half = T(0.5) * f * f;
    const T rest = T(2) * z * {artanh(z)};
    return f - (half - s * (half + rest));
}
INLINE T log_of(T x, T natural) {
    const T y = x == T(0) ? T(-INFINITY) : natural;
    const T z = x < T(0) ? T(NAN) : y;
    return x < T(INFINITY) ? z : x;
}
INLINE T log_(T x) {
    T k;
    const T f = log_parts(x, k);
    return log_of(x, k * {ln2_high} + (k * {ln2_low} + f));
}
INLINE T log2_(T x) {
    T k;
    const T f = log_parts(x, k);
    return log_of(x, k + f * {inverse_ln2});
}
INLINE T log10_(T x) {
    T k;
    const T f = log_parts(x, k);
    return log_of(x, k * {log10_2} + f * {inverse_ln10});
}
INLINE T log1p_(T x) {
    const T u = T(1) + x;
    // What the sum has lost.
    const T lost = x < T(1) ? x - (u - T(1)) : T(1) - (u - x);
    T k;
    const T f = log_parts(u, k);
    const T y = k * {ln2_high} + (k * {ln2_low} + (f + lost / u));
    return x == T(0) ? x : log_of(u, y);
}

// sin and cos of x = n pi/2 + r; beyond 2^45, where neighbouring numbers differ by more than a period even in float64,
// NaN
INLINE int64_t circular(T x, T& sine, T& cosine) {
    const double d = double(x);
    const double shifted = d * {two_over_pi} + {whole};
    int64_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    const double n = shifted - {whole};
    const double high = std::fma(n, -{half_pi_high}, d);
    const double inside = std::fma(n, -{half_pi_low}, high);
    const T r = T(std::abs(d) < 3.5184372088832e13 ? inside : double(NAN));
    const T z = r * r;
    sine = T(r + r * z * {sine(z)});
    cosine = T(T(1) - (z * T(0.5) - z * z * {cosine(z)}));
    return bits;
}
INLINE T sin_(T x) {
    T sine, cosine;
    const int64_t n = circular(x, sine, cosine);
    const T y = (n & 1) ? cosine : sine;
    return (n & 2) ? -y : y;
}
INLINE T cos_(T x) {
    T sine, cosine;
    const int64_t n = circular(x, sine, cosine);
    const T y = (n & 1) ? sine : cosine;
    return ((n + 1) & 2) ? -y : y;
}
INLINE T tan_(T x) {
    T sine, cosine;
    const int64_t n = circular(x, sine, cosine);
    return (n & 1) ? -cosine / sine : sine / cosine;
}
"""


def elementary(dtype: torch.dtype) -> dict[str, str]:
    """What is put into the text, by name, for a precision."""
    single = dtype == torch.float32
    double = torch.float64

    def pick(few: float, many: float) -> str:
        return literal(few if single else many, dtype)

    return {
        "two_up": pick(2.0**25, 2.0**54),
        "up": pick(25.0, 54.0),
        # sqrt(1/2)
        "root_half": "0x3f3504f3" if single else "0x3fe6a09e667f3bcd",
        "artanh(z)": horner(_interpolated(_artanh, _SQUARE_OF_S, 3 if single else 7), "z", dtype),
        "log10_2": pick(math.log10(2), math.log10(2)),
        "inverse_ln10": pick(1 / math.log(10), 1 / math.log(10)),
        "two_over_pi": literal(2 / math.pi, double),
        "whole": literal(6.755399441055744e15, double),
        "half_pi_high": literal(math.pi / 2, double),
        "half_pi_low": literal(6.123233995736766e-17, double),
        "sine(z)": horner(_interpolated(_sine, _SQUARE_OF_R, 3 if single else 6), "z", dtype),
        "cosine(z)": horner(_interpolated(_cosine, _SQUARE_OF_R, 3 if single else 6), "z", dtype),
    }
