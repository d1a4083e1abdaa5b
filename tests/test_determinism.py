"""The same seed gives the same bits on the CPU: in one process, in another one, with other threads.

Across numbers of threads this is asked of operations too small for torch to divide: where it divides them, the ends of
the parts are computed by other instructions, and sums have another order.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import determinism_worker as worker
import pytest
import torch

import pynode

CASES = (
    *("checkpointed", "direct", "backsolve", "gauss", "reversible", "implicit", "rows", "rk4", "C++"),
    *("flow", "large"),
)


@functools.cache
def digests(threads: int, hash_seed: int) -> dict[str, str]:
    """Of a process of its own."""
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, worker.__file__, str(threads)],
        env=environment,
        cwd=Path(worker.__file__).parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_all_cases_are_told_apart():
    found = digests(1, 0)
    assert tuple(found) == CASES
    assert len(set(found.values())) == len(CASES)  # a digest that forgot the result would be equal everywhere


@pytest.mark.parametrize("case", CASES)
def test_in_another_process_with_other_hashes(case):
    assert digests(1, 0)[case] == digests(1, 1)[case]


@pytest.mark.parametrize("case", [case for case in CASES if case != "large"])
def test_with_other_threads(case):
    assert digests(1, 0)[case] == digests(3, 2)[case]


def test_twice_in_one_process():
    torch.manual_seed(5)
    assert worker.trained() == worker.trained()
    assert worker.flow() == worker.flow()


def test_a_solve_leaves_the_random_state_alone():
    before = torch.random.get_rng_state()
    y0 = torch.ones(2, 3, requires_grad=True)
    for sensealg in (None, pynode.BacksolveAdjoint(), pynode.DirectAdjoint()):
        pynode.solve(lambda t, y: torch.sin(y), y0, [0.0, 1.0], sensealg=sensealg).ys.sum().backward()
    assert torch.equal(torch.random.get_rng_state(), before)
