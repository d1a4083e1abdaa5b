"""``compile="solve"``: the C++ made from a field takes the steps of the eager solve and has its numbers."""

from __future__ import annotations

import shutil
import warnings

import pytest
import torch
from bounds import rounding, size_of, tolerance_bound
from drawn import EXPLICIT, adaptive, cases, clear
from hypothesis import event, given
from hypothesis import strategies as st
from shares import share
from test_property_gradients import cotangents_for, distance, pull, scale_of, solved

import pynode

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler"),
]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error", pynode.CompileWarning)  # it is done in C++, or it fails
        patch.setenv("PYNODE_CACHE", str(tmp_path_factory.mktemp("libraries")))
        yield


@share(0.2)
@given(st.data())
def test_compiled_solves_are_eager_ones(data):
    """Of one shape, so that few programs are compiled. Where errors of short steps are rounding the steps after them
    may differ, and both meet the tolerance."""
    dtypes = (torch.float64, torch.float32)
    case = data.draw(
        cases(
            kinds=("general", "tanh", "drifting"),
            dtypes=dtypes,
            forms=("vector",),
            size=False,
            most=2,
            paces=(1.0,),
            starts=(0.0,),
            spans=(1.0, 2.0, 0.125),
        )
    )
    algorithm, options = data.draw(adaptive(case, names=EXPLICIT))
    event(algorithm.name)
    cotangents = cotangents_for(case, 3)
    pulled = [
        pull(solved(case, algorithm, pynode.CheckpointedAdjoint(), {**options, "compile": tier}), cotangents)
        for tier in (False, "solve")
    ]
    eager, compiled = pulled
    steps = eager.sol.stats.forward.accepted
    size, scale = size_of(case), scale_of(case, eager, cotangents)
    apart = (case.vector(eager.sol.ys) - case.vector(compiled.sol.ys)).abs().max().item()
    taken = [(x.sol.stats.forward.accepted, x.sol.stats.forward.rejected) for x in pulled]
    if clear(case, algorithm, options):
        assert taken[0] == taken[1]
        assert apart <= rounding(case, steps, size, algorithm)
        assert distance(compiled, eager) <= rounding(case, steps, scale, algorithm)
    else:
        limit = 2.0 * tolerance_bound(case, steps, options["rtol"], options["atol"], size, algorithm)
        if algorithm.name == "Fehlberg2":
            limit *= max(1.0, 512 / 12 * case.core.lipschitz * case.span)
        assert apart <= limit
