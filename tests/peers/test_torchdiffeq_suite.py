"""torchdiffeq's own tests pass against the drop-in: ``-m peers``, with a checkout in PYNODE_TORCHDIFFEQ_SOURCE."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pynode.bench.torchdiffeq_suite import FILES, checked, outcome

SOURCE = os.environ.get("PYNODE_TORCHDIFFEQ_SOURCE")

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(SOURCE is None, reason="PYNODE_TORCHDIFFEQ_SOURCE names no checkout of torchdiffeq"),
]


@pytest.mark.parametrize("name", FILES)
def test_every_test_and_subtest_of_torchdiffeq_passes(name):
    source = checked(Path(SOURCE))
    found = outcome(source, name, drop_in=True)
    print(f"{name}: {found['tests']} tests, {found['subtests']} subtests, {found['seconds']:.0f} s")
    assert found["tests"] > 0
    assert not found["broken"], "\n".join(f"{x['test']}: {x['reason']} ({x['line']})" for x in found["broken"])
