"""The bracketing root finder: precision, bounds, hard functions."""

from __future__ import annotations

import math

import pytest

from pynode.native.root_finding import root


def found(f, a, b, width):
    calls = []

    def counted(x):
        calls.append(x)
        return f(x)

    x, noise = root(counted, a, b, f(a), f(b), width)
    return x, noise, calls


FUNCTIONS = {
    "line": (lambda x: 2 * x - 0.7, 0.35),
    "exponential": (lambda x: math.exp(20 * x) - math.exp(6), 0.3),
    "flat": (lambda x: (x - 0.6) ** 9, 0.6),
    "step": (lambda x: -1.0 if x < 0.123456789 else 1.0, 0.123456789),
    "steep": (lambda x: math.atan(1e6 * (x - 0.9)), 0.9),
    "infinite": (lambda x: -math.inf if x < 0.25 else 1.0, 0.25),
    "falling": (lambda x: math.cos(3 * x), math.pi / 6),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("width", [1e-3, 1e-9, 1e-15])
def test_every_root_is_bracketed_within_the_evaluations_of_bisection_and_one(name, width):
    f, expected = FUNCTIONS[name]
    x, _, calls = found(f, 0.0, 1.0, width)
    # A root of order nine is a plateau of rounding errors: |x - 0.6|^9 underflows against nothing here.
    assert abs(x - expected) <= 2 * width
    assert len(calls) <= math.ceil(math.log2(1.0 / width)) + 2
    assert all(0.0 < c < 1.0 for c in calls)


def test_smooth_functions_converge_superlinearly():
    x, noise, calls = found(FUNCTIONS["falling"][0], 0.0, 1.0, 1e-15)
    assert abs(x - math.pi / 6) <= 2e-15
    assert len(calls) <= 25  # half of bisection's 50
    assert noise <= 1e-14


def test_roots_at_the_ends_and_empty_brackets_take_no_evaluation():
    def never(x):
        raise AssertionError

    assert root(never, 0.2, 0.5, 0.0, 1.0, 1e-9) == (0.2, 0.0)
    assert root(never, 0.2, 0.5, -1.0, 0.0, 1e-9) == (0.5, 0.0)
    assert root(never, 0.3, 0.3, 1e-20, 1e-20, 1e-9) == (0.3, 1e-20)
