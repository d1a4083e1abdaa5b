"""Memory that runs out: in f, in its backward pass, and for real in a process with a limit."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from available import AVAILABLE
from faulty_field import Base
from library_state import differences, library_state

import pynode
from pynode.cpp.compile import compiler
from pynode.errors import UnsupportedError


def has_compiler():
    try:
        compiler()
    except UnsupportedError:
        return False
    return True


class Exhausted(torch.autograd.Function):
    """The identity, whose backward pass finds no memory."""

    @staticmethod
    def forward(ctx, x, kind):
        ctx.kind = kind
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        raise ctx.kind("no memory for this")


class Hungry(Base):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, t, y, *args):
        return Exhausted.apply(super().forward(t, y), self.kind)


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, MemoryError])
@pytest.mark.parametrize("sensealg", AVAILABLE.values(), ids=AVAILABLE)
def test_in_the_backward_pass_of_f(sensealg, kind):
    f, y0 = Hungry(kind), torch.tensor([1.0, 0.5], dtype=torch.float64, requires_grad=True)
    before = library_state([f])
    with pytest.raises(kind, match="no memory for this"):
        pynode.solve(f, y0, [0.0, 1.0], sensealg=sensealg).ys[-1].sum().backward()
    assert not differences(before, library_state([f]))
    if not isinstance(sensealg, pynode.DirectAdjoint):
        assert all(x.grad is None for x in (y0, *f.parameters()))


LIMITED = """
    import os, resource, sys, torch, pynode, warnings
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    f = lambda t, y: -y
    y0 = torch.ones({size}, dtype=torch.float64, requires_grad=True)
    options = dict(algorithm=pynode.RK4(steps={steps}), compile={compile!r},
                   sensealg=pynode.CheckpointedAdjoint())
    def solve(y0, steps):
        return pynode.solve(f, y0, [0.0, 1.0], **{{**options, "algorithm": pynode.RK4(steps=steps)}})
    solve(y0, 2).ys[-1].sum().backward()
    y0.grad = None
    if {backward}:
        sol = solve(y0, {steps})
    used = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + {room} * 2**20, used + {room} * 2**20))
    try:
        if {backward}:
            sol.ys[-1].sum().backward()
        else:
            solve(y0, {steps})
    except (MemoryError, RuntimeError) as error:
        print("words", type(error).__name__, str(error)[:200].replace(chr(10), " "))
    else:
        print("done")
    print("gradient", y0.grad)
    print("next", solve(torch.ones(2, dtype=torch.float64), 10).ys[-1].tolist())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
@pytest.mark.parametrize(
    "compile",
    [False, pytest.param("solve", marks=pytest.mark.skipif(not has_compiler(), reason="no C++ compiler"))],
)
@pytest.mark.parametrize("where", ["solve", "backward"])
def test_a_limit_on_the_address_space(compile, where):
    """A solve keeps two hundred states of 8 MB where there are 400 MB; a backward pass needs a few of 16 MB where there
    are 24 MB. Words, no gradient, and the next solve is right."""
    size, steps, room = (1_000_000, 200, 400) if where == "solve" else (2_000_000, 40, 24)
    code = LIMITED.format(size=size, steps=steps, room=room, compile=compile, backward=where == "backward")
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    words, gradient, following = done.stdout.strip().splitlines()
    assert words.startswith("words"), done.stdout
    assert "memory" in words, words
    assert gradient == "gradient None"
    assert following.startswith("next [0.3678"), following
