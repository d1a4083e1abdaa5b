"""Under ``pynode.strict`` every warning is an error."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch

import pynode
from pynode.strict import is_strict

SOURCE = Path(pynode.__file__).parent


def decay(t, y):
    return -y


def test_no_other_way_to_warn():
    calls = [
        (path.name, line)
        for path in SOURCE.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"\bwarnings\.warn\(", line)
    ]
    assert [name for name, _ in calls] == ["strict.py"]


def falls_back(f):
    return pynode.solve(f, torch.ones(1), [0.0, 1.0], algorithm="trapezoid", compile="solve")


def reconstructs_badly(f):
    y0 = torch.ones(1, dtype=torch.float64, requires_grad=True)
    sensealg = pynode.BacksolveAdjoint(on_mismatch="warn", reconstruction_rtol=1e-12)
    sol = pynode.solve(f, y0, [0.0, 8.0], rtol=1e-3, atol=1e-6, sensealg=sensealg)
    sol.ys[-1].sum().backward()


def loses_time(f):
    pynode.solve(lambda t, y: torch.cos(t - 1e9) * f(t, y), torch.ones(1), [1e9, 1e9 + 1.0])


def ignores_an_option(f):
    from pynode.compat.torchdiffeq import odeint

    odeint(f, torch.ones(1), torch.tensor([0.0, 1.0]), method="rk4", options={"unheard_of": 1})


@pytest.mark.parametrize(
    ("issue", "category"),
    [
        (falls_back, pynode.CompileWarning),
        (reconstructs_badly, pynode.AccuracyWarning),
        (loses_time, pynode.AccuracyWarning),
        (ignores_an_option, pynode.PynodeWarning),
    ],
)
def test_warnings_become_errors(issue, category):
    def f(t, y):  # a new one: some warnings come once for each field
        return -y

    with pytest.warns(category):
        issue(f)
    for _ in range(2):  # also those that were given before
        with warnings.catch_warnings(), pynode.strict(), pytest.raises(pynode.StrictError) as caught:
            warnings.simplefilter("ignore")
            issue(f)
        assert caught.value.category is category
    assert not is_strict()


def test_a_solve_repeated_under_strict_is_looked_at_again():
    rate = torch.nn.Linear(1, 1)

    def f(t, y):
        return torch.cos(t - 1e9) * rate(y)

    for _ in range(3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pynode.solve(f, torch.ones(1), [1e9, 1e9 + 1.0])
    with pynode.strict(), pytest.raises(pynode.StrictError):
        pynode.solve(f, torch.ones(1), [1e9, 1e9 + 1.0])


def test_what_is_well_is_well_under_strict():
    with pynode.strict():
        sol = pynode.solve(decay, torch.ones(1), [0.0, 1.0])
    assert torch.equal(sol.ys, pynode.solve(decay, torch.ones(1), [0.0, 1.0]).ys)


def test_a_strict_error_reaches_another_process():
    error = pickle.loads(pickle.dumps(pynode.StrictError("words", pynode.AccuracyWarning)))
    assert (str(error), error.category) == ("words", pynode.AccuracyWarning)


def test_nesting_decorating_and_threads():
    seen = []

    @pynode.strict()
    def inner():
        worker = threading.Thread(target=lambda: seen.append(is_strict()))
        worker.start()
        worker.join()
        return is_strict()

    assert not is_strict()
    with pynode.strict():
        assert inner()
        assert is_strict()
    assert not is_strict()
    with pytest.raises(ZeroDivisionError), pynode.strict():
        raise ZeroDivisionError
    assert not is_strict()
    assert seen == [True]


@pytest.mark.parametrize(("value", "strict"), [("1", True), ("0", False), ("", False)])
def test_the_environment(value, strict):
    import os

    done = subprocess.run(
        [sys.executable, "-c", "from pynode.strict import is_strict; print(is_strict())"],
        env={**os.environ, "PYNODE_STRICT": value},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(strict)
