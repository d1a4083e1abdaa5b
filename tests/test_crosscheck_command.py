"""``pynode crosscheck``: its problems, its files, its exit statuses."""

from __future__ import annotations

import importlib.util
import json

import pytest

import pynode
from pynode.cli import main
from pynode.native import backend as native
from pynode.problems import PROBLEMS

QUICK = ["--algorithms", "tsit5", "--sensealgs", "direct,checkpointed", "--oracles", "", "--repeats", "1"]

MODULE = """
import torch, pynode
y0, t = torch.tensor([1.0, 0.5]), [0.0, 0.3]
def f(t, y): return -y ** 2
def make(): return f, y0, t
triple = (f, y0, t)
quadruple = (f, y0, t, lambda ys: ys[-1].sum())
table = {"f": f, "y0": y0, "t": t, "loss": lambda ys: ys[-1].sum()}
problem = pynode.problems.PROBLEMS["spiral"]
instance = problem.build()
number = 3
pair = (f, y0)
wrong = {"field": f, "y0": y0}
"""


@pytest.fixture
def module(tmp_path, monkeypatch, request):
    """A module in the current folder, whose name is the test's own."""
    name = "user_" + "".join(c if c.isalnum() else "_" for c in request.node.name)
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return name


def test_the_list_names_every_problem(capsys):
    assert main(["crosscheck", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(PROBLEMS)
    assert next(line for line in lines if line.startswith("robertson")).endswith("[stiff]")


def test_a_built_in_problem_agrees_and_writes_its_files(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    numbers, picture = tmp_path / "a.json", tmp_path / "a.png"
    argv = ["--problem", "spiral", "--dtype", "float32", "--tolerances", "1e-3,1e-4", "--json", str(numbers)]
    assert main(["crosscheck", *argv, *QUICK, "--plot", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "CheckpointedAdjoint" in out
    assert "OK: 4 agrees" in out
    content = json.loads(numbers.read_text())
    assert [row["rtol"] for row in content["rows"]] == [1e-3, 1e-3, 1e-4, 1e-4]
    assert "float32" in content["title"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_disagreement_ends_with_status_1(monkeypatch, capsys):
    true = native._PULL_BACKS[pynode.CheckpointedAdjoint]

    def planted(record, query, cotangents):
        found = true(record, query, cotangents)
        found.y0 = found.y0 * 1.01
        return found

    monkeypatch.setitem(native._PULL_BACKS, pynode.CheckpointedAdjoint, planted)
    assert main(["crosscheck", "--problem", "spiral", *QUICK]) == 1
    assert "DISAGREES: torch / Tsit5 / CheckpointedAdjoint" in capsys.readouterr().out


@pytest.mark.parametrize("attribute", ["triple", "quadruple", "table", "make", "problem", "instance"])
def test_a_problem_of_the_user(module, attribute, capsys):
    assert main(["crosscheck", "--problem", f"{module}:{attribute}", *QUICK]) == 0, capsys.readouterr()
    assert "OK: 2 agrees" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("number", "is of type int"),
        ("pair", "is of type tuple and length 2"),
        ("wrong", "with keys field, y0"),
        ("nothing", "has no 'nothing'"),
    ],
)
def test_what_is_no_problem_of_the_user(module, attribute, message, capsys):
    assert main(["crosscheck", "--problem", f"{module}:{attribute}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "(f, y0, t)" in error


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no --problem"),
        (["--problem", "lorentz"], "unknown problem 'lorentz'"),
        (["--problem", "nowhere_at_all:x"], "cannot import 'nowhere_at_all'"),
        (["--problem", "spiral", "--algorithms", "tsit6"], "unknown algorithm 'tsit6'"),
        (["--problem", "spiral", "--sensealgs", "adjoint9"], "unknown sensealg"),
        (["--problem", "spiral", "--backends", "fortran"], "unknown backend 'fortran'"),
        (["--problem", "spiral", "--json", "/nowhere/a.json"], "cannot write /nowhere/a.json"),
        (["--problem", ":make"], "--problem :make"),
        (["--problem", "os:"], "--problem os:"),
        (["--problem", "spiral", "--oracles", "sicpy"], "unknown oracle 'sicpy'"),
        (["--problem", "os:path", "--dtype", "float32"], "--dtype with a problem of your own"),
    ],
)
def test_bad_usage_ends_with_status_2(argv, message, capsys):
    assert main(["crosscheck", *argv]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Remedy:" in error


def test_a_picture_without_matplotlib_is_refused_before_anything_runs(monkeypatch, capsys):
    true = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else true(name, *a))
    assert main(["crosscheck", "--problem", "spiral", *QUICK, "--plot", "a.png"]) == 2
    assert "--plot needs matplotlib" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--rtol", "-1"], ["--dtype", "int8"], ["--tolerances", "1e-3,x"]])
def test_numbers_out_of_range_end_with_status_2(argv):
    with pytest.raises(SystemExit) as end:
        main(["crosscheck", "--problem", "spiral", *argv])
    assert end.value.code == 2
