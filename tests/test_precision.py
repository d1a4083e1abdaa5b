"""Where floating point cannot hold what is asked for, a message says so; where it can, it is held."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

import pynode
from pynode import AccuracyWarning, InputError, SolveError

FAR = 1e9
DOUBLE = torch.float64


def pulse(t, y):
    return torch.cos(t - FAR) * y


def decay(t, y):
    return -y


def quiet(*args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return pynode.solve(*args, **options)


@pytest.mark.parametrize("batching", ["joint", "independent"])
@pytest.mark.parametrize("algorithm", ["Tsit5", "DP8", "Vern7"])
def test_times_far_from_zero_in_float64(algorithm, batching):
    # Stage times are rounded by at most half of 1.2e-7, and |cos'| <= 1: the exponent is off by no more than that.
    rtol = 1e-6
    y0 = torch.ones(3, 1, dtype=DOUBLE)
    sol = quiet(pulse, y0, [FAR, FAR + 1.0], algorithm=algorithm, rtol=rtol, atol=1e-9, batching=batching)
    expected = math.exp(math.sin(1.0))
    assert (sol.ys[-1] / expected - 1.0).abs().max() < 1e-7 + 10 * rtol


@pytest.mark.parametrize("algorithm", ["Tsit5", "BS3", "RadauIIA5", pynode.RK4(steps=64)])
def test_an_autonomous_field_does_not_feel_where_time_begins(algorithm):
    # Steps end on a grid of 1.2e-7 at most: each is another step of the same method, by that much longer.
    y0 = torch.tensor([1.0, 0.5], dtype=DOUBLE)
    theta = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)

    def f(t, y):
        return torch.stack([y[1], -theta * torch.sin(y[0])])

    found = []
    for t0 in (0.0, FAR):
        ts = [t0, t0 + 0.5, t0 + 1.0]
        sol = quiet(f, y0, ts, algorithm=algorithm, rtol=1e-8, atol=1e-10)
        found.append([sol.ys.detach(), *torch.autograd.grad(sol.ys[-1].sum(), theta), sol(t0 + 0.25).detach()])
    for here, there in zip(*found, strict=True):
        assert (here - there).abs().max() < 1e-6


def test_an_event_far_from_zero():
    sol = quiet(
        decay,
        torch.ones(1, dtype=DOUBLE),
        [FAR, FAR + 2.0],
        rtol=1e-8,
        atol=1e-10,
        events=pynode.Event(lambda t, y: y[0] - 0.5, terminal=True),
    )
    assert abs(sol.ts[-1].item() - FAR - math.log(2.0)) < 2.4e-7 + 1e-7


@pytest.mark.parametrize(
    ("dtype", "t0", "rtol", "apart"), [(torch.float32, 1e9, 1e-5, "64"), (DOUBLE, 1e9, 1e-9, "1.19e-07")]
)
@pytest.mark.parametrize("batching", ["joint", "independent"])
def test_rounded_times_are_told_of(dtype, t0, rtol, apart, batching):
    y0 = torch.ones(2, 1, dtype=dtype)
    with pytest.warns(AccuracyWarning, match=f"{apart} apart") as caught:
        pynode.solve(pulse, y0, [t0, t0 + 1.0], rtol=rtol, atol=rtol, batching=batching)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert ("Solve in float64" in str(caught[0].message)) == (dtype == torch.float32)


def test_the_warning_is_right_about_its_size():
    # By the largest that it says, and within a factor of 100 of it: half a spacing everywhere is the worst case.
    y0, rtol = torch.ones(1), 1e-5
    with pytest.warns(AccuracyWarning) as caught:
        sol = pynode.solve(lambda t, y: torch.cos(t - 1e5) * y, y0, [1e5, 1e5 + 1.0], rtol=rtol, atol=0.0)
    said = float(str(caught[0].message).split("by up to ")[1].split(" times")[0])
    off = abs(sol.ys[-1].item() / math.exp(math.sin(1.0)) - 1.0) / rtol
    assert said / 100 < off < said


def test_fixed_steps_are_told_too():
    with pytest.warns(AccuracyWarning, match="of its size"):
        pynode.solve(pulse, torch.ones(1), [FAR, FAR + 1.0], algorithm=pynode.RK4(steps=10))


def test_what_does_not_depend_on_time_is_not_warned_of():
    sol = quiet(decay, torch.ones(1), [FAR, FAR + 1.0])
    assert abs(sol.ys[-1].item() - math.exp(-1.0)) < 1e-4
    quiet(pulse, torch.ones(1, dtype=DOUBLE), [FAR, FAR + 1.0], rtol=1e-5)
    quiet(lambda t, y: 1e-5 * torch.cos(t) * y, torch.ones(1), [0.0, 1e5], algorithm=pynode.RK4(steps=9))


def test_the_evaluations_of_the_check_are_counted():
    seen = []

    def f(t, y):
        seen.append(t)
        return -y

    sol = quiet(f, torch.ones(1), [FAR, FAR + 1.0])
    near = quiet(decay, torch.ones(1), [0.0, 1.0])
    with torch.no_grad():
        bare = pynode.solve(f, torch.ones(1), [FAR, FAR + 1.0])
    assert bare.stats.forward.nfe == near.stats.forward.nfe + 6
    assert sol.stats.forward.nfe + bare.stats.forward.nfe == len(seen)


def test_times_that_float32_does_not_hold():
    with pytest.raises(InputError, match=r"t reaches 1e\+300.*solve in float64"):
        pynode.solve(decay, torch.ones(1), [0.0, 1e300])
    with pytest.raises(InputError, match=r"t reaches 1e\+300"):
        pynode.solve(decay, torch.ones(2, 1), [0.0, 1e300], batching="independent")
    with pytest.raises(InputError, match=r"t reaches 1e\+300"):
        pynode.solve(decay, torch.ones(1), [1e300, 0.0], running_cost=lambda t, y: y.sum())


@pytest.mark.parametrize("rtol", [1e-8, 1e-12, 0.0])
@pytest.mark.parametrize("batching", ["joint", "independent"])
def test_a_tolerance_below_the_rounding_of_float32(rtol, batching):
    with pytest.raises(InputError, match=r"less than torch.float32 can hold.*or solve in float64"):
        pynode.solve(decay, torch.ones(2, 1), [0.0, 1.0], rtol=rtol, atol=0.0, batching=batching)


@pytest.mark.parametrize("compile", [False, "solve"])
def test_a_tolerance_that_the_growing_state_outruns(compile):
    # 1e-6 is the rounding of float32 at 17; the state grows to 2000.
    def f(t, y):
        return y * (9 * torch.cos(3 * t) + 1)

    with pytest.raises(SolveError, match=r"tolerance of a component there, 1e-06, is below what torch.float32 holds"):
        pynode.solve(f, torch.ones(2), [0.0, 20.0], rtol=0.0, atol=1e-6, max_steps=2000, compile=compile)
    sol = pynode.solve(f, torch.ones(2, dtype=DOUBLE), [0.0, 20.0], rtol=0.0, atol=1e-6, max_steps=2000, throw=False)
    assert "is below what" not in sol.message


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_subnormal_states_are_told_of(dtype):
    tiny = torch.finfo(dtype).tiny
    y0 = torch.tensor([1.0, tiny / 4], dtype=dtype)
    with pytest.warns(AccuracyWarning, match="1 of the 2 components of y0.*smallest normal") as caught:
        sol = pynode.solve(decay, y0, [0.0, 1.0], rtol=1e-5, atol=0.0)
    assert len(caught) == 1
    # What is promised instead: an error of the order of the smallest normal number.
    assert abs(sol.ys[-1, 1].item() - tiny / 4 * math.exp(-1.0)) < tiny
    assert abs(sol.ys[-1, 0].item() / math.exp(-1.0) - 1.0) < 1e-4
    quiet(decay, y0, [0.0, 1.0], rtol=1e-5, atol=1e-9)
    quiet(decay, torch.tensor([1.0, 0.0], dtype=dtype), [0.0, 1.0], rtol=1e-5, atol=0.0)


def test_flushed_subnormals_change_nothing_that_counts():
    y0 = torch.tensor([1.0, 1e-320], dtype=DOUBLE)
    plain = quiet(decay, y0, [0.0, 2.0], rtol=1e-8, atol=1e-10)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        flushed = quiet(decay, y0, [0.0, 2.0], rtol=1e-8, atol=1e-10)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(plain.ys[:, 0], flushed.ys[:, 0])
    assert flushed.ys[-1, 1].abs() < 1e-300


def test_decay_through_the_subnormal_numbers_ends():
    sol = quiet(decay, torch.ones(2, dtype=DOUBLE), [0.0, 800.0], rtol=1e-6, atol=0.0)
    assert 0.0 <= sol.ys[-1].max() < 10 * torch.finfo(DOUBLE).tiny
