"""``python -m pynode.bench solvers``: its verdicts by hand-made runs, and one small run of its own."""

from __future__ import annotations

import argparse
import json
import math

import pytest
import torch

from pynode.bench import solvers
from pynode.bench.__main__ import main
from pynode.bench.solver_log import RunLog
from pynode.bench.solver_runs import Counted, Run, run
from pynode.bench.torchdiffeq_suite import checked
from pynode.errors import InputError

pytest.importorskip("scipy")


def made(error, work=100, rtol=1e-6, method="DP5", library="pynode", problem="A1", largest=None):
    return Run(problem, method, library, rtol, error, work, 0, work, 10, 0.1, largest=largest)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (3e-6, 1e-6, ""),
        (3.1e-6, 1e-6, "error over 3 times SciPy's"),
        (2e-5, 9e-6, "over 10 times the tolerance"),
        (4e-5, 9e-6, "error over 3 times SciPy's; over 10 times the tolerance"),
        (4e-5, 2e-5, ""),  # beyond the tolerance, but so is SciPy
        (None, 1e-6, "failed"),
        (1e-6, None, ""),
        (2e-13, 1e-17, ""),  # rounding
    ],
)
def test_a_run_is_judged_by_the_promise(ours, theirs, expected):
    assert solvers.verdict(made(ours), made(theirs, method="RK45", library="scipy")) == expected


def test_the_largest_error_counts_where_it_is_known():
    ours, theirs = made(4e-8, largest=2e-6), made(1e-8, largest=1e-6, method="RK45", library="scipy")
    assert solvers.verdict(ours, theirs) == ""
    assert solvers.verdict(ours, theirs, at_end=True) == "error over 3 times SciPy's"


def test_runs_are_kept_as_they_end_and_taken_from_there(tmp_path, capsys, monkeypatch):
    path = tmp_path / "kept" / "runs.jsonl"
    done = []

    def interrupted(name, method, library, rtol):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(rtol)
        return made(rtol, rtol=rtol, method=method, library=library, problem=name)

    monkeypatch.setattr(solvers.solver_runs, "run", interrupted)
    contestants, rtols = [("DP5", "pynode"), ("RK45", "scipy")], (1e-3, 1e-5)
    with pytest.raises(KeyboardInterrupt):
        solvers.measure(["A1"], contestants, rtols, RunLog(path))
    assert len(path.read_text().splitlines()) == 3
    assert capsys.readouterr().err.count("A1 ") == 3
    with path.open("a") as file:
        file.write('{"problem": "A1", "met')  # cut short
    done.clear()
    runs = solvers.measure(["A1"], contestants, rtols, RunLog(path))
    assert done == [1e-5]
    assert len(runs) == len(path.read_text().splitlines()) == 4


def test_a_slow_method_is_spared_the_tighter_tolerances(monkeypatch):
    monkeypatch.setattr(
        solvers.solver_runs, "run", lambda name, method, library, rtol: made(rtol, rtol=rtol, method=method)
    )
    runs = solvers.measure(["A1"], [("DP5", "pynode")], (1e-5, 1e-3), RunLog(), patience=0.05)
    assert [key[3] for key in runs] == [1e-3]


def test_a_file_that_holds_no_runs_is_refused(tmp_path):
    path = tmp_path / "other.jsonl"
    path.write_text('{"a": 1}\n')
    with pytest.raises(InputError, match=r"line 1 of .*other\.jsonl is no run"):
        RunLog(path)


def test_work_at_equal_error_compares_curves_where_they_overlap():
    """Work c * error**-0.2 for both, ours with twice the c and at other tolerances' errors."""
    rtols = (1e-3, 1e-5, 1e-7)
    runs = {}
    for rtol, ours, theirs in zip(rtols, (1e-2, 1e-4, 1e-6), (1e-3, 1e-5, 1e-7), strict=True):
        runs["A1", "DP5", "pynode", rtol] = made(ours, round(2e6 * ours**-0.2), rtol)
        runs["A1", "RK45", "scipy", rtol] = made(theirs, round(1e6 * theirs**-0.2), rtol, "RK45", "scipy")
    assert solvers.at_equal_error(runs, "A1", "DP5", rtols) == pytest.approx(2.0, rel=1e-4)
    del runs["A1", "DP5", "pynode", 1e-5], runs["A1", "DP5", "pynode", 1e-7]
    assert solvers.at_equal_error(runs, "A1", "DP5", rtols) is None


def test_evaluations_and_jacobians_are_told_apart():
    class Square(torch.nn.Module):
        def forward(self, t, y):
            return y * y

    field = Counted(Square())
    t, y = torch.tensor(0.0), torch.ones(3)
    with torch.no_grad():
        field(t, y)
    assert (field.plain, field.jacobians) == (1, 0)
    torch.func.jacrev(lambda x: field(t, x))(y)
    torch.func.jacfwd(lambda x: field(t, x))(y)
    field(t, y.clone().requires_grad_())
    assert (field.plain, field.jacobians) == (1, 3)


@pytest.mark.parametrize(("method", "library"), [("Tsit5", "pynode"), ("RK45", "scipy"), ("Radau", "scipy")])
def test_a_run_reports_error_and_work(method, library):
    one = run("A1", method, library, 1e-6)
    assert one.failure == ""
    assert 0 < one.error < 1e-5
    assert one.work == one.nfe + one.njac  # a single column
    assert (one.njac > 0) == (method == "Radau")
    assert one.accepted > 5
    assert one.error <= one.largest < 1e-5  # at 0.37 of the start's size and falling


def test_a_run_that_fails_says_why():
    one = run("E2", "Tsit5", "pynode", 1e-8, max_steps=5)
    assert one.error is None
    assert "max_steps = 5" in one.failure


def test_the_command_prints_tables_writes_numbers_and_draws(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "runs.json"
    rtols = ["1e-3", "1e-5"]
    arguments = [
        "--set",
        "detest",
        "--problems",
        "A1",
        "--methods",
        "Tsit5",
        "--rtol",
        *rtols,
        "--plots",
        str(tmp_path),
    ]
    assert main(["solvers", *arguments, "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "Tsit5 / RK45" in shown
    runs = json.loads(out.read_text())["runs"]
    assert {(x["method"], x["rtol"]) for x in runs} == {
        (m, r) for m in ("Tsit5", "RK45", "DOP853", "LSODA") for r in (1e-3, 1e-5)
    }
    assert all(math.isfinite(x["error"]) for x in runs)
    assert (tmp_path / "work_precision_detest.png").stat().st_size > 10_000


@pytest.mark.parametrize("option", [{"problems": ["Z9"]}, {"methods": ["RK99"]}])
def test_names_that_do_not_exist_are_refused(option):
    options = argparse.Namespace(**{"problems": None, "methods": None, **option})
    with pytest.raises(InputError, match=r"Z9|RK99"):
        solvers.options_check(options)


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no torchdiffeq/__init__.py.*git clone"):
        checked(tmp_path)
