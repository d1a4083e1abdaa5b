"""Gradients through events: against closed forms and finite differences, in float64."""

from __future__ import annotations

import math

import pytest
import torch

import pynode
from pynode import Event, SaveAt

T = torch.float64
SENSEALGS = {
    "default": None,
    "bounded": pynode.CheckpointedAdjoint(checkpoints=2),
    "direct": pynode.DirectAdjoint(),
    "interpolating": pynode.InterpolatingAdjoint(),
    "gauss": pynode.GaussAdjoint(),
    "quadrature": pynode.QuadratureAdjoint(),
    "backsolve": pynode.BacksolveAdjoint(),
    "forward": pynode.ForwardSensitivity(),
}


def leaf(value) -> torch.Tensor:
    return torch.tensor(value, dtype=T, requires_grad=True)


def ball(height, gravity, restitution, end, **options):
    """A ball dropped from ``height`` at time 0."""

    def f(t, y, gravity, restitution):
        return torch.stack([y[1], -gravity])

    def effect(t, y, gravity, restitution):
        return torch.stack([0 * y[0], -restitution * y[1]])

    bounce = Event(lambda t, y, *args: y[0], terminal=False, direction=-1, effect=effect)
    y0 = torch.stack([height, 0 * height])
    return pynode.solve(
        f, y0, [0.0, 0.4, 1.3, end], args=(gravity, restitution), events=bounce, rtol=1e-9, atol=1e-9, **options
    )


def exact_ball(height, gravity, restitution, end):
    """Times of the bounces, and height and speed at ``end``, in closed form."""
    t = torch.sqrt(2 * height / gravity)
    speed = restitution * gravity * t
    times = [t]
    while t + 2 * speed / gravity < end:
        t = t + 2 * speed / gravity
        speed = restitution * speed
        times.append(t)
    flight = end - t
    return times, torch.stack([speed * flight - gravity * flight**2 / 2, speed - gravity * flight])


@pytest.mark.parametrize("name", SENSEALGS)
def test_bouncing_ball_against_its_closed_form(name):
    inputs = [leaf(1.0), leaf(9.81), leaf(0.8), leaf(2.0)]
    sol = ball(*inputs, sensealg=SENSEALGS[name])
    times, final = exact_ball(*inputs)
    assert len(sol.events) == len(times) == 3
    # The solution is a parabola, which the methods follow to rounding; the adjoints' own integrals to 1e-9.
    for fired, time in zip(sol.events, times, strict=True):
        assert fired.t.item() == pytest.approx(time.item(), abs=1e-12)
        found = torch.autograd.grad(fired.t, inputs[:3], retain_graph=True, materialize_grads=True)
        expected = torch.autograd.grad(time, inputs[:3], retain_graph=True, materialize_grads=True)
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)
    for i in range(2):
        found = torch.autograd.grad(sol.ys[-1, i], inputs, retain_graph=True, materialize_grads=True)
        expected = torch.autograd.grad(final[i], inputs, retain_graph=True, materialize_grads=True)
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)
    assert sol.sensealg is not None
    assert sol.stats.backward.nfe or name in ("direct", "forward")


def bounces(gravity, restitution):
    return torch.stack([x.t for x in ball(leaf(1.0), gravity, restitution, 2.0).events][:3])


def test_restitution_and_gravity_are_learned_from_the_times_of_bounces():
    data = bounces(leaf(9.81), leaf(0.7)).detach()
    gravity, restitution = leaf(9.5), leaf(0.75)
    for _ in range(6):  # Gauss and Newton
        times = bounces(gravity, restitution)
        rows = [
            torch.stack(torch.autograd.grad(t, [gravity, restitution], retain_graph=True, materialize_grads=True))
            for t in times
        ]
        change = torch.linalg.lstsq(torch.stack(rows), (data - times.detach())[:, None]).solution
        with torch.no_grad():
            gravity += change[0, 0]
            restitution += change[1, 0]
    assert gravity.item() == pytest.approx(9.81, rel=1e-9)
    assert restitution.item() == pytest.approx(0.7, rel=1e-9)


class Learned(torch.nn.Module):
    """A nonlinear field with a condition and an effect, all of which have parameters of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.field = torch.nn.Parameter(torch.tensor([0.4, 1.3], dtype=T))
        self.level = torch.nn.Parameter(torch.tensor(0.6, dtype=T))
        self.drop = torch.nn.Parameter(torch.tensor(0.9, dtype=T))

    def forward(self, t, y):
        return torch.stack([torch.sin(self.field[0] * t) + y[1], self.field[1] - torch.tanh(y[0] * y[1])])

    def condition(self, t, y):
        return y[0] * (1 + 0.1 * t) - self.level

    def effect(self, t, y):
        return torch.stack([y[0] - self.drop * (1 + 0.2 * torch.cos(t)), 0.5 * y[1]])


CASES = [
    (pynode.Tsit5(), None, False),
    (pynode.Tsit5(), None, True),
    (pynode.Tsit5(), pynode.DirectAdjoint(), False),
    (pynode.Tsit5(), pynode.GaussAdjoint(), False),
    (pynode.Tsit5(), pynode.ForwardSensitivity(), False),
    (pynode.Vern7(), None, False),
    (pynode.RK4(dt=0.05), None, False),
    (pynode.RK4(dt=0.05), pynode.DirectAdjoint(), True),
    (pynode.ReversibleHeun(dt=0.02), pynode.ReversibleAdjoint(), False),
]


@pytest.mark.parametrize(
    ("algorithm", "sensealg", "backward"),
    CASES,
    ids=[f"{a.name}-{s.name if s else 'default'}-{'backward' if b else 'forward'}" for a, s, b in CASES],
)
def test_every_input_against_finite_differences(algorithm, sensealg, backward):
    model = Learned()
    y0, t = leaf([0.1, 0.2]), leaf([0.0, 0.3, 1.1, 1.8])

    def value(y0, t):
        if backward:
            return outcome(Mirrored(model), y0, -t, algorithm, sensealg)
        return outcome(model, y0, t, algorithm, sensealg)

    inputs = [y0, t, *model.parameters()]
    found = torch.autograd.grad(value(y0, t), inputs)
    # Central differences along one direction of each input. The functions vary on the scale of 1: their error is
    # h^2 = 1e-8 times a third derivative, and the tolerance of the solves over h, 1e-6; with it comes that steps move
    # with the inputs, which the gradient rightly ignores.
    h = 1e-4
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for x, gradient in zip(inputs, found, strict=True):
            direction = torch.rand(x.shape, generator=generator, dtype=T) + 0.5
            kept, ends = x.clone(), []
            for step in (h, -h):
                x.copy_(kept + step * direction)
                ends.append(value(y0, t).item())
            x.copy_(kept)
            expected = (ends[0] - ends[1]) / (2 * h)
            assert (gradient * direction).sum().item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


class Mirrored:
    """The model in the reverse of time."""

    def __init__(self, model):
        self.model = model
        self.condition = lambda t, y: model.condition(-t, y)
        self.effect = lambda t, y: model.effect(-t, y)

    def __call__(self, t, y):
        return -self.model(-t, y)


def outcome(model, y0, t, algorithm, sensealg, rtol=1e-10):
    event = Event(model.condition, terminal=False, direction=1, effect=model.effect, interp_points=2)
    sol = pynode.solve(
        model,
        y0,
        t,
        algorithm=algorithm,
        sensealg=sensealg,
        events=event,
        running_cost=lambda t, y: y.square().sum() * (1 + t),
        saveat=SaveAt(dense=True),
        rtol=rtol,
        atol=rtol,
    )
    assert len(sol.events) == 2
    weights = torch.tensor([0.3, -0.7], dtype=T)
    first, second = sol.events
    return (
        sol.ys.tanh().sum()
        + 2 * first.t
        - second.t.square()
        + weights @ second.before
        + first.after.prod()
        + sol.running_cost
        + sol(math.copysign(1.5, t[-1].item()))[0].sin()
    )


def test_direct_and_checkpointed_agree_to_rounding():
    model = Learned()
    y0, t = leaf([0.1, 0.2]), leaf([0.0, 0.3, 1.1, 1.8])
    found = []
    for sensealg in (pynode.DirectAdjoint(), pynode.CheckpointedAdjoint()):
        value = outcome(model, y0, t, pynode.Tsit5(), sensealg, 1e-6)
        found.append(torch.autograd.grad(value, [y0, t, *model.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-10)


def test_a_terminal_event_with_an_own_save_time_and_the_start_of_time():
    # y = y0 + t - t0 reaches the level at t0 + level - y0.
    y0, t0, level, s = leaf([0.2]), leaf(0.1), leaf(0.7), leaf([0.3])
    t = torch.stack([t0, torch.tensor(5.0, dtype=T)])
    sol = pynode.solve(
        lambda t, y: torch.ones_like(y),
        y0,
        t,
        saveat=SaveAt(ts=s, t1=True),
        events=Event(lambda t, y: y[0] - level, effect=lambda t, y: y * t),
    )
    time = sol.events[0].t
    assert time.item() == pytest.approx(0.6, abs=1e-13)
    found = torch.autograd.grad(time, [y0, t0, level], retain_graph=True)
    torch.testing.assert_close([x.sum() for x in found], [leaf(-1.0), leaf(1.0), leaf(1.0)])
    torch.testing.assert_close(sol.ts[-1], time)
    found = torch.autograd.grad(sol.ys[0, 0], [y0, t0, s], retain_graph=True)
    torch.testing.assert_close([x.sum() for x in found], [leaf(1.0), leaf(-1.0), leaf(1.0)])
    # level * t*, whose derivative in the level is level + t*.
    found = torch.autograd.grad(sol.ys[-1, 0], [y0, t0, level], retain_graph=True)
    torch.testing.assert_close([x.sum() for x in found], [leaf(-0.7), leaf(0.7), leaf(1.3)])


def test_a_grazing_event_has_no_gradient():
    y0 = leaf([0.0])
    graze = Event(lambda t, y: (y[0] - 0.5) ** 3)
    sol = pynode.solve(lambda t, y: torch.ones_like(y), y0, [0.0, 1.0], events=graze)
    # The time is known as well as the cube's root is: to a third of the digits.
    assert sol.events[0].t.item() == pytest.approx(0.5, abs=1e-5)
    with pytest.raises(pynode.GradientError, match=r"events\[0\] grazes zero.*simple root"):
        sol.events[0].t.backward()
    # What does not depend on the event's time has its gradient all the same.
    sol = pynode.solve(lambda t, y: torch.ones_like(y), y0, [0.0, 0.25, 1.0], events=graze)
    sol.ys[1].sum().backward()
    torch.testing.assert_close(y0.grad, leaf([1.0]))


def test_a_condition_without_a_derivative_says_so():
    y0 = leaf([0.0])
    hidden = Event(lambda t, y: torch.tensor(y[0].item() - 0.5, dtype=T))
    sol = pynode.solve(lambda t, y: torch.ones_like(y), y0, [0.0, 1.0], events=hidden)
    with pytest.raises(pynode.GradientError, match="differentiable operations"):
        sol.events[0].t.backward()


def test_second_derivatives_through_an_event_are_refused():
    y0 = leaf([0.0])
    sol = pynode.solve(lambda t, y: 1 + y, y0, [0.0, 1.0], events=Event(lambda t, y: y[0] - 0.5))
    with pytest.raises(pynode.GradientError, match="differentiated again"):
        torch.autograd.grad(sol.events[0].t, y0, create_graph=True)


def test_no_grad_and_nothing_to_differentiate():
    with torch.no_grad():
        sol = ball(leaf(1.0), leaf(9.81), leaf(0.8), 2.0)
    assert not sol.events[0].t.requires_grad
    assert sol.sensealg is None
    y0 = torch.zeros(1, dtype=T)
    sol = pynode.solve(lambda t, y: torch.ones_like(y), y0, [0.0, 1.0], events=Event(lambda t, y: y[0] - 0.5))
    assert not sol.ys.requires_grad
    # Only the condition has a parameter.
    level = leaf(0.5)
    sol = pynode.solve(lambda t, y: 2 * torch.ones_like(y), y0, [0.0, 1.0], events=Event(lambda t, y: y[0] - level))
    torch.testing.assert_close(torch.autograd.grad(sol.events[0].t, level)[0], leaf(0.5))


def test_a_field_that_changes_between_passes_is_found_out():
    noise = iter(torch.linspace(1.0, 2.0, 1000, dtype=T))
    y0 = leaf([0.0])
    sol = pynode.solve(
        lambda t, y: torch.ones_like(y) + next(noise) * y, y0, [0.0, 1.0], events=Event(lambda t, y: y[0] - 0.5)
    )
    with pytest.raises(pynode.GradientError, match="other values"):
        sol.events[0].t.backward()


@pytest.mark.parametrize("name", ["Tsit5", "Vern7", "Fehlberg2"])
def test_looking_for_events_leaves_the_tape_whole(name):
    """The stages that the search evaluates belong to the steps: DirectAdjoint against the adjoint that repeats them."""
    gradients = []
    for sensealg in (pynode.DirectAdjoint(), pynode.CheckpointedAdjoint()):
        model = Learned()
        y0 = leaf([0.6, -0.2])
        events = [
            Event(lambda t, y, y0=y0: y[1] - y0[1], terminal=False),  # zero at the start
            Event(lambda t, y, model=model: t * model.level - 0.1),  # in the first step
        ]
        options = {"algorithm": name, "events": events, "sensealg": sensealg, "rtol": 1e-3, "atol": 1e-3, "dt0": 0.3}
        sol = pynode.solve(model, y0, [0.0, 4.0], **options)
        assert sol.stats.forward.accepted == len(sol.events) == 1
        loss = sum((i + 1) * fired.t + fired.before.sum() for i, fired in enumerate(sol.events)) + sol.ys[-1].sum()
        gradients.append(torch.autograd.grad(loss, [y0, model.field, model.level]))
    # The same steps, differentiated in two ways.
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)
