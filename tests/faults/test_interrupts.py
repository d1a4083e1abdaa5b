"""Ctrl-C at random moments: nothing left behind, no gradient half written, the next solve right to the bit.

``-m slow`` has the two hundred runs.
"""

from __future__ import annotations

import random
import signal
import threading

import numpy as np
import pytest
import torch
from faulty_field import Base
from injecting import TAPED, states
from interrupting import interrupted, seconds
from library_state import differences, library_state
from ways import WAYS

from pynode.interrupts import Deferred, Modes, puts_back


def solved(name, f, tensors=None):
    """Values and gradients; ``tensors`` receives what these belong to."""
    way, y0 = WAYS[name], WAYS[name].state()
    mine = way.tensors(f, y0)
    for x in mine:
        x.grad = None
    if tensors is not None:
        tensors += mine
    sol = way.solve(f, y0)
    way.loss(sol).backward()
    return states(way, sol), [x.grad.clone() for x in mine]


def interrupt(name, count, seed, fresh=False):
    """``count`` interrupts of a solve and its backward pass; of a module that is new each time if ``fresh``."""
    f = Base()
    solved(name, f)
    values, gradients = solved(name, f)
    whole = seconds(lambda: solved(name, Base() if fresh else f))
    draw, hits = random.Random(seed), 0
    for i in range(count):
        at = draw.random()
        mine = Base() if fresh else f
        before, tensors = library_state([mine]), []
        hits += not interrupted(lambda mine=mine, tensors=tensors: solved(name, mine, tensors), at * whole)
        where = f"{name}, seed {seed}, number {i}, at {at:.3f} of {whole:.3f} s"
        left = differences(before, library_state([mine]))
        assert not left, f"{where}: left behind {left}"
        found = [x.grad for x in tensors]
        if name not in TAPED:  # torch's tape hands gradients to leaves as it goes
            assert len({g is None for g in found}) <= 1, f"{where}: half-written gradients"
        for g, e in zip(found, gradients, strict=len(found) > 0):
            assert g is None or torch.equal(g, e), f"{where}: half a gradient"
        again, new = solved(name, mine)
        for a, b in zip([*again, *new], [*values, *gradients], strict=True):
            assert torch.equal(a, b), f"{where}: the next solve"
    print(f"{name}: {hits} of {count} before the end of {whole * 1e3:.1f} ms, seed {seed}")
    return hits


@pytest.mark.parametrize("name", ["default", "gauss", "rows", "compiled solve"])
def test_a_few_interrupts(name):
    interrupt(name, 5, seed=3)


SLOW = {"default": 40, "direct": 20, "gauss": 20, "KenCarp4": 20, "rows": 30, "event with effect": 10}


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_interrupts_at_random_moments(name):
    # Half would be a machine that became twice as quick meanwhile.
    assert interrupt(name, SLOW[name], seed=11) >= SLOW[name] // 4


@pytest.mark.slow
def test_interrupts_while_a_field_is_captured_and_compiled():
    assert interrupt("compiled solve", 30, seed=5, fresh=True) >= 8


@pytest.mark.slow
def test_interrupts_of_compiled_steps():
    # Few: the solve takes some milliseconds, in which the sending thread often waits for the interpreter.
    assert interrupt("compiled step", 30, seed=13) >= 3


def test_what_a_context_does_not_put_back_is():
    @puts_back
    def cut_short():
        torch.set_grad_enabled(False)
        torch.set_autocast_enabled("cpu", False)
        torch.autocast_increment_nesting()
        torch._C._functorch._vmap_increment_nesting(2, "error")
        raise KeyboardInterrupt

    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = library_state()
        with pytest.raises(KeyboardInterrupt):
            cut_short()
        assert not differences(before, library_state())


def test_modes_cost_nothing_where_nothing_happens():
    before = library_state()
    Modes().restore()
    assert not differences(before, library_state())


@pytest.fixture
def sigint():
    """Python's own handler, which a process that a shell started in the background does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint")
def test_deferred_interrupts_arrive_at_the_end_and_second_ones_at_once():
    before, reached = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt), Deferred():
        signal.raise_signal(signal.SIGINT)
        reached.append("behind the first")
    assert reached == ["behind the first"]
    with pytest.raises(KeyboardInterrupt), Deferred():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        reached.append("behind the second")
    assert len(reached) == 1
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("sigint")
def test_deferring_is_for_the_main_thread():
    before, found = signal.getsignal(signal.SIGINT), []

    def work():
        with Deferred():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


def test_numpy_warns_again_after_an_interrupt_of_rows():
    class Stop(Base):
        def forward(self, t, y, *args):
            np.seterr(over="raise")  # as the end of a context would leave it that was cut short
            raise KeyboardInterrupt

    before = np.geterr()
    with pytest.raises(KeyboardInterrupt), torch.no_grad():
        WAYS["rows"].solve(Stop(), WAYS["rows"].state())
    assert np.geterr() == before
