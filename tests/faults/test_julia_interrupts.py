"""Ctrl-C at 200 random moments of solves and gradients by Julia, in one process."""

from __future__ import annotations

import random

import pytest
import torch
from faulty_field import Base
from interrupting import interrupted, seconds
from library_state import differences, library_state

import pynode
from pynode.julia import runtime

pytestmark = [
    pytest.mark.julia,
    pytest.mark.skipif(not runtime.installed(), reason="juliacall is not installed"),
]


class Looking(Base):
    """One that asks for values: Julia calls it back."""

    def forward(self, t, y, *args):
        return super().forward(t, y) if float(t) > -1.0 else -y


def gradient(f, tols):
    y0 = torch.tensor([1.0, 0.5], dtype=torch.float64, requires_grad=True)
    return pynode.solve(f, y0, [0.0, 0.5, 8.0], rtol=tols, atol=0.1 * tols, backend="julia"), y0


@pytest.mark.parametrize(("kind", "tolerance"), [(Base, 1e-10), (Looking, 1e-5)], ids=["captured", "called back"])
@pytest.mark.filterwarnings("ignore:Julia calls torch back")
def test_a_hundred_interrupts(kind, tolerance):
    f = kind()

    def work(tensors=None):
        sol, y0 = gradient(f, tolerance)
        if tensors is not None:
            tensors += [y0, *f.parameters()]
        sol.ys[1:].square().sum().backward()
        return sol.ys.detach().clone(), [x.grad.clone() for x in (y0, *f.parameters())]

    for p in f.parameters():
        p.grad = None
    work()
    f.zero_grad()
    values, gradients = work()
    f.zero_grad()
    whole = seconds(lambda: (f.zero_grad(), work()))
    seed = 7
    draw, hits = random.Random(seed), 0
    for i in range(100):
        at = draw.random()
        f.zero_grad()
        before, tensors = library_state([f]), []
        hits += not interrupted(lambda tensors=tensors: work(tensors), at * whole)
        where = f"seed {seed}, number {i}, at {at:.3f} of {whole:.3f} s"
        assert not differences(before, library_state([f])), where
        found = [x.grad for x in tensors]
        assert all(g is None for g in found) or all(
            g is not None and torch.equal(g, e) for g, e in zip(found, gradients, strict=True)
        ), where
        f.zero_grad()
        again, new = work()
        assert torch.equal(again, values), where
        assert all(torch.equal(a, b) for a, b in zip(new, gradients, strict=True)), where
    print(f"{hits} of 100 interrupts came before the end of {whole * 1e3:.1f} ms, seed {seed}")
    # Moments are drawn evenly from a clean run; a machine that is slower or quicker by half meanwhile is no fault.
    assert hits >= 20
