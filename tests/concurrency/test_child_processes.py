"""Solves in DataLoader workers and in processes of torch.multiprocessing: the bits of the parent."""

from __future__ import annotations

import multiprocessing
import multiprocessing.pool
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from fields_to_send import Failing, Network, Trajectories, fails, in_child, states_and_gradients

import pynode

LIMIT = 300.0  # what hangs fails by it; nothing depends on how quick the machine is
START = ["fork", pytest.param("spawn", marks=pytest.mark.slow), pytest.param("forkserver", marks=pytest.mark.slow)]
OPTIONS: dict[str, dict[str, Any]] = {"eager": {}, "solve": {"compile": "solve"}}


@pytest.mark.parametrize("tier", ["eager", pytest.param("solve", marks=pytest.mark.slow)])
@pytest.mark.parametrize("how", START)
def test_data_loader_workers_solve_as_the_parent_does(how: str, tier: str) -> None:
    data = Trajectories(**OPTIONS[tier])
    expected = torch.stack([data[i] for i in range(len(data))])  # solved here first, in C++ too
    loader = torch.utils.data.DataLoader(data, batch_size=2, num_workers=2, multiprocessing_context=how, timeout=LIMIT)
    assert torch.equal(torch.cat(list(loader)), expected)


def test_fork_after_torch_threads_were_used() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        big = torch.ones(400, 400)
        big @ big  # starts torch's pool of threads, which does not survive the fork
        pynode.solve(lambda t, y: -big @ y / 400, torch.ones(400, 8), [0.0, 1.0])
        data = Trajectories()
        expected = torch.stack([data[i] for i in range(len(data))])
        loader = torch.utils.data.DataLoader(
            data, batch_size=2, num_workers=2, multiprocessing_context="fork", timeout=LIMIT
        )
        assert torch.equal(torch.cat(list(loader)), expected)
    finally:
        torch.set_num_threads(threads)


def test_an_error_of_a_worker_reaches_the_parent() -> None:
    loader = torch.utils.data.DataLoader(Failing(), num_workers=1, multiprocessing_context="fork", timeout=LIMIT)
    with pytest.raises(RuntimeError, match="SolveError"):
        next(iter(loader))


@pytest.mark.parametrize("tier", OPTIONS)
@pytest.mark.parametrize("how", START)
def test_a_child_goes_on_with_what_it_was_sent(how: str, tier: str) -> None:
    field, options = Network(3), {**OPTIONS[tier], "algorithm": pynode.DP5(), "controller": pynode.PIController()}
    with torch.no_grad():
        solution = pynode.solve(field, torch.ones(4), [0.0, 0.5, 1.0])
        expected = [solution(0.25)]
    expected += states_and_gradients(field, **options)
    context = mp.get_context(how)
    queue = context.Queue()
    child = context.Process(target=in_child, args=(queue, solution, field, options), daemon=True)
    child.start()
    found = queue.get(timeout=LIMIT)
    child.join(LIMIT)
    assert child.exitcode == 0
    assert found == [x.numpy().tobytes() for x in expected]


def test_a_solve_error_in_a_pool_does_not_hang() -> None:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        waiting: Any = pool.map_async(fails, [0])
        with pytest.raises(pynode.SolveError, match=r"stopped at t = ") as caught:
            waiting.get(timeout=LIMIT)
    assert not caught.value.retcode.successful
