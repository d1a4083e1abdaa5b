"""Events under independent stepping: every row ends at its own, as if it were solved alone."""

from __future__ import annotations

import math

import pytest
import torch
from test_independent import alone, rows, solve, vanderpol

import pynode
from pynode import Event, PerSample, ReturnCode

F64 = torch.float64
NAN = float("nan")
#: With first-same-as-last stages, without, and with extra stages for dense output.
KINDS = ("Tsit5", "Fehlberg2", "Vern7")
#: Forward and backward rows, and one of zero length.
TIMES = torch.tensor(
    [[0.0, 1.0, 2.0, 8.0], [1.0, 0.2, -1.5, -6.0], [0.0, 3.0, 4.0, 4.5], [1.0, 1.0, 1.0, 1.0], [2.0, 2.5, 4.0, 9.0]],
    dtype=F64,
)


class Model(torch.nn.Module):
    """A field, a condition and an effect, all of which have parameters that rows share and arguments of each row."""

    def __init__(self) -> None:
        super().__init__()
        self.strength = torch.nn.Parameter(torch.tensor([0.9, 1.2], dtype=F64))
        self.level = torch.nn.Parameter(torch.tensor([1.1, -1.3], dtype=F64))

    def forward(self, t, y, mu, height):
        return vanderpol(t, y, mu) * self.strength

    def condition(self, t, y, mu, height):
        return y * (1.0 + 0.1 * torch.sin(t)) - height - self.level

    def effect(self, t, y, mu, height):
        return y * (1.0 + mu) + self.level * t


def inputs() -> tuple[torch.Tensor, ...]:
    y0, mu = rows()
    height = torch.tensor([[0.1], [0.0], [9.0], [0.0], [-2.0]], dtype=F64)  # the third row never gets there
    return tuple(x.requires_grad_() for x in (y0, mu, height, TIMES.clone()))


def together(model, given, **options):
    y0, mu, height, t = given
    return solve(model, y0, t, PerSample(mu), PerSample(height), **options)


def loss_of(sol, weights):
    """Of all that there is."""
    first = sol.events[0]
    parts = [first.t, first.before, first.after, sol.ys]
    total = torch.zeros((), dtype=F64)
    for part, weight in zip(parts, weights, strict=True):
        total = total + torch.where(part.isnan(), 0.0, part * weight).sum()
    return total


def weights():
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(*shape, dtype=F64, generator=generator) for shape in ((5,), (5, 2), (5, 2), (4, 5, 2))]


@pytest.mark.parametrize("sensealg", [pynode.CheckpointedAdjoint(), pynode.DirectAdjoint()], ids=lambda s: s.name)
@pytest.mark.parametrize("name", KINDS)
def test_events_states_and_gradients_are_those_of_a_loop_of_single_solves(name, sensealg):
    """The same steps up to rounding, the same decisions of the search, the same gradients of everything."""
    options = {"algorithm": name, "rtol": 1e-5, "atol": 1e-7}
    model, given, weight = Model(), inputs(), weights()
    y0, mu, height, t = given
    event = Event(model.condition, effect=model.effect)
    sol = together(model, given, events=event, sensealg=sensealg, **options)
    (first,) = sol.events
    found = torch.autograd.grad(loss_of(sol, weight), [*given, *model.parameters()])
    total = torch.zeros((), dtype=F64)
    components = set()
    for b in range(5):
        if b == 3:
            assert first.event[b] == -1
            total = total + (y0[b] * weight[3][:, b]).sum()
            continue
        one = alone(model, y0[b], t[b], mu[b], height[b], events=event, sensealg=sensealg, **options)
        assert sol.retcodes[b] is one.retcode
        assert sol.span[1][b].item() == pytest.approx(one.span[1], abs=1e-10)
        count = len(one.ts)
        if one.events:
            (fired,) = one.events
            count -= 1  # the event's own entry
            assert first.t[b].item() == pytest.approx(fired.t.item(), abs=1e-10)
            assert (first.event[b], first.component[b]) == (fired.event, fired.component)
            components.add(fired.component)
            torch.testing.assert_close(first.before[b], fired.before, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(first.after[b], fired.after, rtol=1e-9, atol=1e-9)
            total = total + fired.t * weight[0][b] + fired.before @ weight[1][b] + fired.after @ weight[2][b]
        else:
            assert first.event[b] == first.component[b] == -1
            assert all(torch.isnan(x[b]).all() for x in (first.t, first.before, first.after))
        torch.testing.assert_close(sol.ys[:count, b], one.ys[:count], rtol=1e-9, atol=1e-9)
        assert torch.isnan(sol.ys[count:, b]).all()
        total = total + (one.ys[:count] * weight[3][:count, b]).sum()
        for what in ("accepted", "rejected"):
            # A single solve counts the step that holds its event, too.
            assert int(getattr(sol.row_stats, what)[b]) == getattr(one.stats.forward, what)
    assert components == {0, 1}
    assert [code is ReturnCode.Terminated for code in sol.retcodes] == [True, True, False, False, True]
    assert sol.retcode is ReturnCode.Success
    expected = torch.autograd.grad(total, [*given, *model.parameters()])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)
        assert one.abs().max() > 0


def test_gradients_against_finite_differences():
    """At a tolerance of 1e-11 times and states are smooth to about 1e-10, so that central differences over 1e-4 are
    right to 1e-6 (their own error is 1e-8 times a third derivative)."""
    model, given, weight = Model(), inputs(), weights()
    options = {
        "rtol": 1e-11,
        "atol": 1e-11,
        "algorithm": "Vern7",
        "events": Event(model.condition, effect=model.effect),
    }
    found = torch.autograd.grad(loss_of(together(model, given, **options), weight), [*given, *model.parameters()])
    delta = 1e-4
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor, gradient in zip((*given, *model.parameters()), found, strict=True):
            direction = torch.rand(tensor.shape, dtype=F64, generator=generator) + 0.5
            if tensor is given[3]:
                direction[3] = 0.0  # the row of zero length stays one
            kept, values = tensor.clone(), []
            for step in (delta, -delta):
                tensor.copy_(kept + step * direction)
                values.append(loss_of(together(model, given, **options), weight).item())
            tensor.copy_(kept)
            expected = (values[0] - values[1]) / 2 / delta
            assert (gradient * direction).sum().item() == pytest.approx(expected, rel=1e-6, abs=5e-6)


def ball(t, y, gravity):
    return torch.stack([y[:, 1], -gravity.expand(len(y))], dim=1)


def ground(t, y, gravity):
    return y[:, 0]


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_first_impacts_of_balls_against_the_closed_form(dtype):
    """From height h at rest the ground is met at sqrt(2 h / g), at speed sqrt(2 g h)."""
    heights = torch.linspace(0.1, 3.0, 50, dtype=dtype, requires_grad=True)
    gravity = torch.tensor(9.81, dtype=dtype, requires_grad=True)
    y0 = torch.stack([heights, torch.zeros_like(heights)], dim=1)
    sol = solve(ball, y0, torch.tensor([0.0, 0.5]), gravity, events=Event(ground, direction=-1))
    (impact,) = sol.events
    exact = torch.sqrt(2 * heights / gravity)
    lands = exact.detach() < 0.5
    assert 10 < int(lands.sum()) < 40
    # Every method follows a parabola to rounding.
    eps = 50 * torch.finfo(dtype).eps
    assert impact.t.dtype == F64
    assert torch.equal(impact.t.isfinite(), lands)
    assert [code is ReturnCode.Terminated for code in sol.retcodes] == lands.tolist()
    torch.testing.assert_close(impact.t[lands].to(dtype), exact[lands], rtol=eps, atol=eps)
    speed = torch.sqrt(2 * gravity * heights)
    torch.testing.assert_close(impact.before[lands, 1], -speed[lands], rtol=eps, atol=eps)
    for found, closed in ((impact.t[lands].to(dtype), exact[lands]), (impact.before[lands, 1], -speed[lands])):
        one = torch.autograd.grad(found.sum(), [heights, gravity], retain_graph=True)
        other = torch.autograd.grad(closed.sum(), [heights, gravity], retain_graph=True)
        torch.testing.assert_close(one, other, rtol=20 * eps, atol=20 * eps)


def rise(t, y):
    return torch.ones_like(y)


@pytest.mark.parametrize(("direction", "expected"), [(0, [0.5, 0.5]), (1, [1.5, 0.5]), (-1, [0.5, 1.5])])
def test_directions_count_along_each_row(direction, expected):
    """cos(pi t) falls through zero at 0.5 and rises at 1.5; its negative the other way. A backward row passes them as
    a forward one does, as both are even in t."""
    sign = torch.tensor([[1.0], [-1.0]], dtype=F64)

    def turn(t, y, s):
        return math.pi * torch.stack([-y[:, 1], y[:, 0]], dim=1)

    y0 = torch.cat([sign, torch.zeros_like(sign)], dim=1)
    for way in (1.0, -1.0):
        t = torch.tensor([0.0, 2.0 * way], dtype=F64)
        event = Event(lambda t, y, s: y[:, 0], direction=direction)
        sol = solve(turn, y0, t, PerSample(sign), events=event, rtol=1e-10, atol=1e-12)
        assert (way * sol.events[0].t).tolist() == pytest.approx(expected, abs=1e-8)
        assert sol.retcode is ReturnCode.Terminated


def test_rows_that_start_at_a_zero():
    """y = v t - t^2 starts at zero; it is there again at v, in the first step or behind it. The last but one does not
    start at zero; the last stays there, and never fires."""

    def f(t, y, rate):
        return torch.stack([y[:, 1], rate], dim=1)

    speed = torch.tensor([1.0, 1e-6, -1.0, 0.5, 0.0], dtype=F64)
    rate = torch.tensor([-2.0, -2.0, 2.0, -2.0, 0.0], dtype=F64)
    y0 = torch.stack([torch.tensor([0.0, 0.0, 0.0, 0.5, 0.0], dtype=F64), speed], dim=1)
    options = {"events": Event(lambda t, y, rate: y[:, 0]), "dt0": 0.7}
    sol = solve(f, y0, torch.tensor([0.0, 3.0], dtype=F64), PerSample(rate), **options)
    assert sol.events[0].t.tolist() == pytest.approx([1.0, 1e-6, 1.0, 1.0, NAN], rel=1e-9, nan_ok=True)
    for b in range(5):
        one = alone(
            lambda t, y, b=b: torch.stack([y[1], rate[b]]), y0[b], [0.0, 3.0], events=Event(lambda t, y: y[0]), dt0=0.7
        )
        assert sol.retcodes[b] is one.retcode


def test_several_events_the_first_of_which_ends_its_row():
    """y = t from 0. One event at the row's own level, another at time 0.5, two in the last step."""
    level = torch.tensor([0.2, 0.9, 0.5 + 1e-9, 2.0], dtype=F64, requires_grad=True)
    events = [Event(lambda t, y, level: y - level), Event(lambda t, y, level: torch.stack([t - 3.0, t - 0.5], dim=1))]
    y0, t = torch.zeros(4, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    sol = solve(lambda t, y, level: torch.ones_like(y), y0, t, PerSample(level), events=events, dt0=1.0)
    (fired,) = sol.events
    assert fired.event.tolist() == [0, 1, 1, 1]
    assert fired.component.tolist() == [0, 1, 1, 1]
    assert fired.t.tolist() == pytest.approx([0.2, 0.5, 0.5, 0.5], abs=1e-14)
    (found,) = torch.autograd.grad(fired.t.sum(), level)
    assert found.tolist() == pytest.approx([1.0, 0.0, 0.0, 0.0], abs=1e-12)


def test_two_roots_in_one_step_and_a_coarse_bracket():
    def condition(t, y):
        return (y - 0.45) * (y - 0.55)  # positive at both ends of the step

    y0, t = torch.tensor([0.0, 0.1], dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    sol = solve(rise, y0, t, events=Event(condition), dt0=1.0)
    assert sol.events[0].t.tolist() == pytest.approx([0.45, 0.35], abs=1e-14)
    blind = solve(rise, y0, t, events=Event(condition, interp_points=0), dt0=1.0)
    assert blind.events[0].t.isnan().all()
    coarse = solve(rise, y0, t, events=Event(condition, root_tol=1e-3), dt0=1.0)
    # No farther from the root than the bracket is wide.
    assert coarse.events[0].t.tolist() == pytest.approx([0.45, 0.35], abs=1e-3)


def test_a_row_that_fails_before_its_event():
    """dy/dt = k y^2 from 1 is 1 / (1 - k t), infinite at 1 / k; 3 is reached at 2 / (3 k)."""
    k = torch.tensor([[0.1], [2.0], [1.0], [2.0]], dtype=F64, requires_grad=True)
    level = torch.tensor([3.0, 1e30, 3.0, 3.0], dtype=F64)
    t = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=F64)
    event = Event(lambda t, y, k, level: y[:, 0] - level)
    sol = solve(
        lambda t, y, k, level: k * y**2,
        torch.ones(4, 1, dtype=F64),
        t,
        PerSample(k),
        PerSample(level),
        events=event,
        throw=False,
    )
    assert [code.successful for code in sol.retcodes] == [True, False, True, True]
    assert sol.retcode is sol.retcodes[1]
    assert sol.events[0].t.tolist() == pytest.approx([NAN, NAN, 2 / 3, 1 / 3], rel=1e-5, nan_ok=True)
    assert "1 of 4 rows failed" in sol.message
    (found,) = torch.autograd.grad(sol.events[0].t.nansum(), k, retain_graph=True)
    torch.testing.assert_close(found[:, 0], torch.tensor([0.0, 0.0, -2 / 3, -1 / 6], dtype=F64), rtol=1e-4, atol=1e-4)
    with pytest.raises(pynode.SolveError, match="1 of 4 rows failed"):
        solve(
            lambda t, y, k, level: k * y**2,
            torch.ones(4, 1, dtype=F64),
            t,
            PerSample(k),
            PerSample(level),
            events=event,
        )


def test_conditions_see_the_rows_that_are_still_running():
    seen = []

    def f(t, y, level):
        return torch.ones_like(y)

    def condition(t, y, level):
        seen.append((len(y), level.shape[0], tuple(t.shape)))
        return y[:, 0] - level[:, 0]

    level = torch.tensor([[0.1], [0.5], [0.9], [7.0]], dtype=F64)
    sol = solve(f, torch.zeros(4, 2, dtype=F64), [0.0, 1.0], PerSample(level), events=Event(condition), dtmax=0.05)
    assert all(rows == parts and shape == (rows, 1) for rows, parts, shape in seen)
    assert {rows for rows, _, _ in seen} == {1, 2, 3, 4}
    # What a row costs ends with it.
    assert sol.row_stats.accepted.tolist() == sorted(sol.row_stats.accepted.tolist())


def test_trees_and_complex_states():
    """|z| grows as exp(t): it reaches 2 at log 2, whatever its phase."""
    y0 = {
        "z": torch.tensor([[1.0 + 0j], [0.5j]], dtype=torch.complex128, requires_grad=True),
        "n": torch.zeros(2, dtype=F64),
    }

    def f(t, y):
        return {"z": (1 + 2j) * y["z"], "n": torch.ones_like(y["n"]) * t}

    event = Event(lambda t, y: y["z"][:, 0].abs() - 2.0, effect=lambda t, y: {"z": 0 * y["z"], "n": t * y["n"]})
    sol = solve(f, y0, torch.tensor([0.0, 3.0], dtype=F64), events=event, rtol=1e-9, atol=1e-9)
    (fired,) = sol.events
    exact = torch.log(2.0 / y0["z"].abs()[:, 0])
    torch.testing.assert_close(fired.t, exact, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(fired.after["n"], fired.t**3 / 2, rtol=1e-7, atol=1e-7)
    assert not fired.after["z"].any()
    found = torch.autograd.grad(fired.t.sum(), y0["z"])
    torch.testing.assert_close(found, torch.autograd.grad(exact.sum(), y0["z"]), rtol=1e-7, atol=1e-7)


def test_save_times_and_queries_behind_an_event_are_nan():
    level = torch.tensor([0.5, 0.75], dtype=F64)
    y0 = torch.zeros(2, dtype=F64, requires_grad=True)
    event = Event(lambda t, y, level: y - level)
    options = {"saveat": [0.25, 0.5, 0.6, 1.0], "events": event, "dt0": 1.0}
    sol = solve(lambda t, y, level: torch.ones_like(y), y0, [0.0, 1.0], PerSample(level), **options)
    assert sol.ys[:, 0].tolist() == pytest.approx([0.25, 0.5, NAN, NAN], nan_ok=True)
    assert sol.ys[:, 1].tolist() == pytest.approx([0.25, 0.5, 0.6, NAN], nan_ok=True)
    assert sol(0.7).tolist() == pytest.approx([NAN, 0.7], nan_ok=True)
    assert sol.span[1].tolist() == pytest.approx(level.tolist(), abs=1e-14)
    # At the time reached itself there is a state, and its gradient.
    at = sol(sol.span[1][:, None])
    assert at[0].tolist() == pytest.approx(level.tolist())
    torch.testing.assert_close(torch.autograd.grad(at.sum(), y0)[0], torch.ones(2, dtype=F64))
    with pytest.raises(pynode.GradientError, match="row 0 at save time 2, which is NaN because the row failed or met"):
        sol.ys[2].sum().backward()


def test_the_gradient_of_the_start():
    """y = t - t0 from 0: the level is met at level + t0, by each row from its own start."""
    t0 = torch.tensor([0.1, -0.3], dtype=F64, requires_grad=True)
    t = torch.stack([t0, torch.full((2,), 5.0, dtype=F64)], dim=1)
    event = Event(lambda t, y: y - 0.7)
    sol = solve(rise, torch.zeros(2, dtype=F64), t, events=event)
    assert sol.events[0].t.tolist() == pytest.approx([0.8, 0.4], abs=1e-14)
    (found,) = torch.autograd.grad(sol.events[0].t[0], t0)
    assert found.tolist() == pytest.approx([1.0, 0.0], abs=1e-12)


def test_only_the_condition_has_a_parameter_and_no_grad():
    level = torch.tensor(0.5, dtype=F64, requires_grad=True)
    event = Event(lambda t, y: y - level)
    sol = solve(lambda t, y: 2 * torch.ones_like(y), torch.zeros(2, dtype=F64), [0.0, 1.0], events=event)
    assert not sol.ys.requires_grad
    assert torch.autograd.grad(sol.events[0].t.sum(), level)[0].item() == pytest.approx(1.0)
    with torch.no_grad():
        sol = solve(lambda t, y: 2 * torch.ones_like(y), torch.zeros(2, dtype=F64), [0.0, 1.0], events=event)
    assert not sol.events[0].t.requires_grad


def test_a_grazing_event_has_no_gradient_but_its_neighbours_do():
    y0 = torch.zeros(2, dtype=F64, requires_grad=True)
    power = torch.tensor([3, 1])
    event = Event(lambda t, y, power: (y - 0.5) ** power)
    sol = solve(lambda t, y, power: torch.ones_like(y), y0, [0.0, 1.0], PerSample(power), events=event)
    # The cube's root is known to a third of the digits.
    assert sol.events[0].t.tolist() == pytest.approx([0.5, 0.5], abs=1e-5)
    (found,) = torch.autograd.grad(sol.events[0].t[1], y0, retain_graph=True)
    assert found.tolist() == pytest.approx([0.0, -1.0])
    with pytest.raises(pynode.GradientError, match=r"events\[0\] grazes zero in row 0 .*simple root"):
        sol.events[0].t.sum().backward()
    with pytest.raises(pynode.GradientError, match="differentiated again"):
        sol = solve(lambda t, y, power: 1 + y, y0, [0.0, 1.0], PerSample(power), events=event)
        torch.autograd.grad(sol.events[0].t[1], y0, create_graph=True)


def test_a_field_that_changed_is_noticed():
    factor = [1.0]
    y0 = torch.zeros(2, dtype=F64, requires_grad=True)
    event = Event(lambda t, y: y - 0.5)
    sol = solve(lambda t, y: factor[0] * torch.exp(-y), y0, [0.0, 1.0], events=event)
    factor[0] = 1.1
    with pytest.raises(pynode.GradientError, match="other values than before"):
        sol.events[0].t.sum().backward()


def test_rows_that_never_fire_step_as_without_events():
    (y0, mu), t = rows(), TIMES.clamp(min=-1.0)[:, [0, 2]]
    bare = solve(vanderpol, y0, t, PerSample(mu))
    sol = solve(vanderpol, y0, t, PerSample(mu), events=Event(lambda t, y, mu: y[:, 0] - 100.0))
    assert bare.events == ()
    assert torch.equal(sol.ys, bare.ys)
    assert torch.equal(sol.row_stats.nfe, bare.row_stats.nfe)
    assert sol.retcodes == [ReturnCode.Success] * 5
    empty = solve(vanderpol, y0[:0], [0.0, 1.0], PerSample(mu[:0]), events=Event(lambda t, y, mu: y[:, 0]))
    assert empty.events[0].t.shape == (0,)
