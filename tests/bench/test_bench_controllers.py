"""The comparison of step-size controllers at equal error."""

from __future__ import annotations

import argparse
import json
import math

import numpy as np
import pytest

from pynode.bench import controllers
from pynode.bench.step_controllers import CONTROLLERS, H211b, Shrinking
from pynode.controllers import START, IController, PIDController


def test_equal_error_is_compared_whatever_tolerance_it_took() -> None:
    """Work c error^(-1/5): the ratio of the constants, although the errors are shifted against each other."""
    errors = np.logspace(-10, -3, 8)
    ours = np.log(errors / 7.0), np.log(30.0 * (errors / 7.0) ** -0.2)
    theirs = np.log(errors), np.log(40.0 * errors**-0.2)
    assert controllers.at_equal_error(ours, theirs) == pytest.approx(0.75, rel=1e-9)
    few = tuple(x[:3] for x in ours), tuple(x[:3] for x in theirs)
    assert controllers.at_equal_error(*few) == pytest.approx(0.75, rel=1e-9)
    apart = ours[0] + 100.0, ours[1]
    assert controllers.at_equal_error(apart, theirs) is None


def test_the_reference_is_the_solution() -> None:
    """A1 of DETEST is y' = -y, y(0) = 1."""
    times = np.linspace(0.0, 20.0, 77)
    np.testing.assert_allclose(controllers.reference("A1", times)[:, 0], np.exp(-times), rtol=0, atol=2e-12)


def test_a_point_is_the_largest_error_of_any_step() -> None:
    error, nfe = controllers.solve_once("A1", "Tsit5", "I", 1e-4)
    assert 1e-8 < error < 1e-3
    tight, more = controllers.solve_once("A1", "Tsit5", "I", 1e-8)
    assert tight < 1e-2 * error
    assert more > nfe


def test_filters_without_a_floor_are_the_formula() -> None:
    """By hand, behind an error just below the tolerance: the floor of 1 is what the library's own ones have."""
    ratio, order, history = 0.95, 5, (2.0, 3.0)
    for p, i, d in ((0.0, 1.0, 0.0), (0.2, 0.65, 0.0), (-2 / 9, 2 / 9, 1 / 18)):
        expected = 0.9 * ratio ** (-(p + i + d) / order) * 2.0 ** (-(p + 2 * d) / order) * 3.0 ** (d / order)
        found = Shrinking(pcoeff=p, icoeff=i, dcoeff=d).propose(ratio, order, history)
        assert found == (True, pytest.approx(expected), (1.0 / ratio, 2.0))
        assert PIDController(pcoeff=p, icoeff=i, dcoeff=d).propose(ratio, order, history)[1] == max(1.0, expected)
    assert Shrinking(pcoeff=0.0, icoeff=1.0, deadzone=1.2).propose(0.5, 5, START)[1] == 1.0
    accepted, factor, history = H211b().propose(0.5, 5, (4.0, 1.3))
    assert accepted
    assert factor == pytest.approx(0.9 * (2.0 * 4.0) ** (1 / 20) * 1.3**-0.25)
    assert history == (2.0, factor)
    assert H211b().propose(math.nan, 5, START)[:2] == (False, 0.2)


def test_the_experiment(tmp_path) -> None:
    kept = tmp_path / "solves.jsonl"
    parser = argparse.ArgumentParser()
    controllers.add_arguments(parser)
    given = ["--methods", "Tsit5", "BS3", "--problems", "A1", "B1", "--controllers", "predictive"]
    options = parser.parse_args([*given, "--tightest", "1e-5", "--keep", str(kept)])
    report = controllers.run(options)
    assert [table.title.partition(":")[0] for table in report.tables[:2]] == ["Tsit5", "BS3"]
    assert {row[0] for row in report.tables[0].rows} == {"I", "predictive"}
    assert len(report.claims) == 4
    ratios = report.data["ratios"]["Tsit5"]
    assert list(ratios["I"].values()) == pytest.approx([1.0, 1.0])
    assert all(0.3 < x < 3.0 for x in ratios["predictive"].values())
    lines = kept.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 * 2 * 2 * 3
    assert len({tuple(json.loads(line)[0]) for line in lines}) == len(lines)
    assert controllers.run(options).data == report.data
    assert len(kept.read_text(encoding="utf-8").splitlines()) == len(lines)


def test_the_first_controller_is_the_elementary_one() -> None:
    assert next(iter(CONTROLLERS.values())) == IController()
