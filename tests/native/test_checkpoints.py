"""What the stores keep, how many states are held while a solve is run backward, and how many steps that repeats."""

from __future__ import annotations

import functools
import gc
import math
import weakref

import pytest
import torch

from pynode.native.checkpoints import Binomial, EveryStep, Thinned, advance, repetitions
from pynode.native.trajectory import Trajectory

SIZES = (1, 2, 3, 7, 30, 101)
SLOTS = (1, 2, 3, 5, 8, 17)


class Counter:
    """A state that knows its number, and a stepper that counts from one to the next.

    ``alive`` are the states that someone holds; ``most`` is the largest number of them when a step began.
    """

    order = error_order = 1

    def __init__(self) -> None:
        self.alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
        self.taken: dict[int, int] = {}
        self.most = 0

    def state(self, n: int) -> torch.Tensor:
        made = torch.tensor(n)
        self.alive.add(made)
        return made

    def begin(self, t, y, derivative=None, jump=0.0) -> None:
        assert int(y) == t

    resume = advance = begin

    def carried(self, end=False):
        return ()

    def attempt(self, t, h, y, jump=0.0, end=None):
        self.look()
        self.taken[int(t)] = self.taken.get(int(t), 0) + 1
        return self.state(int(y) + 1)

    def look(self) -> None:
        self.most = max(self.most, len(self.alive))


def recorded(store: EveryStep, steps: int) -> tuple[Trajectory, Counter]:
    stepper = Counter()
    trajectory = Trajectory(0.0, math.inf, store, frozenset(), False)
    y = stepper.state(0)
    for n in range(steps):
        stepper.look()
        trajectory.append(y, float(n + 1))
        y = stepper.state(n + 1)
    return trajectory, stepper


def run_back(trajectory: Trajectory, stepper: Counter, start: int) -> None:
    stepper.taken.clear()
    expected = start
    for n, y, carried in trajectory.backward(stepper, start):
        assert (n, int(y), carried) == (expected, n, ())
        stepper.look()
        del y
        expected -= 1
    assert expected == -1


@functools.cache
def fewest(length: int, slots: int) -> int:
    """The fewest repeated steps, by trying every place for the next snapshot."""
    if length == 1:
        return 0
    if slots == 1:
        return length * (length - 1) // 2
    return min(m + fewest(length - m, slots - 1) + fewest(m, slots) for m in range(1, length))


def test_offline_placement_is_optimal() -> None:
    for slots in range(1, 8):
        for length in range(1, 60):
            assert repetitions(length, slots) == fewest(length, slots)
            if length > 1:
                m = advance(length, slots)
                rest = fewest(length - m, slots - 1) if slots > 1 else 0
                assert 1 <= m < length
                assert length - m == 1 or slots > 1
                assert m + rest + fewest(m, slots) == fewest(length, slots)


@pytest.mark.parametrize("slots", SLOTS)
def test_states_held_never_exceed_the_bound(slots) -> None:
    """The snapshots and the state at hand, in the solve and in each of two passes: one more than the slots."""
    gc.collect()
    for steps in SIZES:
        trajectory, stepper = recorded(Binomial(slots), steps)
        gc.collect()
        assert stepper.most <= slots + 1
        assert len(trajectory.store) == min(slots, steps)
        for start in (steps - 1, steps - 1, steps // 2):
            stepper.most = 0
            run_back(trajectory, stepper, start)
            assert stepper.most <= slots + 1
        for _, y, _ in trajectory.states(range(steps), stepper):
            stepper.look()
            del y
        assert len(trajectory.store) <= slots
        run_back(trajectory, stepper, steps - 1)
        assert stepper.most <= slots + 1


@pytest.mark.parametrize("slots", SLOTS)
def test_repeated_steps(slots) -> None:
    """From the online record no more than the offline optimum from the initial state, which knows the number of steps,
    and no step more than ``times``, the least number with C(slots + times, slots) >= steps; a second pass takes exactly
    the optimum. From below: the first sweep of the optimum is what the solve itself has done."""
    for steps in (*range(1, 60, 7), 101, 150):
        trajectory, stepper = recorded(Binomial(slots), steps)
        optimum = repetitions(steps, slots)
        times = next(k for k in range(steps) if math.comb(slots + k, slots) >= steps)
        run_back(trajectory, stepper, steps - 1)
        assert optimum - (steps - 1) <= sum(stepper.taken.values()) <= optimum
        assert max(stepper.taken.values(), default=0) <= times
        run_back(trajectory, stepper, steps - 1)
        assert sum(stepper.taken.values()) == optimum
        assert max(stepper.taken.values(), default=0) <= times


def test_nothing_is_repeated_where_all_states_fit() -> None:
    for store, steps in ((EveryStep(), 50), (Binomial(50), 50), (Binomial(9), 4)):
        trajectory, stepper = recorded(store, steps)
        run_back(trajectory, stepper, steps - 1)
        assert not stepper.taken


def test_levels_of_online_checkpointing() -> None:
    """Three snapshots over the first steps, by hand from the rules: 1 and 2 come first; 3 raises 2 to level 1, which
    makes 1 dispensable; 4 takes its place."""
    kept = [recorded(Binomial(3), steps)[0].store.indices for steps in (1, 2, 3, 4, 5, 6, 7)]
    assert kept == [(0,), (0, 1), (0, 1, 2), (0, 1, 3), (0, 3, 4), (0, 3, 5), (0, 3, 6)]


def test_dense_output_after_a_pass_spreads_what_it_recomputes() -> None:
    trajectory, stepper = recorded(Binomial(5), 100)
    run_back(trajectory, stepper, 99)
    assert trajectory.store.indices == (0,)
    for n in range(100):
        ((found, y, _),) = trajectory.states([n], stepper)
        assert found == int(y) == n
    assert trajectory.store.indices == (0, 20, 40, 60, 80)


def test_a_pass_that_is_broken_off_leaves_a_record_that_works() -> None:
    trajectory, stepper = recorded(Binomial(4), 40)
    passing = trajectory.backward(stepper, 39)
    assert [next(passing)[0] for _ in range(3)] == [39, 38, 37]
    run_back(trajectory, stepper, 39)  # while the other one is under way
    assert [n for n, *_ in passing] == list(range(36, -1, -1))


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 9, 16, 100, 1000, 1023])
def test_thinned_keeps_about_the_square_root_evenly_spaced(steps) -> None:
    trajectory, stepper = recorded(Thinned(), steps)
    kept = trajectory.store.indices
    stride = kept[1] - kept[0] if len(kept) > 1 else steps
    assert kept == tuple(range(0, steps, stride))
    assert math.floor(math.sqrt(steps / 2)) <= len(kept) <= math.sqrt(2 * steps) + 1
    assert stride <= math.sqrt(2 * steps) + 1
    run_back(trajectory, stepper, steps - 1)
    assert max(stepper.taken.values(), default=0) <= 1
    assert trajectory.store.indices == kept


@pytest.mark.parametrize("store", [EveryStep, Thinned, functools.partial(Binomial, 4)])
def test_nearest_kept_states(store) -> None:
    trajectory, _ = recorded(store(), 37)
    kept = trajectory.store.indices
    for n in range(37):
        before, after = trajectory.store.before(n), trajectory.store.after(n)
        assert before == max(k for k in kept if k <= n)
        assert after == min((k for k in kept if k > n), default=None)
        assert int(trajectory.store[before][0]) == before
