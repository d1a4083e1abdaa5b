"""Hard problems for explicit methods: each ends within a known bound, right or with a message that helps."""

from __future__ import annotations

import math
import time

import pytest
import torch

import pynode
from pynode import InputError, ReturnCode, SolveError, solve
from pynode.algorithms import ALGORITHMS, Exponential, Symplectic

EXPLICIT = ("BS3", "DP5", "Tsit5", "Vern7", "Vern9", "DP8", "Fehlberg2", "AdaptiveHeun")
ONE = torch.ones(1, dtype=torch.float64)


def failure(f, y0, t, **options):
    with pytest.raises(SolveError) as caught:
        solve(f, y0, t, **options)
    return caught.value


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("name", EXPLICIT)
def test_a_solution_that_blows_up_says_so_and_when(name, sign):
    # y = 1 / (1 - t). Loose: a method of order 2 halves its way down to the spacing of times in 1e3 steps.
    error = failure(lambda t, y: sign * y * y, ONE, [0.0, 2.0 * sign], algorithm=name, rtol=1e-4, atol=1e-4)
    assert error.retcode is ReturnCode.DtLessThanMin
    # The blow-up of the numerical solution is off by about the global error.
    assert error.t * sign == pytest.approx(1.0, abs=5e-2)
    assert "it blows up there" in str(error)
    assert "integrate less far" in str(error)


def test_a_fixed_step_over_a_blow_up_says_so():
    error = failure(lambda t, y: y * y, ONE, [0.0, 2.0], algorithm=pynode.RK4(dt=0.01))
    assert error.retcode is ReturnCode.Unstable
    assert 0.9 < error.t < 1.2
    assert "blow up in finite time" in str(error)


def test_a_singularity_of_the_field_is_no_blow_up():
    """dy/dt = 1 / (1 - t) has the integrable look of one, but the state stays of size 40 at most."""
    error = failure(lambda t, y: 1.0 / (1.0 - t) ** 2 + 0.0 * y, ONE, [0.0, 2.0])
    assert error.t == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("name", EXPLICIT)
def test_a_field_that_jumps_unannounced_is_followed_at_a_known_price(name):
    rtol = 1e-5 if name in ("Fehlberg2", "AdaptiveHeun") else 1e-7
    field = lambda t, y: torch.where(t < 0.5, -y, 5.0 * y)  # noqa: E731
    sol = solve(field, ONE, [0.0, 1.0], algorithm=name, rtol=rtol, atol=rtol)
    # Errors made at the jump grow by exp(2.5) = 12 afterwards; a dozen steps may end near it.
    assert sol.ys[-1].item() == pytest.approx(math.exp(2.0), rel=1e3 * rtol)
    # Steps shrink to the size at which the kink is below the tolerance and grow again: fewer than 50 rejections each.
    assert sol.stats.forward.rejected < 100


def test_a_named_jump_costs_next_to_nothing():
    field = lambda t, y: torch.where(t < 0.5, -y, 5.0 * y)  # noqa: E731
    options = {"rtol": 1e-9, "atol": 1e-9}
    blind = solve(field, ONE, [0.0, 1.0], **options).stats.forward
    told = solve(field, ONE, [0.0, 1.0], d_discontinuities=[0.5], **options)
    assert told.ys[-1].item() == pytest.approx(math.exp(2.0), rel=1e-7)
    assert told.stats.forward.rejected <= 2 < blind.rejected


def test_chattering_between_two_fields_ends_at_max_steps():
    """dy/dt = -sign(y) has no solution beyond y = 0."""
    error = failure(lambda t, y: -torch.sign(y), ONE, [0.0, 2.0], rtol=1e-8, atol=1e-10, max_steps=500)
    assert error.retcode is ReturnCode.MaxIters
    assert error.t == pytest.approx(1.0, abs=1e-2)
    assert "jumps to and fro" in str(error)


@pytest.mark.parametrize("name", EXPLICIT)
def test_a_region_without_values_is_named_by_its_edge(name):
    # y = 1 - t leaves the domain of the square root at t = 1.
    error = failure(lambda t, y: -1.0 - 0.0 * torch.sqrt(y), ONE, [0.0, 2.0], algorithm=name, rtol=1e-4, atol=1e-4)
    assert error.retcode is ReturnCode.Unstable
    assert error.t == pytest.approx(1.0, abs=1e-6)
    assert "f is finite there, but not just ahead" in str(error)
    assert "domain" in str(error)


def test_no_value_at_the_start_is_found_at_once():
    error = failure(lambda t, y: torch.sqrt(y - 2.0), ONE, [0.0, 1.0])
    assert error.retcode is ReturnCode.InitialFailure
    assert error.t == 0.0


#: Methods for fields of any form.
ONE_STATE = [name for name, cls in ALGORITHMS.items() if not issubclass(cls, Symplectic | Exponential)]


@pytest.mark.parametrize("span", [1e-12, 1e12, 1e-300, 1e300])
@pytest.mark.parametrize("name", EXPLICIT)
def test_time_spans_from_tiny_to_huge(name, span):
    # Two decays in units of the span.
    loose = {"algorithm": name, "rtol": 1e-4, "atol": 1e-6}
    rates = torch.tensor([1.0, 0.5], dtype=torch.float64)
    sol = solve(lambda t, y: -rates * y / span, torch.ones_like(rates), [0.0, span], **loose)
    # 100 tolerances; more for the one whose estimate is known to be optimistic.
    bound = 3e-2 if name == "Fehlberg2" else 1e-2
    torch.testing.assert_close(sol.ys[-1], torch.exp(-rates), rtol=bound, atol=0.0)
    unit = solve(lambda t, y: -rates * y, torch.ones_like(rates), [0.0, 1.0], **loose)
    # From a first step of 1e-6 on by tenfold growth at most: log10 of the span more steps.
    more = 8 + max(0.0, math.log10(span))
    assert sol.stats.forward.accepted <= unit.stats.forward.accepted + more


@pytest.mark.parametrize("batching", ["joint", "independent"])
@pytest.mark.parametrize("name", EXPLICIT)
def test_a_quick_decay_is_solved_as_one_in_units_of_time(name, batching):
    """The first step of a quick problem is not its whole time constant, over which the error estimate of BS3 is exactly
    zero: the error was 9 %."""
    y0 = ONE[None] if batching == "independent" else ONE
    options = {"algorithm": name, "rtol": 1e-4, "atol": 1e-8, "batching": batching}
    unit, quick = (solve(lambda t, y, s=s: -y / s, y0, [0.0, s], **options) for s in (1.0, 2.0**-40))
    torch.testing.assert_close(quick.ys[-1], unit.ys[-1], rtol=1e-12, atol=0.0)
    assert quick.stats.forward.nfe == unit.stats.forward.nfe


@pytest.mark.parametrize(("start", "length"), [(1.0, 1e-12), (1e12, 1.0), (-1e12, 1.0)])
def test_a_short_span_far_from_zero(start, length):
    sol = solve(lambda t, y: -y / length, ONE, [start, start + length])
    spacing = math.ulp(start) / length  # the span itself is a double, rounded
    assert sol.ys[-1].item() == pytest.approx(math.exp(-1.0), rel=1e-4 + 2 * spacing)


def test_a_span_of_a_few_representable_times_ends():
    """1e12 and the next representable times: no step fits in between, none is tried for ever."""
    sol = solve(lambda t, y: -y, ONE, [1e12, math.nextafter(1e12, math.inf)])
    assert sol.stats.forward.accepted + sol.stats.forward.rejected <= 3


@pytest.mark.parametrize("name", ["DP5", "Tsit5", "Vern7", "Vern9", "DP8"])
@pytest.mark.parametrize("rtol", [2.3e-16, 1e-15])
def test_a_tolerance_at_machine_precision_ends(name, rtol):
    sol = solve(lambda t, y: -y * torch.sin(t), ONE, [0.0, 3.0], algorithm=name, rtol=rtol, atol=rtol, max_steps=5000)
    # Rounding of 1e-16 a step, over no more steps than that.
    assert sol.ys[-1].item() == pytest.approx(math.exp(math.cos(3.0) - 1.0), rel=1e-12)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-17), (torch.float64, 0.0), (torch.float32, 1e-9)])
def test_a_tolerance_below_machine_precision_is_refused(dtype, rtol):
    with pytest.raises(InputError, match=r"asks for less than .* can hold.*raise rtol"):
        solve(lambda t, y: -y, ONE.to(dtype), [0.0, 1.0], rtol=rtol, atol=0.0)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_an_empty_batch_is_refused_with_its_name(shape):
    with pytest.raises(InputError, match=r"y0 has no element.*non-empty state"):
        solve(lambda t, y: -y, torch.zeros(shape), [0.0, 1.0])


@pytest.mark.parametrize("name", ["BS3", "DP5", "Tsit5", "Vern7", "DP8"])
def test_a_stiff_problem_is_recognised_when_an_explicit_method_gives_up(name):
    # Its solution is cos(t); every step is as long as stability allows.
    field = lambda t, y: -1e5 * (y - torch.cos(t))  # noqa: E731
    error = failure(field, ONE, [0.0, 10.0], algorithm=name, max_steps=300)
    assert error.retcode is ReturnCode.MaxIters
    assert "the problem is stiff there" in str(error)
    assert "-1e+05" in str(error)
    assert "implicit method" in str(error)


def test_a_quick_oscillation_is_not_called_stiff():
    field = lambda t, y: torch.stack((y[1], -1e6 * y[0]))  # noqa: E731
    error = failure(field, torch.ones(2, dtype=torch.float64), [0.0, 10.0], rtol=1e-9, atol=1e-9, max_steps=300)
    assert error.retcode is ReturnCode.MaxIters
    assert "the problem is stiff there" not in str(error)


@pytest.mark.parametrize("name", ONE_STATE)
def test_no_method_takes_more_than_max_steps(name):
    options = {} if ALGORITHMS[name]().adaptive else {"steps": 50}
    algorithm = ALGORITHMS[name](**options)
    field = lambda t, y: -1e4 * (y - torch.cos(t))  # noqa: E731
    sol = solve(field, ONE, [0.0, 100.0], algorithm=algorithm, max_steps=20, rtol=1e-8, atol=1e-8, throw=False)
    assert sol.stats.forward.accepted + sol.stats.forward.rejected <= 20
    assert not sol.retcode.successful
    assert sol.message


def test_dtmin_ends_a_solve_that_would_need_less():
    error = failure(lambda t, y: -1e6 * (y - torch.cos(t)), ONE, [0.0, 10.0], dtmin=1e-3)
    assert error.retcode is ReturnCode.DtLessThanMin
    assert "dtmin = 0.001" in str(error)


def test_forced_steps_that_overflow_end_at_once():
    """They used to be tried until max_steps: a forced step that is not finite stays so."""
    start = time.perf_counter()
    field = lambda t, y: -1e6 * (y - torch.cos(t))  # noqa: E731
    sol = solve(field, ONE, [0.0, 10.0], dtmin=1e-3, force_dtmin=True, throw=False)
    assert sol.retcode is ReturnCode.Unstable
    assert sol.stats.forward.rejected <= 5
    assert time.perf_counter() - start < 30.0


def test_the_gradient_of_what_was_reached_before_a_blow_up_is_right():
    y0 = ONE.clone().requires_grad_()
    options = {"rtol": 1e-9, "atol": 1e-9, "throw": False}
    sol = solve(lambda t, y: y * y, y0, [0.0, 0.5, 2.0], **options)
    assert sol.retcode is ReturnCode.DtLessThanMin
    (gradient,) = torch.autograd.grad(sol.ys[1].sum(), y0)
    assert gradient.item() == pytest.approx(1.0 / (1.0 - 0.5) ** 2, rel=1e-6)  # d/dy0 of y0 / (1 - t y0)
