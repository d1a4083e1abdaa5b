"""Adams methods with a fixed number of steps: orders on even and uneven steps, dense output, gradients, restarts."""

from __future__ import annotations

import math

import pytest
import torch
from problems import BY_NAME
from torch.autograd import gradcheck

import pynode
from pynode import CheckpointedAdjoint, DirectAdjoint, ForwardSensitivity, GaussAdjoint
from pynode.native.adams import ADAMS
from pynode.native.fixed_adams import adams_weights
from pynode.native.history import integration_weights

F64 = torch.float64
every_method = pytest.mark.parametrize("name", ADAMS)


def order_of(name: str) -> int:
    return int(name[3] if name.startswith("ABM") else name[2])


def uneven(t: torch.Tensor, steps: int) -> torch.Tensor:
    """Boundaries the steps between which vary smoothly by a factor of three."""
    x = torch.linspace(0.0, 1.0, steps + 1, dtype=F64)
    return t[0] + (t[-1] - t[0]) * (x + 0.25 / math.pi * torch.sin(2 * math.pi * x))


@pytest.mark.parametrize("count", range(1, 7))
@pytest.mark.parametrize("ahead", [False, True])
def test_weights_on_even_steps_are_the_classical_ones(count, ahead):
    nodes = torch.arange(int(ahead), int(ahead) - count, -1, dtype=F64)
    exact = torch.tensor(adams_weights(count, ahead), dtype=F64)
    # Condition numbers below 1e5, see integration_weights.
    torch.testing.assert_close(integration_weights(nodes, (1.0,))[0], exact, rtol=0, atol=1e5 * 1.1e-16)


@pytest.mark.parametrize("mesh", ["even", "uneven", "shorter last step"])
@pytest.mark.parametrize("direction", ["", ":reversed"])
@every_method
def test_order(name, direction, mesh):
    """The end error falls as h^p: the slope is nearer to p than to p - 1 or p - 2, which wrong weights would leave."""
    problem = BY_NAME["riccati" + direction]
    errors, counts = [], (150, 300)
    for n in counts:
        span = abs(problem.end - problem.start)
        options = {
            "even": {"steps": n},
            "uneven": {"mesh": lambda t, n=n: uneven(t, n)},
            "shorter last step": {"dt": span / (n + 0.4)},
        }[mesh]
        algorithm = getattr(pynode, name)(**options)
        sol = pynode.solve(
            problem.f, problem.y0(), problem.times(), algorithm=algorithm, saveat=pynode.SaveAt(steps=True)
        )
        errors.append((sol.ys - problem.exact(sol.ts)).square().mean().sqrt().item())
    assert abs(math.log2(errors[0] / errors[1]) - order_of(name)) < 0.5


@every_method
def test_dense_output_has_the_order_of_the_method_and_costs_nothing(name):
    problem, errors = BY_NAME["riccati"], []
    for n in (120, 240):
        algorithm = getattr(pynode, name)(steps=n)
        sol = pynode.solve(problem.f, problem.y0(), problem.times(4 * n - 2), algorithm=algorithm)
        errors.append((sol.ys - problem.exact(sol.ts)).square().mean().sqrt().item())
        # One evaluation a step, two corrected; five more in each of the first steps.
        per_step = 2 if ADAMS[name][1] else 1
        starts = ADAMS[name][0] - 1
        assert sol.stats.forward.nfe <= 1 + 6 * starts + per_step * (n - starts)
    assert abs(math.log2(errors[0] / errors[1]) - order_of(name)) < 0.5


@every_method
def test_the_derivative_of_dense_output(name):
    problem = BY_NAME["tracking"]
    sol = pynode.solve(problem.f, problem.y0(), problem.times(), algorithm=getattr(pynode, name)(steps=40))
    # Inside steps: at their ends the derivative jumps.
    times, h = problem.start + (torch.arange(40, dtype=F64) + 0.37) * (problem.end - problem.start) / 40, 1e-5
    difference = (sol(times + h) - sol(times - h)) / (2 * h)
    # h^2 |y'''| / 6 < 1e-7, |y'''| being below 1e3, and rounding 1e-15 / h.
    torch.testing.assert_close(sol.derivative(times), difference, rtol=0, atol=1e-7)


def f(t, y, a):
    return torch.stack([y[1] * a[0], -torch.sin(y[0]) * a[1] + torch.cos(t)])


def inputs() -> list[torch.Tensor]:
    return [torch.tensor(x, dtype=F64).requires_grad_() for x in ([0.3, -0.5], [1.1, 0.8], [0.0, 0.37, 1.0])]


@pytest.mark.parametrize("sensealg", [DirectAdjoint(), CheckpointedAdjoint(), CheckpointedAdjoint(checkpoints=3)])
@every_method
def test_gradients_of_state_arguments_and_times(name, sensealg):
    """Exact for the steps taken, the lengths of which depend on t; the middle time lies inside a step."""

    def solution(y0, a, t):
        algorithm = getattr(pynode, name)(mesh=lambda t: uneven(t, 8))
        return pynode.solve(f, y0, t, args=(a,), algorithm=algorithm, sensealg=sensealg).ys[1:]

    assert gradcheck(solution, inputs(), eps=1e-6, atol=1e-8, rtol=1e-6, fast_mode=True)


@pytest.mark.parametrize("sensealg", [ForwardSensitivity(), GaussAdjoint(), pynode.BacksolveAdjoint()])
def test_continuous_sensitivities(sensealg):
    """All three discretise the sensitivity equations by the same method, whose error at 200 steps is below 1e-7."""
    gradients = []
    for algorithm, way in ((pynode.ABM54(steps=200), sensealg), (pynode.Vern9(), CheckpointedAdjoint())):
        y0, a, t = inputs()
        ys = pynode.solve(f, y0, t.detach(), args=(a,), algorithm=algorithm, sensealg=way, rtol=1e-12, atol=1e-12).ys
        gradients.append(torch.autograd.grad(ys.square().sum(), [y0, a]))
    for found, exact in zip(*gradients, strict=True):
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-6)


@every_method
def test_nothing_is_looked_back_at_over_a_discontinuity(name):
    """y' = 1 before t = 1 and y' = -2 behind it: exact to rounding, unless the history reaches over it."""
    jump = lambda t, y: torch.where(t < 1.0, 1.0, -2.0) + 0.0 * y  # noqa: E731
    algorithm = getattr(pynode, name)(dt=0.125)
    sol = pynode.solve(jump, torch.zeros(1, dtype=F64), [0.0, 2.0], algorithm=algorithm, d_discontinuities=[1.0])
    torch.testing.assert_close(sol.ys[-1, 0].item(), -1.0, rtol=0, atol=1e-14)
    stairs = lambda t, y: torch.floor(t) + 0.0 * y  # noqa: E731
    algorithm = getattr(pynode, name)(dt=1.0, perturb=True)
    sol = pynode.solve(stairs, torch.zeros(1, dtype=F64), [0.0, 8.0], algorithm=algorithm)
    torch.testing.assert_close(sol.ys[-1, 0].item(), 28.0, rtol=1e-14, atol=0)


@every_method
def test_a_straight_line_where_it_is_asked_for(name):
    problem = BY_NAME["tracking"]
    algorithm = getattr(pynode, name)(steps=10, interpolation="linear")
    ends = pynode.solve(problem.f, problem.y0(), problem.times(11), algorithm=algorithm).ys
    sol = pynode.solve(problem.f, problem.y0(), problem.times(21), algorithm=algorithm)
    torch.testing.assert_close(sol.ys[1::2], (ends[1:] + ends[:-1]) / 2, rtol=1e-13, atol=1e-14)


def test_max_memory_counts_the_history():
    """A start of ABM54's steps is the state and four evaluations: six of them do not fit where two fit."""
    model = torch.nn.Linear(4, 4).double()
    for size, fits in ((2 * 5 * 32, True), (2 * 5 * 32 - 1, False)):
        call = {"algorithm": pynode.ABM54(steps=9), "sensealg": CheckpointedAdjoint(max_memory=size)}
        y0 = torch.ones(4, dtype=F64, requires_grad=True)
        if fits:
            pynode.solve(lambda t, y: model(y), y0, [0.0, 1.0], **call).ys.sum().backward()
        else:
            with pytest.raises(pynode.InputError, match="max_memory"):
                pynode.solve(lambda t, y: model(y), y0, [0.0, 1.0], **call)


@pytest.mark.parametrize("options", [{"max_order": 1}, {"max_order": 13}, {"max_order": 2.5}, {"max_order": True}])
def test_orders_that_make_no_sense_are_refused(options):
    with pytest.raises(pynode.InputError, match="from 2 to 12"):
        pynode.ExplicitAdams(**options)
    with pytest.raises(pynode.InputError, match="max_iters"):
        pynode.ImplicitAdams(max_iters=0)
