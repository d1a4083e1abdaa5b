"""Which sensitivity algorithm is chosen where none is named."""

from __future__ import annotations

import pytest
import torch

import pynode
from pynode import CheckpointedAdjoint, DirectAdjoint, ReversibleAdjoint, Tsit5, choosing
from pynode.choosing import STEPS, choose
from pynode.problem import ODEProblem


def problem(size: int, dtype: torch.dtype = torch.float64) -> ODEProblem:
    # One number in memory, whatever the size.
    return ODEProblem(lambda t, y: -y, torch.zeros((), dtype=dtype).expand(size), [0.0, 1.0])


@pytest.fixture
def free(monkeypatch):
    """Pretends that so many bytes are free."""
    return lambda amount: monkeypatch.setattr(choosing, "free_memory", lambda device: amount)


BIG = 2**28 // 8 // STEPS + 1  # elements of a state, of which STEPS are just more than choosing.SMALL


def test_a_small_state_never_looks_at_the_memory(monkeypatch) -> None:
    def refuse(device):
        raise AssertionError("looked at the memory")

    monkeypatch.setattr(choosing, "free_memory", refuse)
    assert choose(problem(BIG - 1), Tsit5()) == CheckpointedAdjoint()
    assert choose(problem(2), pynode.ReversibleHeun()) == CheckpointedAdjoint()
    assert choose(problem(BIG, torch.float32), Tsit5()) == CheckpointedAdjoint()
    with pytest.raises(AssertionError, match="looked at"):
        choose(problem(BIG), Tsit5())


def test_a_large_state_that_fits(free) -> None:
    free(4 * STEPS * BIG * 8)
    assert choose(problem(BIG), Tsit5()) == CheckpointedAdjoint()
    assert choose(problem(BIG), pynode.ReversibleHeun()) == CheckpointedAdjoint()


def test_a_large_state_that_does_not_fit(free) -> None:
    amount = 4 * STEPS * BIG * 8 - 4
    free(amount)
    assert choose(problem(BIG), Tsit5()) == CheckpointedAdjoint(max_memory=amount // 4)
    assert choose(problem(BIG), pynode.ReversibleHeun()) == ReversibleAdjoint()
    free(0)
    assert choose(problem(BIG), Tsit5()) == CheckpointedAdjoint(max_memory=1)


def test_where_the_machine_does_not_tell(free) -> None:
    free(None)
    assert choose(problem(BIG), Tsit5()) == CheckpointedAdjoint()


def test_under_a_transform(free) -> None:
    free(0)
    assert choose(problem(BIG), pynode.ReversibleHeun(), transformed=True) == DirectAdjoint()


def test_free_memory_of_this_machine() -> None:
    free = choosing.free_memory(torch.device("cpu"))
    if free is not None:
        assert 2**20 < free < 2**50
    assert choosing.free_memory(torch.device("meta")) is None


def test_the_solution_tells() -> None:
    y0 = torch.ones(2, requires_grad=True)
    sol = pynode.solve(lambda t, y: -y, y0, [0.0, 1.0])
    assert sol.sensealg == CheckpointedAdjoint()
    assert pynode.solve(lambda t, y: -y, y0.detach(), [0.0, 1.0]).sensealg is None


def test_a_choice_under_little_memory_is_used(free, monkeypatch) -> None:
    free(4096)
    monkeypatch.setattr(choosing, "SMALL", 0)
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    sol = pynode.solve(lambda t, y: -y, y0, [0.0, 1.0])
    assert sol.sensealg == CheckpointedAdjoint(max_memory=1024)
    sol.ys[-1].sum().backward()
    plain = pynode.solve(lambda t, y: -y, y0, [0.0, 1.0], sensealg=CheckpointedAdjoint())
    torch.testing.assert_close(y0.grad, torch.autograd.grad(plain.ys[-1].sum(), y0)[0], rtol=1e-14, atol=0)
