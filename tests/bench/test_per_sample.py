"""The per-sample benchmark: its arithmetic, and a small run of it."""

from __future__ import annotations

import pytest

from pynode.bench import __main__ as command
from pynode.bench.per_sample import JOINT, PYNODE, Point, at_error, over


def power_law(factor: float, count: int = 4) -> list[Point]:
    """Work that grows as the fifth root of the accuracy."""
    errors = [10.0 ** -(3 + i) for i in range(count)]
    return [Point(e, round(factor * 1e6 * e**-0.2), factor * e**-0.2) for e in errors]


def test_work_at_an_error_is_read_off_the_line_between_points():
    points = power_law(1.0)
    assert at_error(points, 3e-5, "seconds") == pytest.approx(3e-5**-0.2)
    assert at_error(points, 1e-8, "seconds") == pytest.approx(1e-8**-0.2)
    assert at_error(points, 1.0, "seconds") == pytest.approx(1.0)


def test_each_library_is_taken_with_its_better_controller():
    found = {
        (PYNODE, "I"): power_law(3.0),
        (PYNODE, "PI"): power_law(2.0),
        (JOINT, "I"): power_law(9.0),
        (JOINT, "PI"): power_law(8.0),
    }
    assert over(found, JOINT, "seconds") == pytest.approx([4.0] * 4)


def test_the_command_runs(capsys):
    assert command.main(["per-sample", "--quick", "--without-torchode"]) == 0
    shown = capsys.readouterr().out
    assert "pynode independent" in shown
    assert "fewer row evaluations than joint stepping" in shown
