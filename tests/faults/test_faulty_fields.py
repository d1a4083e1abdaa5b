"""A field that fails in one of its calls, under everything that calls it: the user's own exception, an error in words,
or numbers that are right; never a gradient half written, and nothing left behind."""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from faulty_field import RAISES, VALUES
from injecting import clean, first, inject, same
from ways import WAYS

KINDS = [*RAISES, *VALUES]
#: The others: compiling takes a while.
EAGER = [name for name in WAYS if name != "compiled step"]
every_way = pytest.mark.parametrize("name", EAGER)


@every_way
def test_some_faults(name):
    """Three calls and kinds of each way, others with every way; all of them in the slow test below."""
    draw = random.Random(name)
    forward, total = first(name).forward, first(name).total
    calls = {draw.choice((1, 2, forward)), draw.randint(3, forward), draw.randint(min(forward + 1, total), total)}
    for at in sorted(calls):
        inject(name, draw.choice(KINDS), at)
    assert same(clean(name), first(name))


#: Each gave wrong numbers, or an error of torch's own.
PAST = [
    ("default", "written state", 13),
    ("interpolating, checkpointing", "written state", 38),
    ("checkpoints=2", "written state", 81),
    ("Rodas5P", "written state", 13),
    ("running cost", "written state", 1),
    ("direct", "written state", 2),
    ("default", "written parameters", 1),
    ("default", "written parameters", 43),
    ("default", "sparse", 5),
    ("KenCarp4", "nan", 176),
    ("radau", "nan", 201),
    ("dense, vern7", "nan", 22),
    ("rows, vern7", "nan", 22),
    ("gauss", "exception", 121),
    ("gauss", "written state", 121),
    ("checkpoints=2", "stop iteration", 38),
    ("reversible", "stop iteration", 22),
    ("Rodas5P", "written parameters", 49),
    ("FBDF", "written parameters", 9),
    ("trapezoid", "written parameters", 2),
    ("rows, direct", "written parameters", 40),
    ("rows, direct", "nan", 40),
    ("rkc", "nan", 980),
    ("compiled solve", "runtime error", 2),
    ("compiled solve", "out of memory", 2),
]


@pytest.mark.parametrize(("name", "kind", "at"), PAST)
def test_faults_of_the_past(name, kind, at):
    inject(name, kind, at)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@every_way
def test_every_kind_of_fault(name, kind):
    """At two dozen calls: the first, the last, those around the end of the solve, and others evenly between."""
    forward, total = first(name).forward, first(name).total
    calls = {*range(1, total + 1, max(1, total // 20)), 2, forward, min(forward + 1, total), total}
    outcomes = {inject(name, kind, at) for at in sorted(calls)}
    assert outcomes != {"right"} or kind in ("written state", "nan", "inf")
    assert same(clean(name), first(name))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_faults_under_compiled_steps(kind):
    """At a few calls, as torch compiles the steps of every field anew."""
    sys.setrecursionlimit(max(2000, sys.getrecursionlimit()))  # torch does so when it first compiles, and leaves it
    name = "compiled step"
    forward, total = first(name).forward, first(name).total
    for at in (2, forward, forward + 1, (forward + total) // 2, total):
        inject(name, kind, at)
    assert same(clean(name), first(name))


@pytest.mark.parametrize("name", ["default"])
def test_solves_after_faults_have_the_bits_of_a_fresh_process(name):
    for kind, at in (("base exception", 5), ("nan", first(name).forward + 3), ("none", 1)):
        inject(name, kind, at)
    code = f"""
    import sys, torch
    sys.path[:0] = {[str(Path(__file__).parent)]!r}
    torch.set_num_threads(1)
    from injecting import clean
    found = clean({name!r})
    for x in (*found.values, *found.gradients):
        print(x.numpy().tobytes().hex())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, timeout=300
    )
    now = clean(name)
    assert done.stdout.split() == [x.numpy().tobytes().hex() for x in (*now.values, *now.gradients)]


def test_the_snapshot_sees_what_is_left_behind():
    """The other tests can fail."""
    from library_state import differences, library_state

    module = torch.nn.Linear(1, 1)
    before = library_state([module])
    assert not differences(before, library_state([module]))
    handle = module.register_forward_hook(lambda *_: None)
    with torch.autocast("cpu"), torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x), torch.no_grad():
        found = differences(before, library_state([module]))
    handle.remove()
    assert {"module hooks", "autocast cpu", "autocast nesting", "saved tensor hooks", "grad mode"} <= set(found)
    module.weight.register_hook(lambda g: g)
    assert set(differences(before, library_state([module]))) == {"tensor hooks"}
