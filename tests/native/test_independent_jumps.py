"""Events that do not end their rows: every row jumps at its own roots and goes on, as if it were solved alone."""

from __future__ import annotations

import pytest
import torch
from test_independent import alone, rows, solve, vanderpol
from test_independent_events import KINDS, TIMES, inputs, together

import pynode
from pynode import Event, PerSample, ReturnCode

F64 = torch.float64
NAN = float("nan")


class Model(torch.nn.Module):
    """A field, conditions and an effect, all of which have parameters that rows share and arguments of each row."""

    def __init__(self) -> None:
        super().__init__()
        self.strength = torch.nn.Parameter(torch.tensor([0.9, 1.2], dtype=F64))
        self.level = torch.nn.Parameter(torch.tensor([0.6, -0.8], dtype=F64))

    def forward(self, t, y, mu, height):
        return vanderpol(t, y, mu) * self.strength

    def condition(self, t, y, mu, height):
        return y * (1.0 + 0.1 * torch.sin(t)) - 0.1 * height - self.level

    def effect(self, t, y, mu, height):
        return y * (0.5 + 0.1 * mu) + 0.02 * self.level * torch.cos(t)

    def beat(self, t, y, mu, height):
        return torch.sin(1.5 * t) - 0.3 * self.level[1] - 0.01 * height

    def events(self):
        return [
            Event(self.condition, terminal=False, direction=1, effect=self.effect),
            Event(self.beat, terminal=False, direction=1),
            Event(lambda t, y, mu, height: t - 8.5 + 0 * height),  # ends the last row alone, before its end at 9
        ]


def loss_of(firings, states, weights):
    """``firings``: of a row, each (t, before, after), in order; ``states`` (m, n): at save times that were reached."""
    total = (states * weights[: states.numel()].view_as(states)).sum()
    for i, (t, before, after) in enumerate(firings):
        total = total + weights[i] * t + weights[i + 1] * before.sum() + weights[i + 2] * (after * after).sum()
    return total


def weights():
    return torch.randn(200, dtype=F64, generator=torch.Generator().manual_seed(3))


def firings_of(sol, row):
    """What fired in a row of a batch: (event, component), and (t, before, after)."""
    which, values = [], []
    for number, fired in enumerate(sol.events):
        if fired.event[row] < 0:
            assert all(torch.isnan(x[row]).all() for x in (fired.t, fired.before, fired.after))
            assert fired.component[row] == -1
            continue
        assert len(which) == number  # none after one that is missing
        which.append((int(fired.event[row]), int(fired.component[row])))
        values.append((fired.t[row], fired.before[row], fired.after[row]))
    return which, values


@pytest.mark.parametrize(
    ("name", "sensealg"),
    [
        *((name, pynode.CheckpointedAdjoint()) for name in KINDS[:2]),
        pytest.param(KINDS[2], pynode.CheckpointedAdjoint(), marks=pytest.mark.slow),
        *(pytest.param(name, pynode.DirectAdjoint(), marks=pytest.mark.slow) for name in KINDS),
    ],
    ids=lambda x: getattr(x, "name", x),
)
def test_jumps_states_and_gradients_are_those_of_a_loop_of_single_solves(name, sensealg):
    """The same steps up to rounding, the same decisions of the search, the same gradients of everything, whatever the
    adjoint of the rows: single solves have the default one, for which a step that an event cut short ends where it
    was put, also where that was the end of the span."""
    rtol = 1e-3 if name == "Fehlberg2" else 1e-5
    options = {"algorithm": name, "rtol": rtol, "atol": 1e-2 * rtol}
    model, given, weight = Model(), inputs(), weights()
    y0, mu, height, t = given
    events = model.events()
    sol = together(model, given, events=events, sensealg=sensealg, **options)
    parts, single = [], []
    numbers = set()
    for b in range(5):
        which, values = firings_of(sol, b)
        if b == 3:  # of zero length
            assert which == []
            assert torch.equal(sol.ys[:, b], y0[b].expand(4, 2))
            parts.append(loss_of([], sol.ys[:, b], weight))
            single.append(loss_of([], y0[b].expand(4, 2), weight))
            continue
        one = alone(model, y0[b], t[b], mu[b], height[b], events=events, **options)
        assert sol.retcodes[b] is one.retcode
        assert which == [(x.event, x.component) for x in one.events]
        numbers.add(len(which))
        expected = [(x.t, x.before, x.after) for x in one.events]
        torch.testing.assert_close(values, expected, rtol=1e-8, atol=1e-8)
        count = len(one.ts) - (one.retcode is ReturnCode.Terminated)
        torch.testing.assert_close(sol.ys[:count, b], one.ys[:count], rtol=1e-8, atol=1e-8)
        assert torch.isnan(sol.ys[count:, b]).all()
        assert sol.span[1][b].item() == pytest.approx(one.span[1], abs=1e-9)
        for what in ("accepted", "rejected"):
            assert int(getattr(sol.row_stats, what)[b]) == getattr(one.stats.forward, what)
        parts.append(loss_of(values, sol.ys[:count, b], weight))
        single.append(loss_of(expected, one.ys[:count], weight))
        # The dense output, too: within each stretch, and at the first event, where it is the state after it.
        at = torch.linspace(float(TIMES[b, 0]), one.span[1], 9, dtype=F64)[1:-1]
        at = torch.cat([at, torch.tensor([values[0][0].item()], dtype=F64)])
        every = TIMES[:, :1].expand(5, len(at)).clone()
        every[b] = at
        looked, expected = sol(every)[:, b], one(at)
        torch.testing.assert_close(looked[:-1], expected[:-1], rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(looked[-1], values[0][2], rtol=1e-12, atol=1e-12)
        parts.append((looked[:-1] * weight[: 2 * len(at) - 2].view(-1, 2)).sum())
        single.append((expected[:-1] * weight[: 2 * len(at) - 2].view(-1, 2)).sum())
        torch.testing.assert_close(sol.derivative(every)[:-1, b], one.derivative(at)[:-1], rtol=1e-5, atol=1e-5)
    assert len(numbers) > 2
    assert [code.name for code in sol.retcodes] == ["Success"] * 4 + ["Terminated"]
    found = torch.autograd.grad(sum(parts), [*given, *model.parameters()])
    expected = torch.autograd.grad(sum(single), [*given, *model.parameters()])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7 * float(other.abs().max()))
        assert one.abs().max() > 0


# A ball of every row with a restitution of its own, which is learned


def ball(t, y, gravity, restitution):
    return torch.stack([y[:, 1], -gravity.expand(len(y))], dim=1)


def bounce(t, y, gravity, restitution):
    return torch.stack([0 * y[:, 0], -restitution * y[:, 1]], dim=1)


BOUNCE = Event(lambda t, y, *args: y[:, 0], terminal=False, direction=-1, effect=bounce)


def exact_balls(height, gravity, restitution, end):
    """Times of the bounces, (bounces, B), NaN behind ``end``; height and speed at ``end``; in closed form."""
    t, speed = torch.sqrt(2 * height / gravity), restitution * torch.sqrt(2 * height * gravity)
    times, states = [], torch.stack([height - gravity * end**2 / 2, -gravity * end.expand(len(height))], dim=1)
    while bool((t < end).any()):
        times.append(torch.where(t < end, t, NAN))
        flight = end - t
        flying = torch.stack([speed * flight - gravity * flight**2 / 2, speed - gravity * flight], dim=1)
        states = torch.where((t < end)[:, None], flying, states)
        t, speed = t + 2 * speed / gravity, restitution * speed
    return torch.stack(times), states


def inputs_of_balls():
    height = torch.tensor([1.0, 0.3, 9.0, 0.2, 2.0, 0.6], dtype=F64)
    restitution = torch.tensor([0.8, 0.9, 0.7, 0.8, 0.5, 0.95], dtype=F64)
    gravity, end = torch.tensor(9.81, dtype=F64), torch.tensor(1.1, dtype=F64)
    return [x.requires_grad_() for x in (height, gravity, restitution, end)]


def balls(height, gravity, restitution, end, **options):
    y0 = torch.stack([height, torch.zeros_like(height)], dim=1)
    t = torch.stack([torch.zeros_like(end), end])
    return solve(ball, y0, t, gravity, PerSample(restitution), events=BOUNCE, **options)


@pytest.mark.parametrize("sensealg", [None, pynode.DirectAdjoint()], ids=["default", "direct"])
def test_bouncing_balls_against_their_closed_form(sensealg):
    given = inputs_of_balls()
    sol = balls(*given, sensealg=sensealg)
    times, states = exact_balls(*given)
    bounces = torch.stack([fired.t for fired in sol.events])
    # The solution is a parabola, which the methods follow to rounding; speeds near the ground amplify little of it.
    torch.testing.assert_close(bounces, times, rtol=1e-12, atol=1e-12, equal_nan=True)
    torch.testing.assert_close(sol.ys[-1], states, rtol=1e-11, atol=1e-11)
    assert {int(x) for x in (bounces == bounces).sum(0)} >= {0, 1, 2, 3}
    assert sol.retcodes == [ReturnCode.Success] * 6
    weight = torch.randn(times.shape, dtype=F64, generator=torch.Generator().manual_seed(1))
    for one, other in (
        ((bounces * weight).nansum(), (times * weight).nansum()),
        ((sol.ys[-1] ** 2).sum(), (states**2).sum()),
    ):
        found = torch.autograd.grad(one, given, retain_graph=True, materialize_grads=True)
        expected = torch.autograd.grad(other, given, retain_graph=True, materialize_grads=True)
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)


def test_restitutions_of_all_rows_are_learned_from_the_times_of_bounces():
    height, gravity, restitution, end = (x.detach() for x in inputs_of_balls())
    height, restitution = height[[1, 3]], restitution[[1, 3]]
    data = torch.stack([fired.t for fired in balls(height, gravity, restitution, end).events])[:2]
    guess = torch.tensor([0.7, 0.7], dtype=F64, requires_grad=True)
    for _ in range(3):  # Newton for each row: the second bounce is at t_1 (1 + 2 r)
        second = balls(height, gravity, guess, end).events[1].t
        (slope,) = torch.autograd.grad(second.sum(), guess)
        guess = (guess - (second - data[1]) / slope).detach().requires_grad_()
    assert guess.tolist() == pytest.approx(restitution.tolist(), rel=1e-10)


def test_balls_that_come_to_rest_in_some_rows():
    """Bounces at t_1 (1 + 2 r + 2 r^2 + ...) gather at t_1 (1 + r) / (1 - r): 3 t_1 for r = 1/2. The others go on."""
    height, restitution = torch.ones(3, dtype=F64), torch.tensor([0.5, 1.0, 1.0], dtype=F64)
    y0 = torch.stack([height, 0 * height], dim=1)
    options = {"saveat": torch.tensor([0.5, 10.0], dtype=F64), "events": BOUNCE}
    args = (torch.tensor(2.0, dtype=F64), PerSample(restitution))
    with pytest.raises(
        pynode.SolveError, match=r"1 of 3 rows failed .*row 0 .*events\[0\] fired.*one more channel"
    ) as e:
        solve(ball, y0, [0.0, 10.0], *args, **options)
    assert e.value.t == pytest.approx(3.0, abs=1e-6)
    sol = e.value.solution
    assert [code.name for code in sol.retcodes] == ["TooManyEvents", "Success", "Success"]
    assert torch.isnan(sol.ys[1]).tolist() == [[True, True], [False, False], [False, False]]
    # At t = 10, after bounces at 1, 3, 5, 7, 9, a ball that loses nothing is at its top.
    torch.testing.assert_close(sol.ys[1, 1], torch.tensor([1.0, 0.0], dtype=F64), rtol=0, atol=1e-11)
    few = solve(ball, y0, [0.0, 10.0], *args, max_events=4, throw=False, **options)
    assert [code.name for code in few.retcodes] == ["TooManyEvents"] * 3
    assert few.retcode is ReturnCode.TooManyEvents
    assert len(few.events) == 4
    assert "max_events = 4 events" in few.message
    assert "3 of 3 rows failed" in few.message
    for b in range(3):
        one = alone(
            lambda t, y, r: torch.stack([y[1], -2.0 + 0 * y[1]]),
            y0[b],
            [0.0, 10.0],
            restitution[b],
            events=Event(
                lambda t, y, r: y[0],
                terminal=False,
                direction=-1,
                effect=lambda t, y, r: torch.stack([0 * y[0], -r * y[1]]),
            ),
            throw=False,
        )
        assert sol.retcodes[b] is one.retcode
        assert len(one.events) == len(firings_of(sol, b)[0])


# Hard cases


def rise(t, y, *args):
    return torch.ones_like(y)


def test_save_times_before_at_and_behind_jumps_as_in_a_joint_solve():
    """y = t, which jumps by 10 at a time of each row: a save time at the jump holds the state after it."""
    when = torch.tensor([0.5, 0.25, 1.0, 0.0, 7.0], dtype=F64)
    y0 = torch.zeros(5, dtype=F64)
    times = [0.0, 0.25, 0.5, 0.75, 1.0]

    def jump(condition, terminal=False):
        return Event(condition, terminal=terminal, effect=lambda t, y, *args: y + 10.0)

    sol = solve(rise, y0, times, PerSample(when), events=jump(lambda t, y, when: t - when))
    expected = {
        0: [0.0, 0.25, 10.5, 10.75, 11.0],
        1: [0.0, 10.25, 10.5, 10.75, 11.0],
        2: [0.0, 0.25, 0.5, 0.75, 11.0],
        3: times,  # zero at the start is no crossing
        4: times,
    }
    for b, values in expected.items():
        assert sol.ys[:, b].tolist() == pytest.approx(values, abs=1e-13)
        one = alone(rise, y0[b], times, events=jump(lambda t, y, b=b: t - when[b]))
        assert one.ys.tolist() == pytest.approx(values, abs=1e-13)
    assert sol(torch.tensor([0.75, 0.25, 0.5], dtype=F64))[:, 0].tolist() == pytest.approx([10.75, 0.25, 10.5])
    ended = solve(rise, y0, times, PerSample(when), events=jump(lambda t, y, when: t - when, terminal=True))
    for b, values in {0: [0.0, 0.25, 10.5, NAN, NAN], 2: expected[2], 3: times}.items():
        assert ended.ys[:, b].tolist() == pytest.approx(values, abs=1e-13, nan_ok=True)
    assert [code.name for code in ended.retcodes] == ["Terminated"] * 3 + ["Success"] * 2


def test_gradients_of_own_save_times_around_jumps():
    """y = v (t - t0) up to the level, then scaled by k: y(s) = k level + v (s - t*), t* = t0 + level / v."""
    speed, scale, level = (torch.tensor(x, dtype=F64, requires_grad=True) for x in (2.0, 3.0, 0.8))
    t0 = torch.tensor([0.1, -0.2], dtype=F64, requires_grad=True)
    t = torch.stack([t0, torch.full((2,), 5.0, dtype=F64)], dim=1)
    crossed = Event(
        lambda t, y, v, k, level: y - level, terminal=False, direction=1, effect=lambda t, y, v, k, level: k * y
    )
    f, start = lambda t, y, v, k, level: v + 0 * y, torch.zeros(2, dtype=F64)
    # One save time is the first row's event itself: 0.5, but for the rounding with which it is found.
    event = solve(f, start, t, speed, scale, level, events=crossed).events[0].t[0].item()
    ts = torch.tensor([[0.3, event, 0.7, NAN], [0.1, 0.3, 1.0, 4.0]], dtype=F64, requires_grad=True)
    sol = solve(f, start, t, speed, scale, level, events=crossed, saveat=ts)
    when = t0 + level / speed
    there = ts.t().isfinite()
    at = torch.where(there, ts.t(), 0.0)
    late = at >= when - 1e-14
    exact = torch.where(late, scale * level + speed * (at - when), speed * (at - t0))
    torch.testing.assert_close(sol.ys, torch.where(there, exact, NAN), rtol=1e-13, atol=1e-13, equal_nan=True)
    given = [speed, scale, level, t0, ts]
    weight = torch.randn(4, 2, dtype=F64, generator=torch.Generator().manual_seed(2))
    found = torch.autograd.grad((sol.ys * weight).nansum(), given)
    expected = torch.autograd.grad((exact * weight)[there].sum(), given)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


def test_two_events_in_one_step_and_two_at_one_time():
    """Balls in a box without gravity: into the corner, to one wall after the other, and to none. One step suffices."""
    walls = [
        Event(lambda t, y: 1.0 - y[:, 0], terminal=False, effect=lambda t, y: y * y.new_tensor([1, 1, -1, 1])),
        Event(lambda t, y: 1.0 - y[:, 1], terminal=False, effect=lambda t, y: y * y.new_tensor([1, 1, 1, -1])),
    ]

    def move(t, y):
        return torch.cat([y[:, 2:], torch.zeros_like(y[:, 2:])], dim=1)

    y0 = torch.tensor([[0, 0, 2, 2], [0, 0, 4, 2], [0, 0, 0.5, 0.25]], dtype=F64, requires_grad=True)
    sol = solve(move, y0, [0.0, 0.75], events=walls, dt0=0.75)
    assert [firings_of(sol, b)[0] for b in range(3)] == [[(0, 0), (1, 0)], [(0, 0), (1, 0)], []]
    assert sol.events[0].t.tolist() == pytest.approx([0.5, 0.25, NAN], nan_ok=True)
    assert sol.events[1].t.tolist() == pytest.approx([0.5, 0.5, NAN], nan_ok=True)
    expected = [[0.5, 0.5, -2, -2], [-1, 0.5, -4, -2], [0.375, 0.1875, 0.5, 0.25]]
    torch.testing.assert_close(sol.ys[-1], torch.tensor(expected, dtype=F64), rtol=1e-13, atol=1e-13)
    (found,) = torch.autograd.grad(sol.ys[-1, :, :2].sum(), y0)
    # x(T) = 2 - x0 - v T once reflected.
    sign = torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=F64)
    torch.testing.assert_close(found[1:], torch.cat([sign, 0.75 * sign], dim=1), rtol=1e-12, atol=1e-12)
    # In the corner that depends on the order, which is that of a joint solve.
    single = [
        Event(lambda t, y: 1.0 - y[0], terminal=False, effect=lambda t, y: y * y.new_tensor([1, 1, -1, 1])),
        Event(lambda t, y: 1.0 - y[1], terminal=False, effect=lambda t, y: y * y.new_tensor([1, 1, 1, -1])),
    ]
    corner = alone(lambda t, y: torch.cat([y[2:], 0 * y[2:]]), y0[0], [0.0, 0.75], events=single, dt0=0.75)
    (expected,) = torch.autograd.grad(corner.ys[-1, :2].sum(), y0)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-12, atol=1e-12)
    both = Event(lambda t, y: 1.0 - y[:, :2], terminal=False)
    assert firings_of(solve(move, y0, [0.0, 0.75], events=both), 0)[0] == [(0, 0), (0, 1)]


def test_an_effect_that_leads_away_from_another_root_at_the_same_time():
    """Both levels are met at 0.5; the first effect sets the state back, so that the second is not met there."""
    events = [
        Event(lambda t, y: y - 0.5, terminal=False, effect=lambda t, y: y - 0.25),
        Event(lambda t, y: y - 0.5),
    ]
    y0 = torch.tensor([0.0, 0.2], dtype=F64)
    sol = solve(rise, y0, [0.0, 0.6], events=events)
    for b in range(2):
        one = alone(rise, y0[b], [0.0, 0.6], events=events)
        assert firings_of(sol, b)[0] == [(x.event, x.component) for x in one.events]
        assert sol.ys[-1, b].item() == pytest.approx(one.ys[-1].item(), abs=1e-13)
        assert sol.retcodes[b] is one.retcode


def test_events_that_never_fire_rows_of_zero_length_and_no_rows_at_all():
    level = torch.tensor([0.3, 9.0, 0.1], dtype=F64)
    t = torch.tensor([[0.0, 0.5], [0.0, 0.5], [0.4, 0.4]], dtype=F64)
    reset = Event(lambda t, y, level: y - level, terminal=False, effect=lambda t, y, level: 0 * y)
    y0 = torch.zeros(3, dtype=F64, requires_grad=True)
    sol = solve(rise, y0, t, PerSample(level), events=reset)
    assert sol.ys[-1].tolist() == pytest.approx([0.2, 0.5, 0.0], abs=1e-13)
    assert sol.events[0].event.tolist() == [0, -1, -1]
    torch.testing.assert_close(
        torch.autograd.grad(sol.ys[-1].sum(), y0)[0], torch.ones(3, dtype=F64), rtol=1e-12, atol=0
    )
    with torch.no_grad():
        again = solve(rise, y0, t, PerSample(level), events=reset)
    torch.testing.assert_close(again.ys, sol.ys.detach(), rtol=1e-14, atol=0)
    assert not again.ys.requires_grad
    empty = solve(rise, y0[:0], [0.0, 0.5], PerSample(level[:0]), events=reset)
    assert empty.ys.shape == (2, 0)
    assert [fired.t.shape for fired in empty.events] == [(0,)]
    empty.ys.sum().backward()


def test_what_a_jump_leaves_unreached_has_no_gradient():
    """A row fails after its jump: a gradient of what is NaN raises, whatever stretch it would have been in."""
    y0 = torch.tensor([1.0, 0.5], dtype=F64, requires_grad=True)
    jump = Event(lambda t, y: t - 0.5, terminal=False, effect=lambda t, y: 4 * y)
    # dy/dt = y^2: 1 / (1 - t) becomes 8 at 0.5 and blows up at 0.625; the other is 8/3 there, and blows up at 0.875.
    sol = solve(lambda t, y: y**2, y0, [0.0, 0.25, 0.6, 0.7, 1.0], events=jump, throw=False)
    assert not any(code.successful for code in sol.retcodes)
    assert torch.isfinite(sol.ys).tolist() == [[True] * 2] * 3 + [[False, True], [False, False]]
    assert torch.autograd.grad(sol.ys[3, 1], y0, retain_graph=True)[0][1] > 0
    with pytest.raises(pynode.GradientError, match="row 0 at save time 3, which is NaN"):
        sol.ys[3].sum().backward(retain_graph=True)
    with pytest.raises(pynode.GradientError, match="row 1 at time 0, which is NaN"):
        sol(0.95)[1].backward()


def test_the_limit_of_steps_is_that_of_the_whole_solve_in_every_row():
    tick = Event(lambda t, y, rate: torch.sin(rate * t), terminal=False)
    rate = torch.tensor([20.0, 0.1], dtype=F64)
    options = {"max_steps": 20, "throw": False, "dtmax": 2.0}
    sol = solve(rise, torch.zeros(2, dtype=F64), [0.0, 10.0], PerSample(rate), events=tick, **options)
    assert [code.name for code in sol.retcodes] == ["MaxIters", "Success"]
    assert (sol.row_stats.accepted + sol.row_stats.rejected)[0] == 20
    assert "max_steps = 20 attempted steps" in sol.message


def test_stops_trees_and_reversed_time():
    """A tree of complex and real leaves that jumps, in rows of both directions, with a stop for all of them."""
    z0 = torch.tensor([[1.0 + 0j, 0.5j], [0.3 + 0.1j, 1.0 + 0j]], dtype=torch.complex128, requires_grad=True)
    n0 = torch.zeros(2, dtype=F64)
    t = torch.tensor([[0.0, 1.0, 2.0], [2.0, 1.5, 0.0]], dtype=F64)
    options = {"tstops": [1.25], "rtol": 1e-8, "atol": 1e-10}

    def f(t, y):
        return {"z": (0.2 + 2j) * y["z"], "n": t + 0 * y["n"]}

    event = Event(
        lambda t, y: y["z"][..., 0].real,
        terminal=False,
        effect=lambda t, y: {"z": y["z"] * 1.1, "n": y["n"] - 1.0},
    )
    sol = solve(f, {"z": z0, "n": n0}, t, events=event, **options)
    found, expected = torch.zeros((), dtype=F64), torch.zeros((), dtype=F64)
    for b in range(2):
        one = alone(f, {"z": z0[b], "n": n0[b]}, t[b], events=event, **options)
        count = sum(int(fired.event[b]) >= 0 for fired in sol.events)
        assert count == len(one.events) > 0
        for name in ("z", "n"):
            torch.testing.assert_close(sol.ys[name][:, b], one.ys[name], rtol=1e-9, atol=1e-9)
        found = found + sol.ys["z"][-1, b].abs().sum() + sol.ys["n"][-1, b] + sol.events[count - 1].t[b]
        expected = expected + one.ys["z"][-1].abs().sum() + one.ys["n"][-1] + one.events[-1].t
    torch.testing.assert_close(torch.autograd.grad(found, z0), torch.autograd.grad(expected, z0), rtol=1e-8, atol=1e-8)


def test_a_rows_jumps_do_not_touch_the_others():
    (y0, mu), t = rows(), TIMES.clamp(min=-1.0)[:, [0, 2]]
    bare = solve(vanderpol, y0, t, PerSample(mu))
    only = torch.tensor([5.0, 0.0, 0.0, 0.0, 0.0], dtype=F64)
    event = Event(
        lambda t, y, mu, only: torch.sin(3 * t[:, 0]) * only + 0.1,
        terminal=False,
        effect=lambda t, y, mu, only: 2 * y,
    )
    sol = solve(lambda t, y, mu, only: vanderpol(t, y, mu), y0, t, PerSample(mu), PerSample(only), events=event)
    assert torch.equal(sol.ys[:, 1:], bare.ys[:, 1:])
    assert not torch.allclose(sol.ys[1, 0], bare.ys[1, 0])
    assert torch.equal(sol.row_stats.accepted[1:], bare.row_stats.accepted[1:])
