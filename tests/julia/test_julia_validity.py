"""Validity judged by two backends: the verdict does not depend on who solves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pynode import Euler
from pynode.julia import runtime
from pynode.nn import NeuralODE
from pynode.training import validity

pytestmark = [
    pytest.mark.julia,
    pytest.mark.skipif(not runtime.installed(), reason="juliacall is not installed"),
]


class Decay(torch.nn.Module):
    """Rate 4: one Euler step over [0, 1] turns the sign, the flow keeps it."""

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return -4.0 * y


@pytest.mark.parametrize(("steps", "verdict"), [(1, "discretisation"), (16, "flow")])
def test_julia_gives_the_same_verdict(steps: int, verdict: str) -> None:
    x = torch.randn(100, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = (x[:, 0] > 0).long() if steps > 1 else (x[:, 0] <= 0).long()
    model = NeuralODE(Decay(), output=lambda y: torch.stack([-y[..., 0], y[..., 0]], -1), algorithm=Euler(steps=steps))
    report = validity(model, [(x, target)], "accuracy", backends=["torch", "julia"])
    assert report.verdict == verdict
    metrics = {(row.solver, row.resolution): row.metric for row in (report.own, *report.rows)}
    by_julia = {key: metric for key, metric in metrics.items() if key[0].endswith(" (julia)")}
    assert by_julia
    for (solver, step), metric in by_julia.items():
        assert metric == metrics[solver.removesuffix(" (julia)"), step]
