"""How many states a solve holds on to, counted as live tensors, not as bytes of the process."""

from __future__ import annotations

import gc
import math

import pytest
import torch

import pynode
from pynode import BacksolveAdjoint, CheckpointedAdjoint, DirectAdjoint, ReversibleAdjoint, SaveAt
from pynode.native.checkpoints import repetitions

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
    options.setdefault("algorithm", pynode.RK4(steps=steps))
    sol = pynode.solve(f, y0, [0.0, 1.0], sensealg=sensealg, **options)
    gc.collect()
    after = held() - before
    calls = f.taped
    f.watching, f.taped = watch, 0
    sol.ys[-1].sum().backward()
    # RK4: h**5 / 120 < 1e-7; methods of order 2: h**2 / 6 times derivatives below 0.2, with h = 1/40.
    bound = 1e-6 if isinstance(options["algorithm"], pynode.RK4) else 0.2 / 6 / 40**2
    assert y0.grad.sum().item() == pytest.approx(SIZE * math.exp(-0.1 * math.sin(1)), rel=bound)
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
        # Every step is taken once more to be pulled back; to be reached, no more often than if the number of steps had
        # been known and nothing had been kept. RK4 evaluates four times a step.
        assert sol.stats.backward.nfe <= 4 * steps + 4 * repetitions(steps, checkpoints - 1)


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
    # checkpoints=6 holds at most 6 states instead of 40. Recomputing them takes a buffer of RK4's five stages (the one
    # for dense output included), the start of the last step in it, and the state under way, beside the three the
    # pullback still holds of the step before: its start, its end and what it pulls back.
    bounded = run(CheckpointedAdjoint(checkpoints=6), 40, watch=True)[1]
    assert bounded <= peaks[1] + 5 - 40 + 6 + 2 + 3
    # Constant in the number of steps.
    for checkpoints in (3, 6):
        found = [run(CheckpointedAdjoint(checkpoints), steps, watch=True)[1] for steps in (40, 70)]
        assert found[0] == found[1]


@pytest.mark.parametrize("algorithm", [pynode.ReversibleHeun, pynode.AsynchronousLeapfrog])
def test_reversible_holds_the_last_state_only(algorithm) -> None:
    found = [run(ReversibleAdjoint(), steps, watch=True, algorithm=algorithm(steps=steps)) for steps in (40, 70, 100)]
    assert len({after for after, *_ in found}) == 1
    assert len({peak for _, peak, *_ in found}) == 1
    # ys with the record of it, y0's copy, the layout's example, and the last state with what is carried there.
    assert found[0][0] <= 2 * 2 + 2 + 3


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
    [CheckpointedAdjoint(), CheckpointedAdjoint(checkpoints=3), BacksolveAdjoint(), ReversibleAdjoint()],
    ids=["checkpointed", "checkpointed3", "backsolve", "reversible"],
)
def test_everything_is_freed_with_the_solution(sensealg) -> None:
    y0 = torch.ones(SIZE, dtype=torch.float64, requires_grad=True)
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    gc.collect()
    gc.disable()
    try:
        before = held()
        for _ in range(3):
            algorithm = "alf" if isinstance(sensealg, ReversibleAdjoint) else "tsit5"
            sol = pynode.solve(lambda t, y: -weight * y, y0, [0.0, 1.0], algorithm=algorithm, sensealg=sensealg)
            sol.ys[-1].sum().backward()
            y0.grad = None
            del sol
        assert held() == before
    finally:
        gc.enable()
