"""Scalars of the intermediate representation as C++ text: types, numbers, functions."""

from __future__ import annotations

import math
import re

import numpy as np
import torch

#: Functions of the templates, which are Julia's, and what they are in C++; others have the same name.
_FUNCTIONS = {
    "abs": "std::abs",
    "exp2": "std::exp2",
    "sinh": "std::sinh",
    "cosh": "std::cosh",
    "asinh": "std::asinh",
    "floor": "std::floor",
    "ceil": "std::ceil",
    "trunc": "std::trunc",
    "round": "std::rint",
    "copysign": "std::copysign",
    "hypot": "std::hypot",
    "isnan": "isnan_",
    "isinf": "isinf_",
    "isfinite": "isfinite_",
    "rem": "rem_",
    "xor": "xor_",
    "inv": "inv_",
    "atan": "atan_",
    "Int64": "int64_t",
}
_CALL = re.compile(r"\b(" + "|".join(_FUNCTIONS) + r")\(")
_PHRASES = (("unsafe_trunc(Int64, ", "whole_("), ("typemax(Int64)", "INT64_MAX"), ("(~{0})", "not_({0})"))


def translated(template: str) -> str:
    """A template of Julia text as one of C++."""
    for julia, cpp in _PHRASES:
        template = template.replace(julia, cpp)
    return _CALL.sub(lambda m: _FUNCTIONS[m[1]] + "(", template)


def type_of(dtype: torch.dtype) -> str:
    """The C++ type of an element; ``T`` is the template's floating point type."""
    return "T" if dtype.is_floating_point else "bool" if dtype == torch.bool else "int64_t"


def literal(value: float | int | bool, dtype: torch.dtype) -> str:
    """A number as C++ source."""
    if dtype == torch.bool:
        return "true" if value else "false"
    if not dtype.is_floating_point:
        number = int(value)
        return "INT64_MIN" if number == -(2**63) else f"int64_t({number})"
    single = dtype == torch.float32
    real = float(np.float32(value)) if single else float(value)
    if math.isnan(real):
        return "T(NAN)"
    if math.isinf(real):
        return "T(INFINITY)" if real > 0 else "T(-INFINITY)"
    text = str(np.float32(real)) + "f" if single else repr(real)
    return f"({text})" if text.startswith("-") else text
