"""The reversible algorithms: order, tolerance, running backward; and their gradients, by every way there is."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from problems import BY_NAME
from test_gradients import checked, leaf, projected, rhs, weights

import pynode
from pynode import (
    AsynchronousLeapfrog,
    BacksolveAdjoint,
    CheckpointedAdjoint,
    DirectAdjoint,
    GradientError,
    ReversibleAdjoint,
    ReversibleHeun,
    SaveAt,
)
from pynode.layout import Layout
from pynode.native.reversible import REVERSIBLE
from pynode.problem import Field
from pynode.solution import Counts

each_algorithm = pytest.mark.parametrize("cls", [ReversibleHeun, AsynchronousLeapfrog])
each_exact = pytest.mark.parametrize(
    "sensealg",
    [ReversibleAdjoint(), CheckpointedAdjoint(), *(CheckpointedAdjoint(checkpoints=k) for k in (2, 3, 5, 17))],
    ids=["reversible", "checkpointed", "2", "3", "5", "17"],
)


# The methods. Orders on fixed meshes, of states and of dense output: tests/test_algorithms.py.


@each_algorithm
def test_the_error_follows_the_tolerance(cls):
    """The estimate is O(h^2): h ~ tol^(1/2), and the global error h^2 ~ tol. Half of that exponent is asked, and the
    bound of N steps with errors below tol (1 + |y|) each, amplified by the problem's growth."""
    problem = BY_NAME["oscillator"]
    errors = []
    for tolerance in (1e-2, 1e-4):
        sol = pynode.solve(
            problem.f, problem.y0(), problem.times(3), algorithm=cls(adaptive=True), rtol=tolerance, atol=tolerance
        )
        errors.append(problem.error(sol.ts, sol.ys))
        assert errors[-1] <= sol.stats.forward.accepted * problem.growth * tolerance * 2 * math.sqrt(2)
        # One evaluation a step, one to begin, one for Hairer's first step.
        assert sol.stats.forward.nfe == sol.stats.forward.accepted + sol.stats.forward.rejected + 2
    assert errors[1] <= errors[0] * 100**-0.5


@each_algorithm
@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["ahead", "back"])
def test_a_thousand_steps_run_backward_to_rounding(cls, sign):
    """A rotation, under which nothing grows: N steps of a few operations each on numbers below 2, forward and back."""
    y0 = torch.tensor([1.0, -0.5], dtype=torch.float64)
    field = Field(lambda t, y: torch.stack([y[1], -y[0]]) * (1 + 0.5 * torch.cos(t)), (), Layout(y0), Counts())
    stepper = REVERSIBLE[cls.__name__](field)
    mesh = [sign * 0.01 * n for n in range(1001)]
    stepper.begin(mesh[0], y0)
    states, y = [(y0, *stepper.carried())], y0
    for t, t1 in itertools.pairwise(mesh):
        y = stepper.attempt(t, t1 - t, y, 0.0, t1)
        stepper.advance(t1, y)
        states.append((y, *stepper.carried()))
    assert (y - y0).abs().max() > 0.1
    back = states[-1]
    for n in range(999, -1, -1):
        back = stepper.reverse(mesh[n], mesh[n + 1], back)
        for found, expected in zip(back, states[n], strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1000 * 10 * 2 * 1.1e-16)
    assert field.counts.nfe == 2001


@each_algorithm
def test_fixed_steps_cost_one_evaluation_and_dense_output_none(cls):
    f = lambda t, y: torch.cos(t) * y  # noqa: E731
    sol = pynode.solve(f, torch.ones(2, dtype=torch.float64), [0.0, 0.35, 1.0], algorithm=cls(steps=8))
    assert sol.stats.forward.nfe == 9
    assert torch.equal(sol(0.0), sol.ys[0])
    # The ends of a cubic in the step are its states up to rounding.
    torch.testing.assert_close(sol(1.0), sol.ys[-1], rtol=0, atol=1e-15)
    # h = 1/8, |y'''| < 8: the slope of the cubic through two points is off by less than h^2 |y'''|.
    torch.testing.assert_close(sol.derivative(0.3), f(torch.tensor(0.3), sol(0.3)), rtol=0, atol=8 / 64)


@each_algorithm
def test_linear_interpolation(cls):
    sol = pynode.solve(
        lambda t, y: -y, torch.ones(1, dtype=torch.float64), [0.0, 1.0], algorithm=cls(steps=1, interpolation="linear")
    )
    torch.testing.assert_close(sol(0.25), 0.75 * sol.ys[0] + 0.25 * sol.ys[1], rtol=1e-15, atol=0)


@each_algorithm
@pytest.mark.parametrize("key", ["dt", "steps", "mesh", "perturb"])
def test_adaptive_steps_and_given_ones_exclude_each_other(cls, key):
    value = {"dt": 0.1, "steps": 3, "mesh": lambda t: t, "perturb": True}[key]
    with pytest.raises(pynode.InputError, match=rf"adaptive=True\) got {key}"):
        cls(adaptive=True, **{key: value})


# Gradients against the tape


def every_gradient(sensealg, algorithm, jumps=(), **options):
    y0, w, a, t = leaf(0.5, -0.3), weights(), leaf(0.4), leaf(0.0, 0.3, 1.2)
    if options.pop("reversed", False):
        t = leaf(1.2, 0.9, 0.0)
    f = lambda t, y, a: rhs(t, y, w, a) + 0.3 * (t > 0.5)  # noqa: E731
    sol = pynode.solve(f, y0, t, args=(a,), algorithm=algorithm, sensealg=sensealg, d_discontinuities=jumps, **options)
    values = projected(sol.ys)
    if options.get("saveat") == SaveAt(dense=True):
        values = values + projected(sol(torch.tensor([0.61, 0.05, 0.6], dtype=torch.float64)))
    return [*torch.autograd.grad(values.pow(2).sum(), [y0, w, a, t], retain_graph=True)], values, (y0, w, a, t)


def mesh_with_the_jump(t):
    return torch.stack([t[0], (t[0] + t[1]) / 2, t[1], 0 * t[1] + 0.5, 0.3 * t[1] + 0.7 * t[2], t[2]])


CASES = {
    "steps": lambda cls: (cls(steps=13), {}),
    "t": lambda cls: (cls(), {}),
    "reversed": lambda cls: (cls(steps=13), {"reversed": True}),
    "every": lambda cls: (cls(steps=13), {"saveat": SaveAt(steps=True)}),
    "own": lambda cls: (cls(dt=0.13), {"saveat": leaf(0.11, 0.64, 1.0)}),
    "dense": lambda cls: (cls(steps=13), {"saveat": SaveAt(dense=True)}),
    "jump": lambda cls: (cls(mesh=mesh_with_the_jump), {"jumps": (0.5,)}),
    "adaptive": lambda cls: (cls(adaptive=True), {"jumps": (0.5,), "rtol": 1e-3, "atol": 1e-3, "dt0": 0.1}),
}
# Sums in another order, and states that are off by the rounding of at most 50 steps forward and back, each a dozen
# operations; perturbations grow by at most exp(2 * 1.2) = 11 for the state and once more for the adjoint.
ROUNDING = 2 * 50 * 12 * 1.1e-16 * 11 * 11


@each_exact
@each_algorithm
@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_those_of_the_tape(cls, case, sensealg):
    algorithm, options = CASES[case](cls)
    expected, _, _ = every_gradient(DirectAdjoint(), algorithm, **options)
    found, values, leaves = every_gradient(sensealg, algorithm, **options)
    again = torch.autograd.grad(values.pow(2).sum(), leaves)
    for a, b, c in zip(found, expected, again, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=ROUNDING * max(1.0, b.abs().max().item()))
        torch.testing.assert_close(c, b, rtol=0, atol=ROUNDING * max(1.0, b.abs().max().item()))


@each_algorithm
@pytest.mark.parametrize("sensealg", [DirectAdjoint(), ReversibleAdjoint()], ids=lambda s: s.name)
def test_gradcheck(cls, sensealg):
    def solved(y0, w, t, s, a):
        f = lambda t, y, a: {"q": y["p"][0] * a, "p": (rhs(t, y["q"], w, a),)}  # noqa: E731
        y = {"q": y0, "p": (2 * y0,)}
        sol = pynode.solve(f, y, t, args=(a,), algorithm=cls(steps=3), sensealg=sensealg, saveat=s)
        return projected(sol.ys["q"], sol.ys["p"][0])

    checked(solved, (leaf(0.5, -0.3), weights(), leaf(0.0, 0.8), leaf(0.11, 0.45, 0.77), leaf(0.4)))


@each_algorithm
def test_gradient_in_bytes(cls):
    """A state of two doubles, with what is carried: 48 bytes for ReversibleHeun, 32 for the leapfrog."""
    size = 16 * (1 + REVERSIBLE[cls.__name__].carries)
    expected, _, _ = every_gradient(DirectAdjoint(), cls(steps=13))
    found, _, _ = every_gradient(CheckpointedAdjoint(max_memory=3 * size + 1), cls(steps=13))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=ROUNDING * max(1.0, b.abs().max().item()))
    with pytest.raises(pynode.InputError, match=rf"max_memory={2 * size - 1}.*{size} bytes.*two, {2 * size} bytes"):
        every_gradient(CheckpointedAdjoint(max_memory=2 * size - 1), cls(steps=13))


@each_algorithm
def test_backsolve_with_a_reversible_adjoint_algorithm(cls):
    """Order 2 with h = 1.2 / 400, errors amplified by at most 11 twice and third derivatives below 50."""
    expected, _, _ = every_gradient(DirectAdjoint(), cls(steps=400))
    found, _, _ = every_gradient(BacksolveAdjoint(), cls(steps=400))
    for a, b in zip(found[:3], expected[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=50 * 121 * (1.2 / 400) ** 2)


@each_algorithm
def test_a_constant_field_and_a_loss_on_inner_states(cls):
    w = leaf(0.7)
    sol = pynode.solve(
        lambda t, y: w * torch.cos(t) + 0 * y.detach(), leaf(0.5, -0.3), [0.0, 0.5, 1.0, 2.0],
        algorithm=cls(), sensealg=ReversibleAdjoint(),
    )  # fmt: skip
    (found,) = torch.autograd.grad(sol.ys[2].sum(), w)
    reference = pynode.solve(
        lambda t, y: w * torch.cos(t) + 0 * y.detach(), leaf(0.5, -0.3), [0.0, 0.5, 1.0, 2.0],
        algorithm=cls(), sensealg=DirectAdjoint(),
    )  # fmt: skip
    torch.testing.assert_close(found, torch.autograd.grad(reference.ys[2].sum(), w)[0], rtol=1e-14, atol=0)


# Refusals


@each_algorithm
def test_a_state_that_cannot_be_run_backward_is_noticed(cls):
    """y' = -8 y over 10: the rounding of the tiny final state grows by exp(80) on the way back."""
    y0 = leaf(1.0, 2.0)
    sol = pynode.solve(lambda t, y: -8 * y, y0, [0.0, 10.0], algorithm=cls(steps=2000), sensealg=ReversibleAdjoint())
    with pytest.raises(GradientError, match=r"run backward for ReversibleAdjoint.*CheckpointedAdjoint"):
        sol.ys[-1].sum().backward()


@pytest.mark.parametrize(
    ("algorithm", "what"),
    [(pynode.Tsit5(), "Tsit5, which cannot be run backward"), (ReversibleHeun(perturb=True), "perturb")],
    ids=["tsit5", "perturb"],
)
def test_other_algorithms_are_refused(algorithm, what):
    with pytest.raises(pynode.UnsupportedError, match=rf"ReversibleAdjoint with .*{what}"):
        pynode.solve(lambda t, y: -y, leaf(1.0, 2.0), [0.0, 1.0], algorithm=algorithm, sensealg=ReversibleAdjoint())


@pytest.mark.parametrize("checkpoints", [2, 3, 5, 17])
def test_dense_output_of_a_bounded_solve(checkpoints):
    """Before and after the gradient has used up what the solve had kept."""
    options = {"algorithm": pynode.RK4(steps=20)}
    f = lambda t, y: torch.sin(3 * t) - y**2  # noqa: E731
    times = torch.tensor([0.03, 0.97, 0.5, 0.5001, 1.0], dtype=torch.float64)
    sol = pynode.solve(f, leaf(0.5, -0.3), [0.0, 1.0], sensealg=CheckpointedAdjoint(checkpoints), **options)
    expected = pynode.solve(f, leaf(0.5, -0.3), [0.0, 1.0], **options)(times)
    assert torch.equal(sol(times), expected)
    sol.ys[-1].sum().backward()
    for _ in range(2):
        assert torch.equal(sol(times), expected)
