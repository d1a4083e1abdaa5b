"""The eager benchmark counts what it says, and a step dispatches no operation beside those it needs."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pynode.bench import eager
from pynode.bench.eager_fields import STARTS, Flow, Start


class Decay(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, t, y):
        return -(self.rate * y)


def decay() -> Start:
    return Start(
        "decay", "decay", Decay(), torch.linspace(1.0, 2.0, 6).view(2, 3), torch.tensor([0.0, 1.0]), 1e-4, 1e-6
    )


def test_operations_of_the_field_are_counted_apart():
    start = decay()

    def call():
        with torch.no_grad():
            start.field(start.t[0], start.y0).add(1.0)

    outside, inside, calls = eager.operations(call, start)
    assert (outside, inside, calls) == (2, 2, 1)  # t[0] and add; times and minus


def test_a_step_dispatches_one_combination_one_view_one_copy_and_one_time_per_stage():
    counts = []
    for end in (2.0, 8.0):
        start = STARTS["lotka"]()
        start = dataclasses.replace(start, t=torch.tensor([0.0, end], dtype=torch.float64))
        with torch.no_grad():
            stats = eager.solution(start, start.y0).stats.forward  # makes the tableau's tensors, which are kept
        outside, _, _ = eager.operations(lambda start=start: eager.forward(eager._ours, start), start)
        counts.append((outside, stats.accepted, stats.rejected))
    (short, *few), (long, *many) = counts
    accepted, rejected = (b - a for a, b in zip(few, many, strict=True))
    assert accepted > 20
    assert rejected > 0
    # Of DP5's six stages the last two share their time. The error is one combination, its scale an absolute value, a
    # maximum and a sum, its norm a quotient, a product and a number; the last stage is the next step's first.
    attempt = 3 * 6 + 5 + 1 + 3 + 3
    assert long - short == (attempt + 1) * accepted + attempt * rejected


def test_the_flow_knows_its_divergence():
    field = Flow(torch.Generator().manual_seed(0)).double()
    z = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    t = torch.tensor(0.0, dtype=torch.float64)
    with torch.no_grad():
        dz, minus = field(t, (z, torch.zeros(3, dtype=torch.float64)))
    torch.testing.assert_close(dz, field.velocity(t, z))
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda x: field.velocity(t, x), z[i])
        assert minus[i].item() == pytest.approx(-jacobian.trace().item(), rel=1e-12)


def test_our_gradient_and_theirs_agree():
    pytest.importorskip("torchdiffeq")
    start = decay()
    ours = eager.gradient(eager._ours, start)
    theirs = eager.gradient(lambda *x: eager._theirs("odeint", *x), start)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
