"""Stiff problems with a neural term: gradients by implicit methods of Julia against central finite differences.

The differences are those of solves by Rodas5P at 1e-11, with steps of 1e-4 along one direction of the parameters: some
1e-11 / 1e-4 = 1e-7 of noise and a curvature term of the step's square. The gradient is that of solves at 1e-8, whose
errors a multistep method lets grow to some hundred tolerances in the derivative too: the bound is 1e-3 of its size.
"""

from __future__ import annotations

import pytest
import torch

import pynode
from pynode.julia import runtime

pytestmark = [
    pytest.mark.julia,
    pytest.mark.skipif(not runtime.installed(), reason="juliacall is not installed"),
]


class Robertson(torch.nn.Module):
    """Robertson's kinetics, the first rate moved by a small network."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()

    def forward(self, t, y):
        a, b, c = y.unbind(-1)
        first = 0.04 * a * (1.0 + 0.1 * self.net(y).squeeze(-1))
        second, third = 1e4 * b * c, 3e7 * b * b
        return torch.stack([-first + second, first - second - third, third], dim=-1)


class VanDerPol(torch.nn.Module):
    """Van der Pol's oscillator, mu = 1e3, its force moved by a small network."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()

    def forward(self, t, y):
        x, v = y.unbind(-1)
        force = 0.1 * self.net(x.unsqueeze(-1)).squeeze(-1)
        return torch.stack([v, 1e3 * (1.0 - x * x) * v - x + force], dim=-1)


CASES = {
    "robertson": (Robertson, [1.0, 0.0, 0.0], [0.0, 40.0]),
    "van-der-pol": (VanDerPol, [2.0, 0.0], [0.0, 500.0]),
}


@pytest.mark.parametrize("algorithm", ["Rodas5P", "FBDF"])
@pytest.mark.parametrize("name", CASES)
def test_gradients_of_stiff_problems(name, algorithm):
    make, start, span = CASES[name]
    field = make()
    parameters = list(field.parameters())
    weights = torch.tensor([1.0, -0.5, 2.0][: len(start)], dtype=torch.float64)

    def loss(y0, rtol, algorithm=algorithm):
        options = {"rtol": rtol, "atol": 1e-3 * rtol, "backend": "julia", "algorithm": algorithm}
        return (weights * pynode.solve(field, y0, span, **options).ys[-1]).sum()

    y0 = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    found = torch.autograd.grad(loss(y0, 1e-8), [y0, *parameters])
    generator = torch.Generator().manual_seed(2)
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
    computed = sum((g * d).sum() for g, d in zip(found[1:], direction, strict=True))
    values = []
    with torch.no_grad():
        for sign in (1.0, -1.0):
            for p, d in zip(parameters, direction, strict=True):
                p += sign * 1e-4 * d
            values.append(loss(y0, 1e-11, "Rodas5P"))
            for p, d in zip(parameters, direction, strict=True):
                p -= sign * 1e-4 * d
    difference = (values[0] - values[1]) / 2e-4
    assert difference != 0
    assert (computed - difference).abs() <= 1e-3 * difference.abs(), (computed, difference)
