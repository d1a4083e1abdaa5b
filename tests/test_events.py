"""Events: what fires when, and what is saved."""

from __future__ import annotations

import math

import pytest
import torch

import pynode
from pynode import Event, ReturnCode

T = torch.float64


def fall(t, y):
    """Height and speed under gravity 2: exact for every method of order 2."""
    return torch.stack([y[1], torch.full_like(y[1], -2.0)])


def drift(t, y):
    return torch.ones_like(y)


def turn(t, y):
    """Around the unit circle, once in 2 pi."""
    return torch.stack([-y[1], y[0]])


def height(t, y):
    return y[0]


def reflect(t, y):
    return torch.stack([y[0], -y[1]])


def state(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=T)


def test_a_terminal_event_ends_the_solve_at_its_root():
    # y = 1 - t^2 reaches zero at 1, with speed -2.
    sol = pynode.solve(fall, state(1.0, 0.0), [0.0, 0.5, 5.0], events=Event(height))
    assert sol.retcode is ReturnCode.Terminated
    assert sol.retcode.successful
    assert sol.ts.tolist() == pytest.approx([0.0, 0.5, 1.0], abs=1e-13)
    assert sol.ys[:, 0].tolist() == pytest.approx([1.0, 0.75, 0.0], abs=1e-13)
    assert sol.span[1] == pytest.approx(1.0, abs=1e-13)
    (fired,) = sol.events
    assert (fired.event, fired.component) == (0, 0)
    assert fired.t.item() == pytest.approx(1.0, abs=1e-13)
    assert torch.equal(fired.before, fired.after)
    assert fired.after.tolist() == pytest.approx([0.0, -2.0], abs=1e-13)
    assert sol(sol.span[1])[1].item() == pytest.approx(-2.0, abs=1e-13)
    with pytest.raises(pynode.InputError, match="span"):
        sol(1.5)
    assert "events:   1" in repr(sol)


def test_an_event_that_never_fires_leaves_the_solve_as_it_is():
    bare = pynode.solve(turn, state(1.0, 0.0), [0.0, 1.0, 2.0])
    sol = pynode.solve(turn, state(1.0, 0.0), [0.0, 1.0, 2.0], events=Event(lambda t, y: y[0] - 3.0))
    assert sol.retcode is ReturnCode.Success
    assert sol.events == ()
    assert torch.equal(sol.ts, bare.ts)
    assert torch.equal(sol.ys, bare.ys)
    assert sol.stats.forward == bare.stats.forward


@pytest.mark.parametrize(("direction", "expected"), [(0, [0.5, 1.5, 2.5]), (1, [1.5]), (-1, [0.5, 2.5])])
@pytest.mark.parametrize("backward", [False, True])
def test_direction_counts_along_the_solve(direction, expected, backward):
    # cos(pi t), falling through zero at 0.5 and 2.5, rising at 1.5; even in t.
    sign = -1.0 if backward else 1.0
    sol = pynode.solve(
        lambda t, y: sign * math.pi * turn(t, y),
        state(1.0, 0.0),
        [0.0, sign * 3.0],
        events=Event(height, terminal=False, direction=direction),
        rtol=1e-10,
        atol=1e-12,
    )
    assert [sign * x.t.item() for x in sol.events] == pytest.approx(expected, abs=1e-8)
    assert sol.retcode is ReturnCode.Success


def test_a_condition_that_is_zero_at_the_start_fires_when_it_next_crosses():
    # y = t - t^2 starts at zero, and is back there at 1.
    sol = pynode.solve(fall, state(0.0, 1.0), [0.0, 3.0], events=Event(height))
    assert [x.t.item() for x in sol.events] == pytest.approx([1.0], abs=1e-14)
    # A ball at rest on the floor of a rising lift never leaves zero.
    still = pynode.solve(lambda t, y: torch.zeros_like(y), state(0.0, 0.0), [0.0, 1.0], events=Event(height))
    assert still.retcode is ReturnCode.Success
    # Zero at first, it then moves away: no crossing.
    away = pynode.solve(drift, state(0.0), [0.0, 1.0], events=Event(height))
    assert away.events == ()


def test_a_zero_that_comes_back_within_a_sliver_of_the_first_step_is_seen():
    # y = 1e-6 t - t^2 is zero again at 1e-6, a millionth of the step.
    sol = pynode.solve(fall, state(0.0, 1e-6), [0.0, 1.0], events=Event(height), dt0=1.0)
    assert [x.t.item() for x in sol.events] == pytest.approx([1e-6], rel=1e-9)


def test_two_events_in_one_step_happen_in_order_of_time():
    seen = []

    def effect(name):
        def applied(t, y):
            seen.append(name)
            return y

        return applied

    events = [
        Event(lambda t, y: t - 0.7, terminal=False, effect=effect("late")),
        Event(lambda t, y: y[0] - 0.3, terminal=False, effect=effect("early")),
    ]
    sol = pynode.solve(drift, state(0.0), [0.0, 1.0], events=events, dt0=1.0)
    assert seen == ["early", "late"]
    assert [x.event for x in sol.events] == [1, 0]
    assert [x.t.item() for x in sol.events] == pytest.approx([0.3, 0.7], abs=1e-14)


def test_two_roots_of_one_condition_in_one_step():
    condition = lambda t, y: (y[0] - 0.45) * (y[0] - 0.55)  # noqa: E731  (positive at both ends of the step)
    sol = pynode.solve(drift, state(0.0), [0.0, 1.0], events=Event(condition, terminal=False), dt0=1.0)
    assert [x.t.item() for x in sol.events] == pytest.approx([0.45, 0.55], abs=1e-14)
    blind = pynode.solve(drift, state(0.0), [0.0, 1.0], events=Event(condition, interp_points=0), dt0=1.0)
    assert blind.events == ()


def test_two_events_at_one_time_both_happen():
    # A ball that reaches two walls in the corner.
    def move(t, y):
        return torch.cat([y[2:], torch.zeros_like(y[2:])])

    walls = Event(
        lambda t, y: 1.0 - y[:2],
        terminal=False,
        direction=-1,
        effect=lambda t, y: y,
    )
    flips = [
        Event(lambda t, y: 1.0 - y[0], terminal=False, effect=lambda t, y: y * state(1, 1, -1, 1)),
        Event(lambda t, y: 1.0 - y[1], terminal=False, effect=lambda t, y: y * state(1, 1, 1, -1)),
    ]
    sol = pynode.solve(move, state(0.0, 0.0, 2.0, 2.0), [0.0, 1.0], events=flips)
    assert [x.event for x in sol.events] == [0, 1]
    assert sol.ys[-1].tolist() == pytest.approx([0.0, 0.0, -2.0, -2.0], abs=1e-12)
    both = pynode.solve(move, state(0.0, 0.0, 2.0, 2.0), [0.0, 1.0], events=walls)
    assert [x.component for x in both.events] == [0, 1]


def test_every_element_of_a_condition_is_a_root_function():
    sol = pynode.solve(
        drift,
        state(0.0),
        [0.0, 1.0],
        events=Event(lambda t, y: torch.stack([y - 0.8, y - 0.2]).reshape(1, 2), terminal=False),
    )
    assert [(x.component, round(x.t.item(), 12)) for x in sol.events] == [(1, 0.2), (0, 0.8)]


def test_a_save_point_at_the_time_of_an_event_holds_the_state_after_it():
    jump = Event(lambda t, y: t - 0.5, terminal=False, effect=lambda t, y: y + 10.0)
    sol = pynode.solve(drift, state(0.0), [0.0, 0.25, 0.5, 0.75, 1.0], events=jump)
    assert sol.ts.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert sol.ys[:, 0].tolist() == pytest.approx([0.0, 0.25, 10.5, 10.75, 11.0], abs=1e-13)
    assert sol(torch.tensor([0.75, 0.25], dtype=T))[:, 0].tolist() == pytest.approx([10.75, 0.25], abs=1e-13)
    end = pynode.solve(drift, state(0.0), [0.0, 0.5, 1.0], events=Event(lambda t, y: t - 0.5))
    assert end.ts.tolist() == [0.0, 0.5, end.span[1]]
    assert end.ys[:, 0].tolist() == pytest.approx([0.0, 0.5, 0.5], abs=1e-13)


@pytest.mark.parametrize("terminal", [True, False])
def test_an_event_at_the_end_time(terminal):
    event = Event(lambda t, y: t - 1.0, terminal=terminal, effect=lambda t, y: y + 1.0)
    sol = pynode.solve(drift, state(0.0), [0.0, 1.0], events=event)
    assert sol.retcode is (ReturnCode.Terminated if terminal else ReturnCode.Success)
    assert sol.ts.tolist() == [0.0, 1.0]
    assert sol.ys[:, 0].tolist() == pytest.approx([0.0, 2.0], abs=1e-14)
    assert len(sol.events) == 1


@pytest.mark.parametrize("name", ["Euler", "RK4", "BS3", "DP5", "Vern7", "DP8", "ReversibleHeun", "VelocityVerlet"])
def test_every_kind_of_method_finds_events(name):
    cls = getattr(pynode, name)
    algorithm = cls(dt=1e-2) if issubclass(cls, pynode.Euler.__mro__[1]) else cls()
    y0 = state(1.0, 0.0)
    pair = name == "VelocityVerlet"
    f = (lambda t, y: (y[1], -2.0 * torch.ones_like(y[1]))) if pair else fall
    condition = height
    sol = pynode.solve(
        f, tuple(y0[:, None]) if pair else y0, [0.0, 5.0], algorithm=algorithm, events=Event(condition), rtol=1e-8
    )
    # Euler's error in t is h at most here; its speed is exact.
    bound = 1e-2 if name == "Euler" else 1e-6
    assert sol.events[0].t.item() == pytest.approx(1.0, abs=bound)


def test_ends_of_the_steps_show_both_sides_of_an_event():
    jump = Event(lambda t, y: t - 0.5, terminal=False, effect=lambda t, y: y + 10.0)
    sol = pynode.solve(drift, state(0.0), [0.0, 1.0], events=jump, saveat=pynode.SaveAt(steps=True), dt0=0.3)
    at = [i for i, t in enumerate(sol.ts.tolist()) if abs(t - 0.5) < 1e-12]
    assert sol.ys[at, 0].tolist() == pytest.approx([0.5, 10.5], abs=1e-12)
    assert sol.ts[-1].item() == 1.0
    assert sol.at_steps


def test_own_save_times_hold_those_before_a_terminal_event():
    ts = [0.2, 0.4, 0.6]
    sol = pynode.solve(drift, state(0.0), [0.0, 1.0], events=Event(lambda t, y: y[0] - 0.5), saveat=ts)
    assert sol.ts.tolist() == [0.2, 0.4]
    ended = pynode.SaveAt(ts=ts, t1=True)
    sol = pynode.solve(drift, state(0.0), [0.0, 1.0], events=Event(lambda t, y: y[0] - 0.5), saveat=ended)
    assert sol.ts.tolist() == pytest.approx([0.2, 0.4, 0.5], abs=1e-14)
    early = pynode.solve(drift, state(0.0), [0.0, 1.0], events=Event(lambda t, y: y[0] - 0.1), saveat=ts)
    assert early.ts.shape == (0,)
    assert early.ys.shape == (0, 1)


def test_a_running_cost_ends_with_the_event_and_adds_up_over_effects():
    jump = Event(lambda t, y: y[0] - 0.5, terminal=False, effect=lambda t, y: torch.zeros_like(y))
    sol = pynode.solve(drift, state(0.0), [0.0, 0.75], events=jump, running_cost=lambda t, y: y.sum())
    assert sol.running_cost.item() == pytest.approx(0.5 * 0.5**2 + 0.5 * 0.25**2, abs=1e-13)
    end = pynode.solve(
        drift, state(0.0), [0.0, 9.0], events=Event(lambda t, y: y[0] - 0.5), running_cost=lambda t, y: y.sum()
    )
    assert end.running_cost.item() == pytest.approx(0.5 * 0.5**2, abs=1e-13)


def test_trees_and_args():
    f = lambda t, y, g: {"q": y["p"], "p": -g * torch.ones_like(y["p"])}  # noqa: E731
    y0 = {"q": state(1.0), "p": state(0.0)}
    bounce = Event(
        lambda t, y, g: y["q"], terminal=False, direction=-1, effect=lambda t, y, g: {"q": y["q"], "p": -y["p"]}
    )
    sol = pynode.solve(f, y0, [0.0, 2.0], args=(torch.tensor(2.0, dtype=T),), events=bounce)
    assert sol.ys["q"][-1].item() == pytest.approx(1.0, abs=1e-12)
    assert sol.events[0].after["p"].item() == pytest.approx(2.0, abs=1e-12)
    assert sol(0.5)["q"].item() == pytest.approx(0.75, abs=1e-12)


def test_float32_and_complex_states():
    # Weights that are all positive: those of Tsit5, of alternating signs, multiply rounding errors by 8.
    sol = pynode.solve(fall, state(1.0, 0.0).float(), [0.0, 2.0], algorithm="bs3", events=Event(height))
    # A few rounding errors of float32, of states up to 3 at the end of the step, over the condition's slope 2.
    assert sol.events[0].t.item() == pytest.approx(1.0, abs=1e-6)
    spin = pynode.solve(
        lambda t, y: 1j * y,
        torch.ones(1, dtype=torch.complex128),
        [0.0, 9.0],
        rtol=1e-10,
        atol=1e-12,
        events=Event(lambda t, y: y[0].real),
    )
    assert spin.events[0].t.item() == pytest.approx(math.pi / 2, abs=1e-8)


def test_the_root_is_bracketed_as_finely_as_asked_for():
    calls = []

    def condition(t, y):
        calls.append(t.item())
        return y[0] ** 3 - 0.1

    coarse = Event(condition, root_tol=1e-3)
    sol = pynode.solve(drift, state(0.0), [0.0, 1.0], events=coarse, dt0=1.0)
    assert abs(sol.events[0].t.item() - 0.1 ** (1 / 3)) <= 1e-3
    count = len(calls)
    fine = pynode.solve(drift, state(0.0), [0.0, 1.0], events=Event(condition), dt0=1.0)
    assert fine.events[0].t.item() == pytest.approx(0.1 ** (1 / 3), abs=4 * 2.3e-16)
    assert len(calls) - count > count


# ---------------------------------------------------------------------------------------------------------- failures


def test_events_without_end_are_stopped_with_advice():
    # Each flight lasts half as long as the one before: they accumulate at t = 3.
    bounce = Event(height, terminal=False, direction=-1, effect=lambda t, y: torch.stack([0 * y[0], -0.5 * y[1]]))
    with pytest.raises(pynode.SolveError, match=r"accumulate.*one more channel") as raised:
        pynode.solve(fall, state(1.0, 0.0), [0.0, 10.0], events=bounce)
    assert raised.value.retcode is ReturnCode.TooManyEvents
    assert raised.value.t == pytest.approx(3.0, abs=1e-6)
    assert len(raised.value.solution.events) > 20
    few = pynode.solve(fall, state(1.0, 0.0), [0.0, 10.0], events=bounce, max_events=5, throw=False)
    assert few.retcode is ReturnCode.TooManyEvents
    assert len(few.events) == 5
    assert "max_events = 5" in few.message
    assert few.ts.tolist() == [0.0]


def test_an_effect_may_put_the_state_to_rest():
    def f(t, y):
        return y[2] * torch.stack([y[1], y.new_tensor(-2.0), y.new_tensor(0.0)])

    def effect(t, y):
        speed = -0.5 * y[1]
        moving = (speed > 1e-3).to(y)
        return torch.stack([0 * y[0], moving * speed, moving])

    bounce = Event(height, terminal=False, direction=-1, effect=effect)
    sol = pynode.solve(f, state(1.0, 0.0, 1.0), [0.0, 10.0], events=bounce)
    assert sol.retcode is ReturnCode.Success
    assert sol.ys[-1].tolist() == [0.0, 0.0, 0.0]
    # Speeds 2, 1, 1/2, ...: 2^-10 is the first below 1e-3, after the eleventh bounce.
    assert len(sol.events) == 11


def test_the_limit_of_steps_is_that_of_the_whole_solve():
    tick = Event(lambda t, y: torch.sin(20 * t), terminal=False)
    sol = pynode.solve(drift, state(0.0), [0.0, 10.0], events=tick, max_steps=8, throw=False)
    assert sol.retcode is ReturnCode.MaxIters
    assert "max_steps = 8" in sol.message
    assert sol.stats.forward.accepted + sol.stats.forward.rejected == 8


@pytest.mark.parametrize("algorithm", [pynode.Tsit5(), pynode.RK4(dt=0.01)])
def test_blow_up_before_the_event(algorithm):
    # y = 1 / (1 - t)
    with pytest.raises(pynode.SolveError) as raised:
        pynode.solve(lambda t, y: y**2, state(1.0), [0.0, 2.0], algorithm=algorithm, events=Event(lambda t, y: t - 1.5))
    assert raised.value.retcode in (ReturnCode.Unstable, ReturnCode.DtLessThanMin)
    assert raised.value.t == pytest.approx(1.0, abs=0.05)
    assert raised.value.solution.events == ()


BAD_CONDITIONS = {
    "nan": (lambda t, y: torch.log(0.5 - y[0]), r"nan at t = 0\.5.*clamping"),
    "none": (lambda t, y: None, r"returned nothing.*return statement"),
    "number": (lambda t, y: 1.0, r"returned a float.*torch"),
    "boolean": (lambda t, y: y[0] > 0.5, r"torch\.bool.*not the comparison"),
    "complex": (lambda t, y: y[0] * 1j, r"complex.*\.real"),
    "empty": (lambda t, y: y[:0], r"empty"),
    "growing": (lambda t, y: torch.ones(1 if t < 0.5 else 2), r"shape \(2,\) after \(1,\)"),
}


@pytest.mark.parametrize("case", BAD_CONDITIONS)
def test_conditions_that_cannot_be_used(case):
    condition, message = BAD_CONDITIONS[case]
    with pytest.raises(pynode.FieldError, match=message):
        pynode.solve(drift, state(0.0), [0.0, 1.0], events=Event(condition))


BAD_EFFECTS = {
    "none": (lambda t, y: None, "NoneType.*return statement"),
    "shape": (lambda t, y: y[:1], r"shape \(1,\).*one value per element"),
    "tree": (lambda t, y: (y, y), "tuple"),
    "dtype": (lambda t, y: y.float(), "float32"),
}


@pytest.mark.parametrize("case", BAD_EFFECTS)
def test_effects_that_cannot_be_used(case):
    effect, message = BAD_EFFECTS[case]
    with pytest.raises(pynode.FieldError, match=rf"effect of events\[0\].*{message}"):
        pynode.solve(fall, state(1.0, 0.0), [0.0, 2.0], events=Event(height, terminal=False, effect=effect))


def test_an_effect_may_write_into_its_state():
    def effect(t, y):
        y[1] = -y[1]
        return y

    sol = pynode.solve(fall, state(1.0, 0.0), [0.0, 2.0], events=Event(height, terminal=False, effect=effect))
    assert sol.events[0].before[1].item() == pytest.approx(-2.0, abs=1e-12)
    assert sol.ys[-1, 0].item() == pytest.approx(1.0, abs=1e-12)


BAD_EVENTS = [
    (lambda: Event(None), "condition"),
    (lambda: Event(height, effect=3), "effect"),
    (lambda: Event(height, direction=2), "direction"),
    (lambda: Event(height, root_tol=0.0), "root_tol"),
    (lambda: Event(height, interp_points=-1), "interp_points"),
    (lambda: pynode.solve(drift, state(0.0), [0.0, 1.0], events=height), "write events=Event"),
    (lambda: pynode.solve(drift, state(0.0), [0.0, 1.0], events=[]), "empty"),
    (lambda: pynode.solve(drift, state(0.0), [0.0, 1.0], events=Event(height), max_events=0), "max_events"),
]


@pytest.mark.parametrize(("call", "message"), BAD_EVENTS)
def test_bad_events(call, message):
    with pytest.raises(pynode.InputError, match=message):
        call()


def test_what_events_are_not_offered_with():
    with pytest.raises(pynode.UnsupportedError, match="transform"):
        torch.func.vmap(lambda y: pynode.solve(drift, y, [0.0, 1.0], events=Event(height)).ys)(torch.zeros(2, 1))
