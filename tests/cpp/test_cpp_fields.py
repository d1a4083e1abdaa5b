"""Emitted C++, compiled and called, against torch's own derivatives: every field of the zoo in both precisions."""

from __future__ import annotations

import fields_of_densities  # noqa: F401  (registers its fields)
import fields_of_dynamics  # noqa: F401  (registers its fields)
import fields_of_operators  # noqa: F401  (registers its fields)
import fields_of_series  # noqa: F401  (registers its fields)
import pytest
import torch
from compiled_values import Evaluator, program_of
from fields import FIELDS
from fields_of_models import MODELS
from products_by_torch import Reference

ALL = {**FIELDS, **{f"model: {name}": make for name, make in MODELS.items()}}

#: Between them every kind of statement; the rest takes a second or two each, most of it the compiler's.
SELECTED = {
    torch.float32: (
        "activations_gated",
        "attention",
        "controlled_by_two_rows",
        "convolution_1d_down_and_up",
        "convolution_2d",
        "exponentials_and_logarithms",
        "gathers",
        "parameter_as_field",
        "problem_lorenz",
        "scatters",
        "shared_parameter",
        "time_gated",
    ),
    torch.float64: ("extremes", "perceptron", "running_sums", "trigonometry"),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(
            name, dtype, marks=() if name in SELECTED[dtype] else pytest.mark.slow, id=f"{name}-{str(dtype)[6:]}"
        )
        for name in ALL
        for dtype in SELECTED
    ],
)
def test_compiled_functions_agree_with_torch(name: str, dtype: torch.dtype) -> None:
    reference = Reference(ALL[name])
    evaluator = Evaluator(program_of(ALL[name](dtype)))
    points = reference.points[dtype]
    values = [evaluator.values(point) for point in points]
    assert reference.deviations(values) == []
    # A second product is added to the first.
    g = values[0].vjp_p.clone()
    evaluator.products(points[0], g)
    scale = float(values[0].vjp_p.abs().max()) if g.numel() else 0.0
    assert torch.allclose(g, 2 * values[0].vjp_p, rtol=0.0, atol=64 * torch.finfo(dtype).eps * scale)
