"""CONTRIBUTING's worked example is a solver of its stated order, and its table names files that are there."""

from __future__ import annotations

import importlib
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

import pynode
from pynode.algorithms import ALGORITHMS
from pynode.native.tableaus import TABLEAUS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^```python (\S+)\n(.*?)^```", TEXT, flags=re.M | re.S))


@pytest.fixture
def ralston(monkeypatch: pytest.MonkeyPatch) -> type:
    """The example's class, added as the text says and taken away again."""
    monkeypatch.setattr(pynode, "Ralston3", None, raising=False)
    monkeypatch.setitem(TABLEAUS, "Ralston3", None)  # to be put back as it was: absent
    del TABLEAUS["Ralston3"]
    for path in ("pynode/native/tableaus.py", "pynode/algorithms/runge_kutta.py"):
        module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        scope = dict(vars(module))
        exec(compile(BLOCKS[path], path, "exec"), scope)
    added: type = scope["Ralston3"]
    monkeypatch.setattr(pynode, "Ralston3", added)
    monkeypatch.setitem(ALGORITHMS, "Ralston3", added)
    return added


def test_the_example_is_short() -> None:
    assert list(BLOCKS) == ["pynode/native/tableaus.py", "pynode/algorithms/runge_kutta.py", "tests/test_solve.py"]
    assert sum(len(code.splitlines()) for code in BLOCKS.values()) < 40


def test_it_is_a_solver_of_order_3(ralston: type) -> None:
    scope = {"math": math, "torch": torch, "pynode": pynode}
    exec(compile(BLOCKS["tests/test_solve.py"], "CONTRIBUTING.md", "exec"), scope)
    assert 2.9 < scope["slope"] < 3.1  # type: ignore[operator]


def test_its_order_conditions(ralston: type) -> None:
    tableau = TABLEAUS["Ralston3"]
    b, c = np.array(tableau.b), np.array(tableau.c)
    a = np.array([[*row, *[0.0] * (3 - len(row))] for row in tableau.a])
    np.testing.assert_allclose(a.sum(1), c, rtol=1e-15)
    found = [b.sum(), b @ c, b @ c**2, b @ a @ c]
    np.testing.assert_allclose(found, [1, 1 / 2, 1 / 3, 1 / 6], rtol=1e-15)


def test_it_has_all_that_solvers_have(ralston: type) -> None:
    """By name, with exact gradients, with dense output: nothing but the data was written."""
    y0 = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=True)
    field = lambda t, y: torch.sin(y) * torch.cos(t)  # noqa: E731
    assert gradcheck(lambda y: pynode.solve(field, y, [0.0, 1.0], algorithm=ralston(steps=4)).ys, [y0])
    sol = pynode.solve(field, y0.detach(), [0.0, 1.0], algorithm="ralston3")
    assert sol.algorithm == ralston()
    ends = torch.stack([sol(0.0), sol(1.0)])
    torch.testing.assert_close(ends, sol.ys)


def test_the_files_that_are_named_are_there() -> None:
    named = re.findall(r"`((?:pynode|tests)/[\w/.]*)`", TEXT)
    assert len(named) > 15
    missing = [name for name in named if not (ROOT / name).exists()]
    assert missing == []


def test_the_commands_are_the_readmes() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in ("ruff check .", "ruff format --check .", "mypy", "pip install", "-m pytest -n 2"):
        assert command in TEXT
        assert command in readme
