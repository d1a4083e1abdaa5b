"""The recommendation follows from what was measured."""

from __future__ import annotations

import pytest
import torch

import pynode
from pynode.crosscheck.report import AGREES
from pynode.errors import GradientError, InputError
from pynode.recommend import _bytes

Y0 = torch.tensor([1.0, 0.5], dtype=torch.float64)
T = [0.0, 0.5, 1.0]


class Field(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, t, y):
        return torch.stack((y[1], -self.rate * torch.sin(y[0])))


def recommend(f=None, **options):
    quick = {"algorithms": ["tsit5", "vern7"], "repeats": 1, "budget": 600.0}
    return pynode.recommend(Field() if f is None else f, Y0, T, **{**quick, **options})


def test_the_quickest_of_those_that_are_accurate_is_chosen():
    chosen = recommend()
    accurate = [row for row in chosen.report.rows if row.verdict == AGREES and row.gradient_error <= 1e-4]
    best = min(accurate, key=lambda row: row.seconds)
    assert chosen.within
    assert (chosen.algorithm.name, chosen.sensealg.name, chosen.backend) == (best.algorithm, best.sensealg, "torch")
    for number in (f"{best.seconds * 1e3:.3g} ms", f"{best.gradient_error:.1e}", best.algorithm, best.sensealg):
        assert number in str(chosen)
    # It can be used as it is.
    sol = pynode.solve(Field(), Y0, T, algorithm=chosen.algorithm, sensealg=chosen.sensealg)
    sol.ys.sum().backward()


def test_where_none_is_accurate_enough_the_most_accurate_is_taken_and_that_is_said():
    chosen = recommend(gradient_rtol=1e-13)
    measured = [row for row in chosen.report.rows if row.measured]
    best = min(measured, key=lambda row: row.gradient_error)
    assert not chosen.within
    assert (chosen.algorithm.name, chosen.sensealg.name) == (best.algorithm, best.sensealg)
    assert "none is below 1.0e-13, so lower rtol" in str(chosen)


def test_memory_rules_out():
    rows = [row for row in recommend().report.rows if row.measured]
    limit = min(row.memory for row in rows)
    assert limit < max(row.memory for row in rows)
    chosen = recommend(max_memory=limit)
    found = next(row for row in chosen.report.rows if row.objects == (chosen.algorithm, chosen.sensealg))
    assert found.memory <= limit
    with pytest.raises(GradientError, match=r"the smallest took .*raise max_memory"):
        recommend(max_memory=1)


def test_a_wrong_derivative_is_refused():
    def f(t, y):
        return torch.stack((y[1], -y[0].detach()))

    with pytest.raises(GradientError, match="the derivative of f itself"):
        recommend(f)


def test_a_budget_that_measures_nothing_is_refused():
    with pytest.raises(InputError, match="raise budget="):
        recommend(budget=0.0)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1000, "1e+03 B"), (2048, "2 KiB"), (3 * 2**20, "3 MiB"), (2**40, "1.02e+03 GiB")]
)
def test_bytes(count, text):
    assert _bytes(count) == text
