"""Step-size controllers as functions of error ratios."""

from __future__ import annotations

import dataclasses
import math

import pytest

import pynode
from pynode.controllers import START, IController, PIController, PIDController, steady

CONTROLLERS = (IController(), PIController(), PIDController(), PIDController(dcoeff=0.1))
every_controller = pytest.mark.parametrize("controller", CONTROLLERS, ids=repr)
RATIOS = (0.0, 1e-300, 1e-12, 0.01, 0.5, 0.999, 1.0)


@every_controller
@pytest.mark.parametrize("order", [1, 2, 5, 9])
def test_acceptance_is_exactly_a_ratio_of_at_most_one(controller, order):
    for ratio in RATIOS:
        accepted, factor, _ = controller.propose(ratio, order, START)
        assert accepted
        assert 1.0 <= factor <= controller.factormax
    for ratio in (math.nextafter(1.0, 2.0), 2.0, 1e10, 1e300, math.inf, math.nan):
        accepted, factor, history = controller.propose(ratio, order, (3.0, 4.0))
        assert not accepted
        assert controller.factormin <= factor <= controller.safety < 1.0
        assert history == (3.0, 4.0)


@pytest.mark.parametrize("ratio", [math.inf, math.nan, 1e300])
def test_a_hopeless_error_shrinks_the_step_as_far_as_allowed(ratio):
    for controller in (IController(), IController(factormin=0.05)):
        assert controller.propose(ratio, 5, START)[1] == controller.factormin


def test_the_elementary_controller_aims_at_its_safety():
    """factor = safety * ratio^(-1/k): the step after which an error ~ h^k would meet the tolerance, times safety."""
    for order in (2, 5):
        for ratio in (0.02, 0.3, 3.0):
            expected = steady(0.9 * ratio ** (-1.0 / order))
            assert IController().propose(ratio, order, START)[1] == pytest.approx(expected, rel=1e-14)


def test_sizes_are_taken_to_a_millionth():
    """What differs by rounding alone is the same, but for the few numbers half-way between two."""
    sizes = [1.37e-9 * 1.618**n for n in range(100)]
    assert all(steady(x) == pytest.approx(x, rel=2.0**-20) for x in sizes)
    assert all(steady(x) == steady(x * (1 + 1e-12)) == steady(steady(x)) for x in sizes)


def test_the_elementary_controller_forgets():
    assert IController().propose(0.1, 5, START)[1] == IController().propose(0.1, 5, (7.0, 0.3))[1]


def test_the_filter_of_the_history():
    """The digital filter by hand: r = 1/ratio, exponents (p+i+d)/k, -(p+2d)/k, d/k."""
    p, i, d, k = 0.3, 0.35, 0.05, 4
    controller = PIDController(pcoeff=p, icoeff=i, dcoeff=d, safety=0.8)
    accepted, factor, history = controller.propose(0.01, k, (2.0, 3.0))
    assert accepted
    assert factor == pytest.approx(
        steady(0.8 * 100.0 ** ((p + i + d) / k) * 2.0 ** (-(p + 2 * d) / k) * 3.0 ** (d / k)), rel=1e-14
    )
    assert history == (100.0, 2.0)


def test_proportional_control_damps_a_falling_error():
    """After an accepted step with a small error the PI controller grows less than one that does not remember it."""
    fresh = PIController().propose(0.05, 5, START)[1]
    remembering = PIController().propose(0.05, 5, (20.0, 20.0))[1]
    assert 1.0 < remembering < fresh


def test_limits_are_the_users():
    controller = IController(safety=0.5, factormin=0.3, factormax=2.0)
    assert controller.propose(0.0, 5, START)[1] == 2.0
    assert controller.propose(1e30, 5, START)[1] == 0.3
    assert controller.propose(1.0 + 1e-9, 5, START)[1] == pytest.approx(0.5)


def test_named_controllers_are_coefficients():
    assert isinstance(IController(), PIDController)
    assert dataclasses.astuple(IController())[:3] == (0.0, 1.0, 0.0)
    assert PIController().dcoeff == 0.0
    assert PIController() == PIController()
    assert hash(PIController()) == hash(PIController())


@pytest.mark.parametrize(
    "options",
    [
        {"safety": 0.0},
        {"safety": 1.5},
        {"safety": math.nan},
        {"factormin": 0.0},
        {"factormin": 1.0},
        {"factormax": 0.9},
        {"factormax": math.nan},
    ],
    ids=str,
)
def test_bounds_that_make_no_sense_are_refused(options):
    with pytest.raises(pynode.InputError):
        IController(**options)
