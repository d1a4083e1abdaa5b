"""The README's "Coming from ..." sections: their code and ours, both run, the same answers.

Where the other library is absent ours is run alone; for torchdiffeq and torchdyn their block runs over the drop-in
under ``pynode.compat`` as well, by the change of the import that the README promises.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pynode

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
LIBRARIES = ("torchdiffeq", "torchdyn", "diffrax", "diffeqpy")

#: What both sides ask for. The global error of a solve is its local errors, carried along and added up: over these
#: short spans of fields with derivatives near 1 it is a moderate multiple of the tolerance, for either side.
TOLERANCE = 1e-8
BOUND = 1e3 * TOLERANCE


def blocks(library: str) -> tuple[list[str], str, str]:
    """The shared set-up, their block and ours, under the heading of a library."""
    section = README.split(f"### Coming from {library}\n")[1].split("\n## ")[0].split("\n### ")[0]
    found = re.findall(r"^```python([^\n]*)\n(.*?)^```", section, flags=re.M | re.S)
    kinds = [kind.strip() for kind, _ in found]
    theirs = kinds.index(library)
    assert kinds.count(library) == 1
    assert set(kinds) == {"", library}
    assert len(found) == theirs + 2
    return [code for _, code in found[:theirs]], found[theirs][1], found[theirs + 1][1]


def run(*parts: str) -> dict[str, np.ndarray[Any, Any]]:
    """The answers that some blocks leave behind, run one after the other from the same seed."""
    torch.manual_seed(0)
    scope: dict[str, Any] = {"torch": torch, "pynode": pynode}
    for code in parts:
        exec(compile(code, "README.md", "exec"), scope)
    return {name: numbers(scope[name]) for name in ("ys", "gradient", "when") if name in scope}


def numbers(answer: Any) -> np.ndarray[Any, Any]:
    return np.asarray(answer.detach() if isinstance(answer, torch.Tensor) else answer, dtype=float)


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert "ys" in theirs
    for name, expected in theirs.items():
        np.testing.assert_allclose(ours[name], expected, rtol=BOUND, atol=BOUND, err_msg=name)
        assert np.abs(expected).max() > 0.01, name  # not an agreement about nothing


@pytest.mark.parametrize("library", LIBRARIES)
def test_our_code_runs_and_the_tolerance_is_the_stated_one(library: str) -> None:
    setup, theirs, code = blocks(library)
    asked = r"(?:rtol|reltol)=(\S+?)[,)]"
    assert re.findall(asked, code) != []
    assert {float(x) for x in re.findall(asked, theirs + code)} == {TOLERANCE}
    found = run(*setup, code)
    assert {"ys", "gradient"} <= set(found)
    assert all(np.isfinite(x).all() for x in found.values())
    for side in (theirs, code):  # short enough to be read side by side
        assert len([line for line in side.splitlines() if line.strip()]) <= 15


@pytest.mark.parametrize("library", ["torchdiffeq", "torchdyn"])
def test_their_code_with_its_import_changed(library: str) -> None:
    setup, theirs, code = blocks(library)
    changed = theirs.replace(f"from {library}", f"from pynode.compat.{library}")
    assert changed != theirs
    answers = run(*setup, changed)
    assert_same(run(*setup, code), answers)
    assert "gradient" in answers


def compared_with(library: str) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    setup, theirs, code = blocks(library)
    assert_same(run(*setup, code), run(*setup, theirs))


def test_torchdiffeq() -> None:
    compared_with("torchdiffeq")


@pytest.mark.peers
@pytest.mark.parametrize("library", ["torchdyn", "diffrax"])
def test_peers(library: str) -> None:
    compared_with(library)


@pytest.mark.julia
def test_diffeqpy() -> None:
    compared_with("diffeqpy")


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_names_in_the_table_exist(library: str) -> None:
    """Every keyword, class and attribute in the right-hand column is one that pynode has."""
    section = README.split(f"### Coming from {library}\n")[1].split("\n## ")[0].split("\n### ")[0]
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", section, flags=re.M)
    assert len(rows) > 8
    known = {*inspect.signature(pynode.solve).parameters, *pynode.Solution.__annotations__}
    names = {"dt", "mesh", "checkpoints", "norm", "pcoeff", "effect", "terminal", "direction", "condition"}
    for name in names:  # options of algorithms and other objects, each held against the class that has it
        owner = {
            **{"dt": pynode.RK4, "mesh": pynode.RK4, "checkpoints": pynode.CheckpointedAdjoint},
            **{"norm": pynode.BacksolveAdjoint, "pcoeff": pynode.PIDController},
        }.get(name, pynode.Event)
        assert name in inspect.signature(owner).parameters
    for _, ours in rows[1:]:
        for code in re.findall(r"`([^`]+)`", ours):
            for keyword in re.findall(r"(\w+)=", code):
                assert keyword in known | names, (keyword, code)
            for cls in re.findall(r"\b([A-Z][A-Za-z0-9]+)(?=\(|$)", code):
                assert hasattr(pynode, cls) or hasattr(pynode.nn, cls), (cls, code)
