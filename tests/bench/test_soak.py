"""The soak's verdict on series that grow and on series that do not, and the command on little."""

from __future__ import annotations

import random

import pytest
import torch

import pynode
from pynode.bench import soak, soak_laps
from pynode.bench.__main__ import main
from pynode.bench.cache_sizes import function_caches
from pynode.bench.slopes import slope

LARGE = 2.0**30


def test_slopes_are_those_of_least_squares():
    found = slope([0.0, 1.0, 2.0, 3.0], [1.0, 3.0, 4.0, 8.0])
    assert found.value == pytest.approx(2.2)
    # Residuals 0.3, 0.1, -1.1, 0.7: their squares sum to 1.8, over 2 degrees of freedom and a spread of 5.
    assert found.error == pytest.approx((1.8 / 2 / 5) ** 0.5)
    assert not slope([0.0, 1.0, 2.0], [5.0, 5.0, 5.0]).grows(0.0)


def test_a_field_that_leaks_fails():
    kept = []
    lap = soak_laps.Trainer(soak_laps.Rate(), algorithm=pynode.RK4(steps=2))

    def leaks(draw: random.Random) -> None:
        lap(draw)
        kept.append(torch.ones(3))

    report = soak.soak({"leaks": leaks}, 60, 10, memory=LARGE)
    assert any(why.startswith("tensors grows by 1 ") for why in report.failed), report.failed


def test_one_that_does_not_passes():
    lap = soak_laps.Trainer(soak_laps.Rate(), algorithm=pynode.RK4(steps=2))
    assert not soak.soak({"trains": lap}, 60, 10, memory=LARGE).failed


def test_memory_that_grows_by_more_than_the_bound_fails():
    at = list(range(100, 1100, 100))
    noise = [0.0, 300.0, -200.0, 100.0, 0.0, -300.0, 200.0, -100.0, 50.0, 0.0]
    grows = {"memory": [1e8 + 300.0 * x + e for x, e in zip(at, noise, strict=True)]}
    assert soak.judged(at, grows, 0.0, 256.0, {}).failed
    assert not soak.judged(at, grows, 0.0, 512.0, {}).failed
    still = {"memory": [1e8 + 1e4 * e for e in noise]}  # steep by chance alone
    assert not soak.judged(at, still, 0.0, 256.0, {}).failed


def test_too_little_to_judge_by_fails():
    assert soak.judged([10, 20, 30], {"memory": [1.0, 1.0, 1.0]}, 15.0, 256.0, {}).failed


def test_every_cached_function_is_bounded():
    """By a size, or by having no argument that a user could vary."""
    import importlib
    import pkgutil

    for module in pkgutil.walk_packages(pynode.__path__, "pynode."):
        if module.name.split(".")[1] in ("native", "cpp", "capture", "julia", "nn", "training"):
            importlib.import_module(module.name)
    few = {
        "pynode.backends._loaded",  # backends
        "pynode.autocast._available",  # kinds of devices
        "pynode.cpp.driver.driver",  # precisions
        "pynode.cpp.driver._loaded",
        "pynode.cpp.compile._gemms",
        "pynode.cpp.compile._processor",
        "pynode.cpp.compile._version",  # compilers
        "pynode.cpp.compile.compiler",
    }
    unbounded = {name for name, cached in function_caches().items() if cached.cache_info().maxsize is None}
    assert {name for name in unbounded if not name.startswith("pynode.bench")} <= few


@pytest.mark.slow
def test_the_command_on_three_hundred_iterations(capsys):
    assert main(["soak", "--quick"]) == 0
    assert "after 100 and 300 iterations of 30 kinds" in capsys.readouterr().out
