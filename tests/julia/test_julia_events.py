"""Events on the Julia backend: what fires when, what is saved, and the gradients of times and states.

Times and gradients are held against closed forms and against the torch backend, whose search for roots is the same and
whose steps are of the same methods at the same tolerances; see ``tests/test_events.py`` and
``tests/test_event_gradients.py`` for the rules themselves.
"""

from __future__ import annotations

import pytest
import torch

import pynode
from pynode import Event, ReturnCode, SaveAt
from pynode.julia import runtime

pytestmark = [
    pytest.mark.julia,
    pytest.mark.skipif(not runtime.installed(), reason="juliacall is not installed"),
]

T = torch.float64
SENSEALGS = {
    "gauss": pynode.GaussAdjoint(),
    "gauss-checkpointing": pynode.GaussAdjoint(checkpointing=True),
    "kronrod": pynode.GaussKronrodAdjoint(),
    "interpolating": pynode.InterpolatingAdjoint(),
    "quadrature": pynode.QuadratureAdjoint(),
    "backsolve": pynode.BacksolveAdjoint(),
}


def state(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=T)


def leaf(value) -> torch.Tensor:
    return torch.tensor(value, dtype=T, requires_grad=True)


def fall(t, y):
    """Height and speed under gravity 2."""
    return torch.stack([y[1], torch.full_like(y[1], -2.0)])


def height(t, y):
    return y[0]


def test_a_terminal_event_ends_the_solve_at_its_root():
    # y = 1 - t^2 reaches zero at 1, with speed -2.
    sol = pynode.solve(fall, state(1.0, 0.0), [0.0, 0.5, 5.0], events=Event(height), backend="julia")
    assert sol.retcode is ReturnCode.Terminated
    assert sol.ts.tolist() == pytest.approx([0.0, 0.5, 1.0], abs=1e-12)
    assert sol.ys[:, 0].tolist() == pytest.approx([1.0, 0.75, 0.0], abs=1e-12)
    (fired,) = sol.events
    assert fired.after.tolist() == pytest.approx([0.0, -2.0], abs=1e-12)
    assert sol(sol.span[1])[1].item() == pytest.approx(-2.0, abs=1e-12)
    assert sol(0.25)[0].item() == pytest.approx(1.0 - 0.25**2, abs=1e-12)
    with pytest.raises(pynode.InputError, match="span"):
        sol(1.5)
    more = sol.resume([1.5])  # it does not fire again at once
    assert more.ys[-1, 0].item() == pytest.approx(1.0 - 1.5**2, abs=1e-12)


def test_an_event_that_never_fires_leaves_the_solve_as_it_is():
    watched = pynode.solve(fall, state(1.0, 0.0), [0.0, 0.5, 2.0], events=Event(lambda t, y: y[0] + 9), backend="julia")
    plain = pynode.solve(fall, state(1.0, 0.0), [0.0, 0.5, 2.0], backend="julia")
    assert watched.retcode is ReturnCode.Success
    assert torch.equal(watched.ys, plain.ys)
    assert watched.stats.forward.accepted == plain.stats.forward.accepted
    assert not watched.events


def test_nothing_is_evaluated_far_behind_the_event():
    """The field has no value below zero: a solve that had gone on to the end of ``t`` would have failed."""

    def f(t, y):
        return -1.0 + 0.0 * torch.sqrt(y + 0.5)

    options = {"backend": "julia", "dtmax": 0.25}
    sol = pynode.solve(f, state(1.0), [0.0, 100.0], events=Event(height), **options)
    assert sol.span[1] == pytest.approx(1.0, abs=1e-12)
    assert not pynode.solve(f, state(1.0), [0.0, 100.0], throw=False, **options).retcode.successful


@pytest.mark.parametrize("steps", [False, True])
def test_saved_times_and_both_sides_of_an_effect(steps):
    bounce = Event(height, terminal=False, direction=-1, effect=lambda t, y: torch.stack([y[0], -0.5 * y[1]]))
    found = []
    for backend in ("torch", "julia"):
        save = SaveAt(steps=True) if steps else SaveAt(ts=[0.5, 1.0, 1.5])
        sol = pynode.solve(fall, state(1.0, 0.0), [0.0, 1.9], events=bounce, saveat=save, backend=backend)
        assert len(sol.events) == 1
        found.append(sol)
    if steps:
        assert (found[1].ts[1:] >= found[1].ts[:-1]).all()
        at = (found[1].ts - 1.0).abs().argsort()[:2]  # its own row before and after
        assert sorted(found[1].ys[at, 1].tolist()) == pytest.approx([-2.0, 1.0], abs=1e-9)
    else:
        torch.testing.assert_close(found[1].ys, found[0].ys, rtol=0, atol=1e-10)
    torch.testing.assert_close(found[1](1.5), found[0](1.5), rtol=0, atol=1e-10)


def ball(inputs, backend, **options):
    h, gravity, restitution, end = inputs

    def f(t, y, gravity, restitution):
        return torch.stack([y[1], -gravity])

    def effect(t, y, gravity, restitution):
        return torch.stack([0 * y[0], -restitution * y[1]])

    bounce = Event(lambda t, y, *args: y[0], terminal=False, direction=-1, effect=effect)
    y0 = torch.stack([h, 0 * h])
    options = {"args": (gravity, restitution), "events": bounce, "rtol": 1e-9, "atol": 1e-9, **options}
    return pynode.solve(f, y0, [0.0, 0.4, 1.3, end], backend=backend, **options)


def exact_ball(inputs):
    h, gravity, restitution, end = inputs
    t = torch.sqrt(2 * h / gravity)
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
    sol = ball(inputs, "julia", sensealg=SENSEALGS[name])
    times, final = exact_ball(inputs)
    assert len(sol.events) == len(times) == 3
    for fired, time in zip(sol.events, times, strict=True):
        assert fired.t.item() == pytest.approx(time.item(), abs=1e-12)
        found = torch.autograd.grad(fired.t, inputs[:3], retain_graph=True, materialize_grads=True)
        expected = torch.autograd.grad(time, inputs[:3], retain_graph=True, materialize_grads=True)
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)
    for i in range(2):
        found = torch.autograd.grad(sol.ys[-1, i], inputs, retain_graph=True, materialize_grads=True)
        expected = torch.autograd.grad(final[i], inputs, retain_graph=True, materialize_grads=True)
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)
    assert sol.stats.backward.nfe + sol.stats.backward.nvjp


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


def learned(backend, algorithm, rtol, **options):
    model, y0, t = Learned(), leaf([0.1, 0.2]), leaf([0.0, 0.3, 1.1, 1.8])
    cost = options.pop("cost", False)
    if cost:
        options["running_cost"] = lambda t, y: (y * y).sum()
    event = Event(model.condition, terminal=False, effect=model.effect, direction=1)
    sol = pynode.solve(
        model, y0, t, algorithm=algorithm, rtol=rtol, atol=rtol, events=event, backend=backend, **options
    )
    assert sol.events
    loss = (sol.ys.sin() * torch.linspace(0.5, 1.5, 8, dtype=T).view(4, 2)).sum() + sum(x.t**2 for x in sol.events)
    loss = loss + sol.running_cost if cost else loss
    return [loss.detach(), *torch.autograd.grad(loss, [y0, t, *model.parameters()])]


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        ("Tsit5", {}),
        ("Tsit5", {"cost": True}),
        ("Tsit5", {"sensealg": pynode.QuadratureAdjoint()}),
        ("Tsit5", {"sensealg": pynode.BacksolveAdjoint()}),
        ("Rodas5P", {}),
    ],
)
def test_every_input_against_the_torch_backend(algorithm, options):
    """Of a solve of the same problem a thousand times finer, whose own gradients are held against finite differences in
    ``tests/test_event_gradients.py``; 100 tolerances of the size of what is added up in each, about 1 or more."""
    truth = learned("torch", "Vern9", 1e-11, **({"cost": True} if "cost" in options else {}))
    found = learned("julia", algorithm, 1e-8, **options)
    for x, expected in zip(found, truth, strict=True):
        assert (x - expected).norm() <= 100 * 1e-8 * max(expected.norm().item(), 1.0), (x, expected)


def test_a_called_back_field_has_events_too():
    from pynode.julia.routes import callbacks

    truth = learned("torch", "Vern9", 1e-11)
    with callbacks():
        found = learned("julia", "Tsit5", 1e-8)
    for x, expected in zip(found, truth, strict=True):
        assert (x - expected).norm() <= 100 * 1e-8 * max(expected.norm().item(), 1.0), (x, expected)


def test_fixed_steps_are_the_torch_backends():
    model = Learned()
    event = Event(model.condition, terminal=False, effect=model.effect, direction=1)
    ends = [
        pynode.solve(model, state(0.1, 0.2), [0.0, 1.8], algorithm=pynode.RK4(dt=0.05), events=event, backend=backend)
        for backend in ("torch", "julia")
    ]
    # The same steps but for the dense output between them, of order 3 or 4, in which the event is found: h^4 = 6e-6.
    assert len(ends[0].events) == len(ends[1].events) >= 1
    torch.testing.assert_close(ends[1].ys, ends[0].ys, rtol=0, atol=1e-5)


def test_ends_of_fixed_steps_move_with_the_start():
    """The row of a step's end is the state there, at a time that moves with the times of the mesh."""
    found = []
    for backend in ("torch", "julia"):
        t = leaf([0.0, 1.8])
        options = {"algorithm": pynode.RK4(dt=0.1), "saveat": SaveAt(steps=True), "backend": backend}
        sol = pynode.solve(Learned(), leaf([0.1, 0.2]), t, events=Event(lambda t, y: y[0] - 0.6), **options)
        found.append((sol.events[0].t, torch.autograd.grad(sol.ys[-1].sum() + sol.events[0].t, t)[0]))
        assert len(sol.ts) == len(sol.ys)
    # RK4's own error, and the adjoint's, are of the order of 0.1^4; its gradient by the times too.
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3)


def test_failures_and_limits():
    def blow_up(t, y):
        return y * y

    sol = pynode.solve(
        blow_up, state(1.0), [0.0, 2.0], events=Event(lambda t, y: y[0] + 1), backend="julia", throw=False
    )
    assert not sol.retcode.successful
    assert 0.5 < sol.span[1] <= 1.0 + 1e-4  # it blows up at 1, the solution's 1 / y being off by some rtol = 1e-5
    with pytest.raises(ZeroDivisionError):
        pynode.solve(fall, state(1.0, 0.0), [0.0, 2.0], events=Event(lambda t, y: y[0] / (1 // 0)), backend="julia")
    sol = pynode.solve(
        fall, state(1.0, 0.0), [0.0, 5.0], events=Event(height), backend="julia", max_steps=1, throw=False
    )
    assert sol.retcode is ReturnCode.MaxIters
