"""A field that waits in one thread keeps nobody else from solving."""

from __future__ import annotations

import threading

import torch
from faulty_field import Base
from injecting import clean, first, same

import pynode

#: Seconds until a test says that something hangs.
LIMIT = 120.0


class Waiting(Base):
    """It waits in its fifth call, until it is let go."""

    def __init__(self):
        super().__init__()
        self.reached, self.go, self.calls = threading.Event(), threading.Event(), 0

    def forward(self, t, y, *args):
        self.calls += 1
        if self.calls == 5:
            self.reached.set()
            assert self.go.wait(LIMIT)
        return super().forward(t, y)


def test_others_solve_meanwhile():
    f, found = Waiting(), []
    names = ("default", "gauss", "rows")
    expected = {name: first(name) for name in names}

    def wait():
        y0 = torch.tensor([1.0, 0.5], dtype=torch.float64, requires_grad=True)
        sol = pynode.solve(f, y0, [0.0, 1.0], rtol=1e-6, atol=1e-8)
        sol.ys[-1].sum().backward()
        found.append(y0.grad)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert f.reached.wait(LIMIT)
    try:
        others = [threading.Thread(target=lambda n=n: found.append((n, clean(n))), daemon=True) for n in names]
        for other in others:
            other.start()
        for other in others:
            other.join(LIMIT)
            assert not other.is_alive(), "a solve waits for a field of another thread"
        assert all(same(result, expected[name]) for name, result in found)
    finally:
        f.go.set()
        thread.join(LIMIT)
    assert not thread.is_alive()
    assert torch.isfinite(found[-1]).all()
