"""Scalar functions of the C++ prelude against torch's in float64, over the range of each precision."""

from __future__ import annotations

import ctypes

import pytest
import torch
from compiled_values import QUICK
from torch import Tensor

from pynode.cpp.compile import library
from pynode.cpp.prelude import prelude

COUNT = 4096
NAMES = ("log", "log2", "log10", "log1p", "sin", "cos", "tan", "exp", "expm1", "tanh", "sigmoid", "erf", "erfc")
#: Beyond this, neighbouring numbers are more than a period of the circular functions apart in float32.
CIRCULAR = 2.0**24
SPECIAL = (0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1.0, -1.0, -3.0, 1e-40, -1e-40, 80.0, -80.0)


class Functions:
    def __init__(self, dtype: torch.dtype) -> None:
        loops = [
            f"void v_{name}(const T* x, T* y) {{ for (int i = 0; i < {COUNT}; ++i) y[i] = {name}_(x[i]); }}"
            for name in NAMES
        ]
        text = "\n".join([prelude(dtype), 'extern "C" {', *loops, "}", ""])
        self._handle = library(text, QUICK).handle

    def __call__(self, name: str, x: Tensor) -> Tensor:
        given = torch.zeros(COUNT, dtype=x.dtype)
        given[: x.numel()] = x
        y = torch.empty_like(given)
        getattr(self._handle, f"v_{name}")(ctypes.c_void_p(given.data_ptr()), ctypes.c_void_p(y.data_ptr()))
        return y[: x.numel()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_functions_agree_to_a_few_units_in_the_last_place(dtype: torch.dtype) -> None:
    functions = Functions(dtype)
    generator = torch.Generator().manual_seed(0)
    limits = torch.finfo(dtype)
    for name in NAMES:
        exact_of = getattr(torch, name)
        for scale in (1e-3, 1.0, 30.0, 1e6):
            x = (scale * torch.randn(COUNT, generator=generator, dtype=torch.float64)).to(dtype)
            if name.startswith("log"):
                x = x.abs() - 0.5 if name == "log1p" else x.abs()
            if name in ("sin", "cos", "tan"):
                x = x.clamp(-CIRCULAR, CIRCULAR)
            exact = exact_of(x.double())
            normal = (exact.abs() > limits.tiny) & (exact.abs() < limits.max)
            error = (functions(name, x).double() - exact).abs() / exact.abs()
            if not normal.any():
                continue
            # torch's own functions are within one unit of the exact value, which in float64 is all there is.
            assert float(error[normal].max()) <= 4 * limits.eps, (name, scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_infinities_and_nan_come_out_as_torchs(dtype: torch.dtype) -> None:
    functions = Functions(dtype)
    x = torch.tensor(SPECIAL, dtype=torch.float64).to(dtype)
    for name in NAMES:
        wanted = getattr(torch, name)(x)
        found = functions(name, x)
        assert torch.allclose(found, wanted, rtol=8 * torch.finfo(dtype).eps, atol=1e-37, equal_nan=True), name


def test_circular_functions_of_numbers_without_a_phase_are_nan() -> None:
    """Not some value between -1 and 1 that looks fine."""
    x = torch.tensor([2.0**46, -(2.0**60)], dtype=torch.float64)
    for name in ("sin", "cos", "tan"):
        assert Functions(torch.float64)(name, x).isnan().all()
