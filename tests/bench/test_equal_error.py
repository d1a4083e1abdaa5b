"""Times at equal error are read off work-precision lines correctly: made-up lines with known answers."""

from __future__ import annotations

import math

import pytest

from pynode.bench.equal_error import Point, front, time_at
from pynode.bench.peers.lines import Line, compare
from pynode.bench.timing import Spread, Timing, spread


def power_law(order: float, *errors: float) -> list[Point]:
    """Points of a method of an order: seconds = error ** (-1 / order)."""
    return [Point(error, error ** (-1 / order)) for error in errors]


@pytest.mark.parametrize("error", [1e-6, 3e-6, 1e-5, 2e-4, 1e-3])
def test_a_power_law_is_read_off_exactly(error):
    found = time_at(power_law(5, 1e-3, 1e-5, 1e-6), error)
    assert found.seconds == pytest.approx(error ** (-1 / 5), rel=1e-12)
    assert found.how == "interpolated"


def test_beyond_the_line_nothing_is_invented():
    points = power_law(5, 1e-3, 1e-6)
    assert time_at(points, 1e-2) == time_at(points, 1.0)
    assert time_at(points, 1e-2).seconds == min(p.seconds for p in points)
    assert time_at(points, 1e-2).how == "at most"
    assert time_at(points, 1e-7).seconds == math.inf
    assert time_at(points, 1e-7).how == "never"


def test_points_that_another_beats_do_not_count():
    # In float32 a tighter tolerance can cost more and yield less; a lucky loose one can beat a tighter one.
    good = power_law(5, 1e-3, 1e-5)
    points = [Point(2e-5, 50.0), *good, Point(1e-2, 20.0)]
    assert front(points) == good
    assert time_at(points, 1e-4).seconds == pytest.approx(1e-4 ** (-1 / 5))


def test_an_error_of_zero_has_a_place_on_the_line():
    found = time_at([Point(1e-3, 1.0), Point(0.0, 2.0)], 1e-6)
    assert 1.0 < found.seconds < 2.0
    assert time_at([Point(1e-3, 1.0), Point(0.0, 2.0)], 0.0).seconds == pytest.approx(2.0)


def test_errors_below_the_floor_are_equal_and_the_quickest_of_them_counts():
    points = [Point(1e-4, 1.0), Point(3e-7, 4.0), Point(1e-8, 5.0), Point(2e-8, 3.0)]
    assert time_at(points, 1e-9, floor=4e-7).seconds == 3.0
    assert time_at(points, 3e-7, floor=4e-7) == time_at(points, 4e-7, floor=4e-7)
    assert time_at(points, 1e-9).how == "never"


def line(name: str, runs: dict[float, tuple[float, tuple[float, ...]]]) -> Line:
    return Line(
        name, {rtol: error for rtol, (error, _) in runs.items()}, {rtol: Timing(s) for rtol, (_, s) in runs.items()}
    )


def test_a_peer_is_compared_at_our_error_and_not_at_our_tolerance():
    ours = line("pynode eager", {1e-5: (1e-6, (1.0, 2.0, 1.0))})
    # Twice our time at our tolerance, four times (a geometric mean of 2 and 8) at our error.
    peer = line("peer", {1e-5: (1e-5, (2.0, 4.0, 2.0)), 1e-7: (1e-7, (8.0, 16.0, 8.0))})
    found = compare(ours, peer, 1e-5)
    assert found.same == Spread(2.0, 2.0, 2.0)
    assert found.equal.median == pytest.approx(4.0)
    assert found.how == "interpolated"
    assert found.judged == pytest.approx(4.0)


def test_where_errors_are_rounding_each_is_taken_at_its_cheapest():
    ours = line("pynode eager", {1e-5: (1e-8, (2.0,)), 1e-2: (2e-8, (1.0,))})
    peer = line("peer", {1e-5: (1e-8, (3.0,)), 1e-2: (3e-8, (1.5,))})
    found = compare(ours, peer, 1e-5, floor=1e-7)
    assert (found.same.median, found.equal.median) == (1.5, 1.5)


def test_ratios_are_taken_within_rounds():
    # The machine is three times slower in the last round.
    ours = line("pynode eager", {1e-5: (1e-6, (1.0, 1.0, 3.0))})
    peer = line("peer", {1e-5: (1e-6, (2.0, 2.0, 6.0))})
    found = compare(ours, peer, 1e-5)
    assert found.same == found.equal == Spread(2.0, 2.0, 2.0)


def test_a_peer_that_never_reaches_our_error_is_judged_at_the_same_tolerance():
    ours = line("pynode eager", {1e-5: (1e-8, (1.0,))})
    found = compare(ours, line("peer", {1e-5: (1e-4, (3.0,)), 1e-6: (1e-5, (5.0,))}), 1e-5)
    assert (found.equal, found.how, found.judged) == (None, "never", 3.0)


def test_a_peer_that_is_always_more_accurate_gives_a_bound():
    ours = line("pynode eager", {1e-5: (1e-3, (1.0,))})
    found = compare(ours, line("peer", {1e-5: (1e-6, (3.0,)), 1e-4: (1e-5, (2.0,))}), 1e-5)
    assert (found.equal.median, found.how, found.judged) == (2.0, "at most", 2.0)


def test_a_peer_that_failed_everywhere_is_not_a_win():
    ours = line("pynode eager", {1e-5: (1e-6, (1.0,))})
    found = compare(ours, Line("peer", failures={1e-5: "it broke"}), 1e-5)
    assert (found.same, found.equal, found.judged) == (None, None, 0.0)


def test_quartiles():
    assert spread([3.0, 1.0, 2.0, 4.0, 5.0]) == Spread(3.0, 2.0, 4.0)
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0)
