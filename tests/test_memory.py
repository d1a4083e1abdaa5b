"""How many states a solve holds on to, counted as live tensors, not as bytes of the process."""

from __future__ import annotations

import gc
import math

import pytest
import torch

import pynode
from pynode import BacksolveAdjoint, CheckpointedAdjoint, DirectAdjoint, SaveAt

SIZE = 1237  # no other tensor around has a multiple of this number of elements


@pytest.fixture(autouse=True)
def only_what_the_test_makes():
    """Objects that were there before are set aside, so that looking at all others is quick."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class Watch:
    """A field that looks at every call how many states are alive."""

    def __init__(self) -> None:
        self.weight = torch.full((), -0.1, dtype=torch.float64, requires_grad=True)
        self.peak = 0
        self.taped = 0
        self.watching = False

    def __call__(self, t, y):
        if self.watching:
            self.peak = max(self.peak, held())
        self.taped += torch.is_grad_enabled()
        return self.weight * y * torch.cos(t)


def held() -> int:
    """Number of states in memory: distinct storages of tensors of this test's size, counted in states."""
    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and thing.numel() and thing.numel() % SIZE == 0:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes() // (8 * SIZE)
    return sum(storages.values())


def run(sensealg, steps: int, watch: bool = False, **options):
    """States held by the solution, and the most held at any time of the backward pass."""
    f = Watch()
    y0 = torch.ones(SIZE, dtype=torch.float64, requires_grad=True)
    gc.collect()
    before = held()
    sol = pynode.solve(f, y0, [0.0, 1.0], algorithm=pynode.RK4(steps=steps), sensealg=sensealg, **options)
    gc.collect()
    after = held() - before
    calls = f.taped
    f.watching, f.taped = watch, 0
    sol.ys[-1].sum().backward()
    assert y0.grad.sum().item() == pytest.approx(
        SIZE * math.exp(-0.1 * math.sin(1)), rel=1e-6
    )  # RK4: h**5 / 120 < 1e-7
    return after, f.peak - before, calls, f.taped, sol


def test_checkpointed_holds_one_state_per_step_and_no_tape() -> None:
    few, _, taped, _, _ = run(CheckpointedAdjoint(), 10)
    many, _, taped_many, _, _ = run(CheckpointedAdjoint(), 40)
    assert many - few == 30
    assert few <= 10 + 2 * 2 + 1  # the states, ys with the record of it, and the layout's example
    assert taped == taped_many == 1  # the evaluation that finds the parameters


@pytest.mark.parametrize("checkpoints", [2, 4, 7])
def test_checkpoints_bound_what_the_solve_holds(checkpoints) -> None:
    base, *_ = run(BacksolveAdjoint(), 10)
    for steps in (10, 40, 70):
        after, _, taped, _, sol = run(CheckpointedAdjoint(checkpoints=checkpoints), steps)
        assert after - base <= checkpoints
        assert taped == 1
        # Every step is taken once more to be pulled back, and at most once to be reached.
        assert sol.stats.backward.nfe <= 2 * sol.stats.forward.nfe + 4 * steps


def test_backsolve_holds_the_ends_only() -> None:
    counts = [run(BacksolveAdjoint(), steps)[0] for steps in (10, 40, 70)]
    assert counts[0] == counts[1] == counts[2]
    assert counts[0] <= 2 * 2 + 2  # ys with the record of it, a copy of y0, the layout's example


def test_direct_holds_a_tape() -> None:
    few, _, _, _, _ = run(DirectAdjoint(), 4)
    many, _, taped, _, _ = run(DirectAdjoint(), 8)
    assert taped == 8 * 4
    assert many - few >= 4  # at least a state per step among what the operations have saved


def test_peak_of_the_backward_pass() -> None:
    # Flat in the number of steps for backsolve, and for the checkpointed adjoint beside the states it has.
    flat = [run(BacksolveAdjoint(), steps, watch=True)[1] for steps in (10, 40)]
    assert flat[0] == flat[1]
    peaks = [run(CheckpointedAdjoint(), steps, watch=True)[1] for steps in (10, 40)]
    assert peaks[1] - peaks[0] <= 30
    # checkpoints=6 keeps at most 6 states and one segment of 40 / 6 steps, rounded up to the next power of two, of
    # which each holds one; 16 + 6 is less than the 40 states of the full record. Recomputing them takes a buffer of
    # RK4's five stages (the one for dense output included), which the full record does without.
    bounded = run(CheckpointedAdjoint(checkpoints=6), 40, watch=True)[1]
    assert bounded <= peaks[1] + 5 - 40 + 6 + 8


def test_a_solve_without_gradient_keeps_what_dense_output_needs_or_nothing() -> None:
    y0 = torch.ones(SIZE, dtype=torch.float64)
    f = lambda t, y: -y  # noqa: E731
    gc.collect()
    before = held()
    sol = pynode.solve(f, y0, [0.0, 1.0], algorithm=pynode.RK4(steps=30))
    dense = held() - before
    assert 30 <= dense <= 30 + 2 * 2 + 1
    del sol
    assert held() == before
    sol = pynode.solve(f, y0, [0.0, 1.0], algorithm=pynode.RK4(steps=30), saveat=SaveAt(dense=False))
    assert held() - before <= 2 * 2 + 1
    assert len(sol.ys) == 2


@pytest.mark.parametrize(
    "sensealg",
    [CheckpointedAdjoint(), CheckpointedAdjoint(checkpoints=3), BacksolveAdjoint()],
    ids=lambda s: str(s)[:26],
)
def test_everything_is_freed_with_the_solution(sensealg) -> None:
    y0 = torch.ones(SIZE, dtype=torch.float64, requires_grad=True)
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    gc.collect()
    gc.disable()
    try:
        before = held()
        for _ in range(3):
            sol = pynode.solve(lambda t, y: -weight * y, y0, [0.0, 1.0], sensealg=sensealg)
            sol.ys[-1].sum().backward()
            y0.grad = None
            del sol
        assert held() == before
    finally:
        gc.enable()
