"""Controls: what interpolates what, against scipy; missing values; who sees the future."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicHermiteSpline, CubicSpline

import pynode
from pynode.controls import (
    HermiteControl,
    LinearControl,
    NaturalCubicControl,
    RectilinearControl,
    on_shared_times,
    with_counts,
    with_time,
)

SMOOTHING = [LinearControl, HermiteControl, NaturalCubicControl]
EVERY = [*SMOOTHING, RectilinearControl]
EPS = torch.finfo(torch.float64).eps
NAN = math.nan
# Intervals are at least a half and values about one, so that no coefficient is much larger than 10 and a result is a
# sum of four terms of at most a few hundred: rounding stays below this.
ROUNDING = 1e4 * EPS


def series(seed: int = 0, length: int = 9, missing: float = 0.4, dtype=torch.float64):
    """Times half to one and a half apart; values about one."""
    generator = torch.Generator().manual_seed(seed)
    ts = (0.5 + torch.rand(length, generator=generator, dtype=torch.float64)).cumsum(0)
    x = torch.randn(2, length, 3, generator=generator, dtype=torch.float64)
    x[torch.rand(x.shape, generator=generator) < missing] = NAN
    return ts.to(dtype), x.to(dtype)


def dense(ts, count=400):
    return torch.linspace(float(ts[0]), float(ts[-1]), count, dtype=ts.dtype).clamp(ts[0], ts[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("make", SMOOTHING)
def test_the_path_passes_through_the_data(make, dtype) -> None:
    for seed in range(5):
        ts, x = series(seed, dtype=dtype)
        values = make(ts, x).evaluate(ts)
        seen = ~x.isnan()
        bound = ROUNDING / EPS * torch.finfo(dtype).eps
        torch.testing.assert_close(values[seen], x[seen], rtol=0, atol=bound)
        assert not values.isnan().any()


@pytest.mark.parametrize("make", EVERY)
def test_the_derivative_is_that_of_the_path(make) -> None:
    ts, x = series()
    path = make(ts, x)
    h = 1e-4
    t = dense(path.knots)[1:-1]
    t = t[(t.unsqueeze(1) - path.knots).abs().amin(1) > 2 * h]
    assert len(t) > 300
    difference = (path.evaluate(t + h) - path.evaluate(t - h)) / (2 * h)
    # The central difference of a cubic is off by h**2 times its leading coefficient, and by rounding over h.
    bound = h**2 * path.coefficients.abs().max().item() + ROUNDING / h
    assert (path.derivative(t) - difference).abs().max() < bound < 1e-6
    torch.testing.assert_close(path.derivative(t[7]), path.derivative(t)[:, 7], rtol=0, atol=0)


def splines(make, ts, x):
    """scipy's interpolant of one scalar series, by its observed values."""
    seen = ~x.isnan()
    t, v = ts[seen].numpy(), x[seen].numpy()
    if make is NaturalCubicControl:
        return CubicSpline(t, v, bc_type="natural")
    slopes = np.diff(v) / np.diff(t)
    if make is HermiteControl:
        return CubicHermiteSpline(t, v, np.concatenate([slopes[:1], slopes]))
    return lambda q, order=0: np.interp(q, t, v) if order == 0 else None


@pytest.mark.parametrize("make", SMOOTHING)
def test_each_channel_is_scipys_interpolant_through_its_observed_values(make) -> None:
    compared = 0
    for seed in range(4):
        ts, x = series(seed, length=12)
        path = make(ts, x)
        for b in range(2):
            for c in range(3):
                own = ts[~x[b, :, c].isnan()]
                if len(own) < 3:
                    continue
                q = dense(own)
                expected = splines(make, ts, x[b, :, c])
                np.testing.assert_allclose(path.evaluate(q)[b, :, c], expected(q.numpy()), rtol=0, atol=ROUNDING)
                if make is not LinearControl:
                    q = q[1:-1]
                    np.testing.assert_allclose(path.derivative(q)[b, :, c], expected(q, 1), rtol=0, atol=ROUNDING)
                compared += 1
    assert compared > 20


@pytest.mark.parametrize("make", SMOOTHING)
def test_missing_rows_are_as_if_absent(make) -> None:
    ts, x = series(missing=0.0)
    gone = torch.tensor([2, 5, 6])
    kept = torch.tensor([i for i in range(len(ts)) if i not in gone])
    with_gaps = x.index_fill(1, gone, NAN)
    q = dense(ts)
    torch.testing.assert_close(
        make(ts, with_gaps).evaluate(q), make(ts[kept], x[:, kept]).evaluate(q), rtol=0, atol=ROUNDING
    )
    assert (make(ts, x).evaluate(q) - make(ts, with_gaps).evaluate(q)).abs().max() > 0.1


@pytest.mark.parametrize("make", SMOOTHING)
def test_channels_are_constant_outside_their_observations_and_zero_without_any(make) -> None:
    ts, x = series(missing=0.0)
    x[0, :3, 0] = NAN
    x[0, 6:, 1] = NAN
    x[1, :, 2] = NAN
    x[1, :4, 0] = x[1, 5:, 0] = NAN
    path = make(ts, x)
    torch.testing.assert_close(path.evaluate(ts[:4])[0, :, 0], x[0, 3, 0].expand(4), rtol=0, atol=ROUNDING)
    torch.testing.assert_close(path.evaluate(ts[5:])[0, :, 1], x[0, 5, 1].expand(4), rtol=0, atol=ROUNDING)
    assert path.evaluate(dense(ts))[1, :, 2].abs().max() == 0
    assert torch.equal(path.evaluate(dense(ts))[1, :, 0], x[1, 4, 0].expand(400))
    # The derivative jumps where a channel starts or ends to move, and there only (at every knot if it is linear).
    inner = ts[1:-1]
    jump = (path.derivative(inner) - path.derivative(inner - 1e-7)).abs().amax((0, 2))
    assert path.jumps == inner[jump > 1e-3].tolist()
    assert path.jumps == (inner.tolist() if make is LinearControl else [float(ts[3]), float(ts[5])])


def test_hermite_slopes_are_backward_differences() -> None:
    ts, x = series(missing=0.0)
    slopes = x.diff(dim=1) / ts.diff().unsqueeze(-1)
    found = HermiteControl(ts, x).derivative(ts)
    torch.testing.assert_close(found[:, 1:], slopes, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(found[:, 0], slopes[:, 0], rtol=0, atol=ROUNDING)


def test_natural_splines_have_no_second_derivative_at_the_ends() -> None:
    ts, x = series(missing=0.0)
    c = NaturalCubicControl(ts, x).coefficients
    assert c[:, 0, 2].abs().max() < ROUNDING
    end = 2 * c[:, -1, 2] + 6 * c[:, -1, 3] * (ts[-1] - ts[-2])
    assert end.abs().max() < ROUNDING


@pytest.mark.parametrize("make", [LinearControl, HermiteControl])
def test_without_gaps_the_path_up_to_a_knot_ignores_later_data(make) -> None:
    ts, x = series(missing=0.0)
    for i in range(1, len(ts)):
        changed = x.clone()
        changed[:, i + 1 :] += 1.0
        q = dense(ts)[dense(ts) <= ts[i]]
        assert torch.equal(make(ts, x).evaluate(q), make(ts, changed).evaluate(q))
        assert torch.equal(make(ts, x).derivative(q)[:, :-1], make(ts, changed).derivative(q)[:, :-1])


def test_a_natural_spline_sees_the_future() -> None:
    ts, x = series(missing=0.0)
    changed = x.clone()
    changed[:, 4:] += 1.0
    q = dense(ts)[dense(ts) <= ts[3]]
    assert (NaturalCubicControl(ts, x).evaluate(q) - NaturalCubicControl(ts, changed).evaluate(q)).abs().max() > 1e-2


def test_a_hermite_path_sees_the_future_across_a_gap_and_a_rectilinear_one_does_not() -> None:
    ts, x = series(missing=0.0)
    x[:, 4] = NAN
    changed = x.clone()
    changed[:, 5:] += 1.0
    before = dense(ts)[dense(ts) <= ts[4]]
    hermite = [HermiteControl(ts, v).evaluate(before) for v in (x, changed)]
    assert (hermite[0] - hermite[1]).abs().max() > 0.1
    for i in range(len(ts) - 1):
        changed = x.clone()
        changed[:, i + 1 :] += 1.0
        paths = [RectilinearControl(ts, v) for v in (x, changed)]
        # Up to just before row i + 1, which is when time reaches it, not yet its values.
        s = torch.linspace(0, 2 * i + 1, 50, dtype=ts.dtype)
        assert torch.equal(paths[0].evaluate(s), paths[1].evaluate(s))
        late = ts[i] + 0.999 * (ts[i + 1] - ts[i])
        assert 2 * i < paths[0].parameter(late) < 2 * i + 1


def test_a_rectilinear_path_moves_in_time_then_in_values() -> None:
    ts = torch.tensor([0.0, 1.0, 3.0, 4.0])
    x = torch.tensor([[[NAN, 1.0], [2.0, NAN], [5.0, 7.0], [NAN, NAN]]])
    path = RectilinearControl(ts, x)
    corners = [[0, 0, 1], [1, 0, 1], [1, 2, 1], [3, 2, 1], [3, 5, 7], [3, 5, 7], [3, 5, 7]]  # the last row has no value
    assert path.evaluate(path.knots)[0].tolist() == corners
    assert path.observed.tolist() == [0, 2, 4, 6]
    assert path.evaluate(2.5)[0].tolist() == [2, 2, 1]
    assert path.jumps == [1, 2, 3, 4, 5]
    assert path.parameter(torch.tensor([0.0, 0.5, 1.0, 2.0, 4.0])).tolist() == [0, 0.5, 2, 2.5, 6]
    assert torch.equal(path.start, torch.tensor([[0.0, 0.0, 1.0]]))


@pytest.mark.parametrize("make", EVERY)
def test_gradients_of_the_path_reach_values_and_never_missing_ones(make) -> None:
    ts, x = series(length=6)
    x.requires_grad_()
    t = dense(make(ts, x).knots, 7)
    seen = ~x.detach().isnan()

    def path(values):
        filled = torch.full_like(x, NAN).masked_scatter(seen, values)
        return make(ts, filled).evaluate(t), make(ts, filled).derivative(t)

    assert torch.autograd.gradcheck(path, (x.detach()[seen].requires_grad_(),))
    make(ts, x).evaluate(t).sum().backward()
    assert x.grad[seen].abs().max() > 0
    assert x.grad[~seen].abs().max() == 0


def test_no_batch_and_two_batch_dimensions() -> None:
    ts, x = series()
    whole = NaturalCubicControl(ts, x)
    alone = NaturalCubicControl(ts, x[1])
    nested = NaturalCubicControl(ts, x.expand(4, 2, -1, -1))
    assert alone.evaluate(ts).shape == (9, 3)
    torch.testing.assert_close(alone.evaluate(ts), whole.evaluate(ts)[1], rtol=0, atol=0)
    torch.testing.assert_close(nested.evaluate(ts)[2], whole.evaluate(ts), rtol=0, atol=0)


def test_jumps_are_the_knots_to_the_last_bit_in_any_precision() -> None:
    ts, x = series()
    path = LinearControl(ts, x).to(torch.float32)
    assert path.coefficients.dtype == torch.float32
    assert path.jumps == path.knots[1:-1].tolist() != ts[1:-1].tolist()


def test_time_stops_with_the_sample_and_counts_go_on() -> None:
    ts = torch.tensor([0.0, 1.0, 2.5, 3.0])
    x = torch.tensor(
        [[[1.0, NAN], [NAN, NAN], [NAN, 4.0], [NAN, NAN]], [[NAN, NAN], [1.0, 1.0], [NAN, 2.0], [3.0, NAN]]]
    )
    time = with_time(ts, x)[..., 0]
    assert time[0, :3].tolist() == [0.0, 1.0, 2.5]
    assert time[0, 3].isnan()
    assert time[1].tolist() == ts.tolist()
    assert with_counts(x)[0, :, 2:].tolist() == [[1, 0], [1, 0], [1, 1], [1, 1]]
    assert torch.equal(with_counts(x)[..., :2].isnan(), x.isnan())


def test_shared_times_are_the_union() -> None:
    times = [torch.tensor([0.0, 2.0]), torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.5])]
    values = [torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0], [5.0]]), torch.tensor([[6.0]])]
    ts, x = on_shared_times(times, values)
    assert ts.tolist() == [0.0, 1.0, 1.5, 2.0]
    for row, own, given in zip(x, times, values, strict=True):
        assert torch.equal(row[torch.isin(ts, own)], given)
        assert row[~torch.isin(ts, own)].isnan().all()
    with pytest.raises(pynode.InputError, match=r"times\[0\] does not increase"):
        on_shared_times([torch.tensor([1.0, 1.0])], [torch.zeros(2, 1)])
    with pytest.raises(pynode.InputError, match=r"times\[1\] has shape \(2,\) and values\[1\] \(3, 1\)"):
        on_shared_times([times[0], times[0]], [values[0], torch.zeros(3, 1)])


@pytest.mark.parametrize(
    ("ts", "x", "message"),
    [
        (torch.arange(3.0), torch.zeros(2, 4, 1), r"ts has shape \(3,\) and x \(2, 4, 1\).*second last dimension"),
        (torch.tensor([0.0, 2.0, 1.0]), torch.zeros(3, 1), r"strictly increasing"),
        (torch.tensor([2.0, 1.0, 0.0]), torch.zeros(3, 1), r"ts decreases"),
        (torch.arange(3.0), torch.zeros(3, 1).double(), r"one precision"),
        (torch.arange(3), torch.zeros(3, 1), r"ts has dtype torch\.int64"),
        (torch.arange(3.0), torch.tensor([[0.0], [math.inf], [0.0]]), r"infinite"),
        (torch.arange(3.0).requires_grad_(), torch.zeros(3, 1), r"ts requires a gradient"),
        (torch.arange(1.0), torch.zeros(1, 1), r"T >= 2"),
    ],
)
@pytest.mark.parametrize("make", EVERY)
def test_bad_series(make, ts, x, message) -> None:
    with pytest.raises(pynode.InputError, match=message):
        make(ts, x)


def test_no_extrapolation() -> None:
    ts, x = series()
    with pytest.raises(pynode.InputError, match=r"between the knots"):
        LinearControl(ts, x).evaluate(ts[-1] + 1)
    with pytest.raises(pynode.InputError, match=r"times of the series"):
        RectilinearControl(ts, x).parameter(ts[0] - 1)
