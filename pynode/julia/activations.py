"""The prelude: scalar functions an emitted program may use, each with what it calls; only those used are emitted.

The exponential and what is made of it have no branch, so that loops over them are vectorised: see
:mod:`pynode.capture.exponential`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

from pynode.capture.error_function import FAR, NEAR
from pynode.capture.exponential import LN2, exponential
from pynode.julia.loops import literal


def _horner(dtype: torch.dtype) -> str:
    coefficients = exponential(4 if dtype == torch.float32 else 10)
    return ", ".join(bare_literal(float(c), dtype) for c in coefficients)


def _listed(table: dict[str, tuple[float, ...]], dtype: torch.dtype) -> str:
    return ", ".join(bare_literal(c, dtype) for c in table["Float32" if dtype == torch.float32 else "Float64"])


def bare_literal(value: float, dtype: torch.dtype) -> str:
    """A number as Julia source, without the parentheses around a negative one."""
    text = literal(value, dtype)
    return text[1:-1] if text.startswith("(") else text


def _parts(dtype: torch.dtype) -> dict[str, str]:
    single = dtype == torch.float32
    return {
        "inverse_ln2": bare_literal(1 / LN2, dtype),
        # Added and taken away again, it rounds to a whole number, whose bits are then the lowest ones.
        "magic": "1.2582912f7" if single else "6.755399441055744e15",
        "ln2_high": "0.693359375f0" if single else "0.6931471803691238",
        "ln2_low": "-2.12194440f-4" if single else "1.9082149292705877e-10",
        "coefficients": _horner(dtype),
        "centre": "2.0f0" if single else "3.75",
        "near": _listed(NEAR, dtype),
        "far": _listed(FAR, dtype),
        "integer": "Int32" if single else "Int64",
        "bias": "Int32(127)" if single else "1023",
        "mantissa": "23" if single else "52",
        "tanh_end": "9.2f0" if single else "19.2",
        "exp_top": "88.72284f0" if single else "709.782712893384",
        "exp_bottom": "-103.97208f0" if single else "-745.1332191019412",
    }


#: Name to text.
_FUNCTIONS: dict[str, str] = {
    "reduced_": """
# exp(x) = 2^k (1 + q), without a branch
@inline function reduced_(x::T)
    shifted = muladd(x, {inverse_ln2}, {magic})
    k = reinterpret({integer}, shifted) - reinterpret({integer}, {magic})
    n = shifted - {magic}
    r = muladd(n, -({ln2_high}), x)
    r = muladd(n, -({ln2_low}), r)
    return muladd(r * r, evalpoly(r, ({coefficients})), r), k
end
""",
    "expm1_parts": """
# q and 2^k in two factors, one of which alone could be too large or too small
@inline function expm1_parts(x::T)
    q, k = reduced_(x)
    half = k >> 1
    a = reinterpret(T, (half + {bias}) << {mantissa})
    b = reinterpret(T, (k - half + {bias}) << {mantissa})
    return q, a, b
end
""",
    "exp_": """
@inline function exp_(x::T)
    y = ifelse(x > {exp_top}, {exp_top}, ifelse(x < {exp_bottom}, {exp_bottom}, x))
    q, a, b = expm1_parts(y)
    e = (muladd(q, a, a)) * b
    return ifelse(x > {exp_top}, T(Inf), ifelse(x < {exp_bottom}, zero(T), e))
end
""",
    "expm1_": """
@inline function expm1_(x::T)
    y = ifelse(x > {exp_top}, {exp_top}, ifelse(x < T(-40), T(-40), x))
    q, a, b = expm1_parts(y)
    s = a * b
    e = muladd(s, q, s - one(T))
    e = ifelse(y > {exp_top} - one(T), muladd(q, a, a) * b, e)
    return ifelse(x > {exp_top}, T(Inf), e)
end
""",
    "tanh_": """
@inline function tanh_(x::T)
    y = ifelse(x > {tanh_end}, {tanh_end}, ifelse(x < -{tanh_end}, -{tanh_end}, x))
    q, k = reduced_(y + y)
    s = reinterpret(T, (k + {bias}) << {mantissa})
    e = muladd(s, q, s - one(T))
    return e / (e + T(2))
end
""",
    "erfc_far": """
# erfc(a), a >= 1/2
@inline function erfc_far(a::T)
    square = a * a
    rest = fma(a, a, -square)
    far = evalpoly((a - {centre}) / (a + {centre}), ({far})) / (one(T) + a + a)
    return exp_(-square) * (far - far * rest)
end
""",
    "erf_": """
@inline function erf_(x::T)
    a = abs(x)
    near = x * evalpoly(x * x, ({near}))
    b = ifelse(a > T(6), T(6), ifelse(a < T(0.5), T(0.5), a))
    return ifelse(a < one(T), near, copysign(one(T) - erfc_far(b), x))
end
""",
    "erfc_": """
@inline function erfc_(x::T)
    a = abs(x)
    near = one(T) - x * evalpoly(x * x, ({near}))
    b = ifelse(a > T(28), T(28), ifelse(a < T(0.5), T(0.5), a))
    far = erfc_far(b)
    return ifelse(a < T(0.5), near, ifelse(x < 0, T(2) - far, far))
end
""",
    "sigmoid_": "@inline sigmoid_(x::T) = inv(one(T) + exp_(-x))\n",
    "relu_": "@inline relu_(x) = ifelse(x < 0, zero(x), x)\n",
    "sign_": "@inline sign_(x) = ifelse(x > 0, one(x), ifelse(x < 0, -one(x), zero(x)))\n",
    "maximum_": "@inline maximum_(x, y) = ifelse((x > y) | (x != x), x, y)\n",
    "minimum_": "@inline minimum_(x, y) = ifelse((x < y) | (x != x), x, y)\n",
    "fmax_": "@inline fmax_(x, y) = ifelse((x > y) | (y != y), x, y)\n",
    "fmin_": "@inline fmin_(x, y) = ifelse((x < y) | (y != y), x, y)\n",
    "sqrt_": "@inline sqrt_(x::T) = sqrt(ifelse(x < 0, T(NaN), x))\n",
    "log_": "@inline log_(x::T) = log(ifelse(x < 0, T(NaN), x))\n",
    "log2_": "@inline log2_(x::T) = log2(ifelse(x < 0, T(NaN), x))\n",
    "log10_": "@inline log10_(x::T) = log10(ifelse(x < 0, T(NaN), x))\n",
    "log1p_": "@inline log1p_(x::T) = log1p(ifelse(x < -1, T(NaN), x))\n",
    "sin_": "@inline sin_(x::T) = sin(ifelse(isinf(x), T(NaN), x))\n",
    "cos_": "@inline cos_(x::T) = cos(ifelse(isinf(x), T(NaN), x))\n",
    "tan_": "@inline tan_(x::T) = tan(ifelse(isinf(x), T(NaN), x))\n",
    "asin_": "@inline asin_(x::T) = asin(ifelse(abs(x) > 1, T(NaN), x))\n",
    "acos_": "@inline acos_(x::T) = acos(ifelse(abs(x) > 1, T(NaN), x))\n",
    "acosh_": "@inline acosh_(x::T) = acosh(ifelse(x < 1, T(NaN), x))\n",
    "atanh_": "@inline atanh_(x::T) = atanh(ifelse(abs(x) > 1, T(NaN), x))\n",
    "mod_": "@inline mod_(x, y) = (r = rem(x, y); ifelse((r != 0) & ((r < 0) != (y < 0)), r + y, r))\n",
    "fld_": "@inline fld_(x, y) = floor((x - mod_(x, y)) / y + T(0.5))\n",
    "pow_": """
# NaN, as in torch, where Julia throws: a negative number to a broken power
@inline function pow_(x::T, y::T)
    broken = (x < 0) & (y != trunc(y))
    return ifelse(broken, T(NaN), ifelse(broken, one(T), x)^y)
end
""",
    "wrapped": "# a torch index, from either end\n@inline wrapped(i, n) = ifelse(i < 0, i + n, i)\n",
}

_NAME = re.compile(r"\b([a-z][a-z0-9_]*_|expm1_parts|erfc_far|wrapped)\(")


def prelude(text: Iterable[str], dtype: torch.dtype) -> list[str]:
    """The functions that lines of Julia text call, and those that these call, in order of definition."""
    needed: set[str] = set()
    waiting = [name for line in text for name in _NAME.findall(line)]
    while waiting:
        name = waiting.pop()
        if name in _FUNCTIONS and name not in needed:
            needed.add(name)
            waiting += _NAME.findall(_FUNCTIONS[name])
    parts = _parts(dtype)
    return [_FUNCTIONS[name].strip("\n").format(**parts) for name in _FUNCTIONS if name in needed]
