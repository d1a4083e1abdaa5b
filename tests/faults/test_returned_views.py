"""What f returns may be its input, a view of it, memory that overlaps itself, or the same buffer every time."""

from __future__ import annotations

import math

import pytest
import torch
from ways import WAYS


def itself(t, y):
    return y


def view_of_itself(t, y):
    return y.view(-1).view(y.shape)


def expanded(t, y):
    return y.mean(-1, keepdim=True).expand(y.shape)


def overlapping(t, y):
    one = y.mean(-1, keepdim=True).contiguous()
    return one.as_strided(y.shape, (*one.stride()[:-1], 0))


class OneBuffer:
    """It writes every result into the same memory."""

    def __init__(self):
        self.buffer = torch.empty(0, dtype=torch.float64)

    def __call__(self, t, y):
        with torch.no_grad():
            if self.buffer.shape != y.shape:
                self.buffer = torch.empty_like(y)
            return self.buffer.copy_(y)


NAMES = (
    "default",
    "direct",
    "gauss",
    "backsolve",
    "forward",
    "reversible",
    "rk4",
    "vcabm",
    "KenCarp4",
    "Rodas5P",
    "rkc",
)
ROWS = ("rows", "rows, direct")


@pytest.mark.parametrize("f", [itself, view_of_itself, expanded, overlapping], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", [*NAMES, *ROWS])
def test_views(name, f):
    way = WAYS[name]
    y0 = way.state()
    sol = way.solve(f, y0)
    start = y0.detach()
    if f in (itself, view_of_itself):
        exact = math.e * start
        slope = torch.full_like(start, math.e)
    else:  # the mean m grows as exp(t), and every element by as much
        exact = start + (math.e - 1.0) * start.mean(-1, keepdim=True)
        slope = torch.ones_like(start) + (math.e - 1.0)  # each counts half in two elements
    sol.ys[-1].sum().backward()
    # 100 steps of a tolerance of 1e-6 times the growth; reversible: of order 2, 20 steps.
    bound = 1e-2 if name == "reversible" else 3e-4
    assert (sol.ys[-1].detach() - exact).abs().max() < bound
    assert (y0.grad - slope).abs().max() < bound


@pytest.mark.parametrize("name", [*NAMES, *ROWS])
def test_one_buffer(name):
    way = WAYS[name]
    with torch.no_grad():
        y0 = way.state().detach()
        found = way.solve(OneBuffer(), y0).ys[-1]
    assert (found - math.e * y0).abs().max() < (1e-2 if name == "reversible" else 3e-4)
