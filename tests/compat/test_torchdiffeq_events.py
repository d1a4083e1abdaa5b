"""``event_fn=`` and ``odeint_event`` of the drop-in beside torchdiffeq's own."""

from __future__ import annotations

import functools

import pytest
import torch
import torchdiffeq
from torch import nn

import pynode
from pynode.compat import torchdiffeq as compat

T = torch.float64
BOTH = [torchdiffeq, compat]


class Ball(nn.Module):
    """torchdiffeq's example: a ball of learnable radius, gravity and absorption, its radius part of a tuple state."""

    def __init__(self):
        super().__init__()
        self.gravity = nn.Parameter(torch.tensor([9.8], dtype=T))
        self.log_radius = nn.Parameter(torch.tensor([0.2], dtype=T).log())
        self.t0 = nn.Parameter(torch.tensor([0.0], dtype=T))
        self.position = nn.Parameter(torch.tensor([10.0], dtype=T))
        self.speed = nn.Parameter(torch.tensor([0.3], dtype=T))
        self.absorption = nn.Parameter(torch.tensor([0.2], dtype=T))

    def forward(self, t, state):
        _, speed, log_radius = state
        return speed, -self.gravity, torch.zeros_like(log_radius)

    def event_fn(self, t, state):
        return state[0] - state[2].exp()

    def times(self, library, adjoint, count, **options):
        state, t0, found = (self.position, self.speed, self.log_radius), self.t0, []
        interface = library.odeint_adjoint if adjoint else library.odeint
        for _ in range(count):
            t0, solution = library.odeint_event(
                self, state, t0, event_fn=self.event_fn, odeint_interface=interface, **options
            )
            found.append(t0)
            position, speed, radius = (s[-1] for s in solution)
            state = position + 1e-7, -speed * (1 - self.absorption), radius
        return torch.stack(found), torch.cat([*state])


@pytest.mark.parametrize("adjoint", [False, True])
def test_the_bouncing_ball_has_torchdiffeqs_times_and_gradients(adjoint):
    found = []
    for library in BOTH:
        ball = Ball()
        times, state = ball.times(library, adjoint, 3, rtol=1e-9, atol=1e-10)
        weights = torch.tensor([1.0, -2.0, 0.5], dtype=T)
        gradients = torch.autograd.grad(weights @ times + weights @ state, list(ball.parameters()))
        found.append((times.detach(), state.detach(), gradients))
    # torchdiffeq brackets to atol, from where it starts again three times at speeds of about 10.
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-7)


class Decay(nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.6, dtype=T))

    def forward(self, t, y):
        return -self.rate * y + torch.sin(t)


METHODS = {
    "dopri5": {},
    "rk4": {"step_size": 0.01},
    "euler": {"step_size": 0.01, "interp": "cubic"},
}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_methods_directions_and_vector_valued_events(method, reverse):
    found = []
    for library in BOTH:
        model = Decay()
        y0 = torch.tensor([1.0, 2.0], dtype=T, requires_grad=True)
        t0 = torch.tensor(0.5, dtype=T, requires_grad=True)
        level = 1.3 if not reverse else 2.6

        def event_fn(t, y, level=level):
            return torch.stack([y[1] - level + 0.1 * t, y[0] + 5.0])

        t, y = library.odeint_event(
            model, y0, t0, event_fn=event_fn, reverse_time=reverse, method=method, options=METHODS[method]
        )
        assert t.shape == ()
        assert y.shape == (2, 2)
        assert bool(t < t0) == reverse
        gradients = torch.autograd.grad(t + y[-1].prod(), [y0, t0, model.rate])
        found.append((t.detach(), y.detach(), gradients))
    # Adaptive methods agree within their tolerance. torchdiffeq differentiates fixed steps at the event's time taken
    # for fixed, and shifts it by the field itself; the dense output's derivative differs from that by O(step).
    tolerance = 1e-5 if not METHODS[method] else 1e-3
    torch.testing.assert_close(found[1], found[0], rtol=tolerance, atol=tolerance)


def test_an_event_without_odeint_event_is_differentiated_at_a_fixed_time():
    gradients = []
    for library in BOTH:
        model = Decay()
        y0 = torch.tensor([2.0], dtype=T, requires_grad=True)
        t = torch.tensor([0.0, 1.0], dtype=T)
        event_t, y = library.odeint(model, y0, t, event_fn=lambda t, y: y - 1.5)
        assert not event_t.requires_grad
        gradients.append(torch.autograd.grad(y[-1].sum(), [y0, model.rate]))
        event_t, y = library.odeint_adjoint(model, y0, t, event_fn=lambda t, y: y - 1.5)
        (zero,) = torch.autograd.grad(event_t, y0, retain_graph=True)
        assert zero.item() == 0.0
        gradients.append(torch.autograd.grad(y[-1].sum(), [y0, model.rate]))
    torch.testing.assert_close(gradients[2:], gradients[:2], rtol=1e-6, atol=1e-6)


def test_an_event_that_is_true_at_the_start():
    for library in BOTH:
        y0 = torch.tensor([2.0], dtype=T)
        t, y = library.odeint(Decay(), y0, torch.tensor([0.5, 1.0], dtype=T), event_fn=lambda t, y: y[0] - 2.0)
        assert t.item() == 0.5
        assert y.tolist() == [[2.0], [2.0]]


def test_parameters_of_the_event_function_are_differentiated_too():
    level = torch.tensor(1.5, dtype=T, requires_grad=True)
    y0 = torch.tensor([2.0], dtype=T)
    t, _ = compat.odeint_event(
        lambda t, y: -y, y0, torch.tensor(0.0, dtype=T), event_fn=lambda t, y: y[0] - level, rtol=1e-10, atol=1e-12
    )
    # t = log(2 / level)
    assert torch.autograd.grad(t, level)[0].item() == pytest.approx(-1 / 1.5, rel=1e-8)


def test_mistakes(monkeypatch):
    monkeypatch.setattr("pynode.compat.torchdiffeq_events.FIXED_STEPS", 200)
    never = functools.partial(compat.odeint, Decay(), torch.ones(1, dtype=T), event_fn=lambda t, y: y.sum() + 9.0)
    t = torch.tensor([0.0, 1.0], dtype=T)
    with pytest.raises(ValueError, match=r"We require len\(t\) == 2"):
        never(torch.tensor([0.0, 1.0, 2.0], dtype=T))
    with pytest.raises(AssertionError, match="step_size"):
        never(t, method="rk4")
    with pytest.raises(RuntimeError, match="maximum number of iterations"):
        never(t, method="euler", options={"step_size": 1e-3})
    with pytest.raises(AssertionError, match="max_num_steps"):
        never(t, options={"max_num_steps": 20})
    with pytest.raises(pynode.FieldError, match="returned nothing"):
        compat.odeint(Decay(), torch.ones(1, dtype=T), t, event_fn=lambda t, y: None)
