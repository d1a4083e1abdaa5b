"""Faults of a field that Julia solves: while it is captured, and in every kind of call where Julia calls it back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from faulty_field import RAISES, VALUES
from injecting import clean, first, inject, same
from ways import WAYS, Way

import pynode
from pynode.julia import runtime
from pynode.julia.routes import callbacks

pytestmark = [
    pytest.mark.julia,
    pytest.mark.skipif(not runtime.installed(), reason="juliacall is not installed"),
]


class CalledBack(Way):
    """One whose field Julia calls, though it could be captured."""

    def solve(self, f: Callable[..., Any], y0: Any) -> pynode.Solution:
        with callbacks():
            return super().solve(f, y0)


JULIA = {
    "julia": Way({"backend": "julia"}),
    "julia, interpolating": Way({"backend": "julia", "sensealg": pynode.InterpolatingAdjoint()}),
    "julia, called back": CalledBack({"backend": "julia"}),
    "julia, called back, tree": CalledBack({"backend": "julia"}, tree=True),
    "julia, called back, stiff": CalledBack({"backend": "julia", "algorithm": "Rodas5P"}),
}


@pytest.fixture(autouse=True)
def ways(monkeypatch):
    for name, way in JULIA.items():
        monkeypatch.setitem(WAYS, name, way)


@pytest.mark.parametrize("kind", [*RAISES, *VALUES])
@pytest.mark.parametrize("name", JULIA)
def test_faults(name, kind):
    forward, total = first(name).forward, first(name).total
    for at in sorted({1, 2, 3, forward, min(forward + 1, total), (forward + total) // 2, total}):
        inject(name, kind, at)
    assert same(clean(name), first(name))
