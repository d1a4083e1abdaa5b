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

#: Between them nearly every kind of statement.
SELECTED = ("perceptron",)


@pytest.mark.parametrize(
    "name", [pytest.param(x) if x in SELECTED else pytest.param(x, marks=pytest.mark.slow) for x in ALL]
)
def test_compiled_functions_agree_with_torch(name: str) -> None:
    reference = Reference(ALL[name])
    found = []
    for dtype in (torch.float32, torch.float64):
        evaluator = Evaluator(program_of(ALL[name](dtype)))
        points = reference.points[dtype]
        values = [evaluator.values(point) for point in points]
        found += [f"{dtype}: {x}" for x in reference.deviations(values)]
        # A second product is added to the first.
        g = values[0].vjp_p.clone()
        evaluator.products(points[0], g)
        scale = values[0].vjp_p.abs().max() if g.numel() else torch.tensor(0.0)
        assert torch.allclose(g, 2 * values[0].vjp_p, rtol=0.0, atol=64 * torch.finfo(dtype).eps * float(scale))
    assert found == []
