"""``perturb=True`` with the Adams methods for equal steps: nudged evaluations, history kept, and their gradients."""

from __future__ import annotations

import pytest
import torch

import pynode
from pynode import (
    BacksolveAdjoint,
    CheckpointedAdjoint,
    DirectAdjoint,
    ForwardSensitivity,
    GaussAdjoint,
    InterpolatingAdjoint,
    QuadratureAdjoint,
)

F64 = torch.float64
NAMES = ["ExplicitAdams", "ImplicitAdams"]
pytestmark = pytest.mark.filterwarnings("ignore:.*corrections of an Adams:RuntimeWarning")
every_method = pytest.mark.parametrize("name", NAMES)
both_directions = pytest.mark.parametrize("span", [(0.0, 1.0), (1.0, 0.0)], ids=["forward", "backward"])
#: Tight, so that corrections converge to far below what is compared.
TIGHT = {"rtol": 1e-9, "atol": 1e-9}


def field(t, y, a):
    return torch.tanh(a @ y) + torch.cos(3.0 * t)


def inputs():
    generator = torch.Generator().manual_seed(0)
    a = 0.5 * torch.randn(3, 3, generator=generator, dtype=F64)
    return torch.tensor([0.5, -0.3, 0.1], dtype=F64).requires_grad_(), a.requires_grad_()


@every_method
@both_directions
def test_a_smooth_field_is_looked_back_at_over_perturbed_boundaries(name, span):
    """A time moved by 1e-16 moves the solution by as much times the weights, below 1e2, and the growth, below ten;
    steps that begin anew, those of RK38, end 1e-7 from there."""
    y0, a = inputs()
    ends = [
        pynode.solve(field, y0.detach(), list(span), args=(a.detach(),), algorithm=algorithm, **TIGHT).ys[-1]
        for algorithm in (
            getattr(pynode, name)(steps=20, max_order=7, perturb=True),
            getattr(pynode, name)(steps=20, max_order=7),
            pynode.RK38(steps=20),
        )
    ]
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-13)
    assert (ends[2] - ends[1]).abs().max() > 1e-8


@every_method
@both_directions
def test_no_boundary_is_evaluated_at(name, span):
    seen = []

    def noted(t, y):
        seen.append(t.item())
        return -y

    algorithm = getattr(pynode, name)(steps=8, perturb=True)
    times = torch.linspace(*span, 33, dtype=F64)  # dense output evaluates, too
    pynode.solve(noted, torch.ones(2, dtype=F64), times[[0, -1]], saveat=times, algorithm=algorithm, **TIGHT)
    assert not set(seen) & set(torch.linspace(0.0, 1.0, 9, dtype=F64).tolist())


@every_method
@pytest.mark.parametrize("perturb", [False, True])
def test_nothing_is_looked_back_at_over_a_named_discontinuity(name, perturb):
    """y' = 1 before t = 1, -2 behind it: exact to rounding, inside the steps on both sides of it, too."""
    jump = lambda t, y: torch.where(t < 1.0, 1.0, -2.0) + 0.0 * y  # noqa: E731
    algorithm = getattr(pynode, name)(dt=0.125, perturb=perturb)
    times = torch.linspace(0.0, 2.0, 33, dtype=F64)
    y0 = torch.zeros(1, dtype=F64)
    sol = pynode.solve(jump, y0, [0.0, 2.0], saveat=times, algorithm=algorithm, d_discontinuities=[1.0])
    exact = torch.where(times < 1.0, times, 3.0 - 2.0 * times)
    torch.testing.assert_close(sol.ys[:, 0], exact, rtol=0, atol=1e-14)


@every_method
@pytest.mark.parametrize("interpolation", ["hermite", "linear"])
@pytest.mark.parametrize("options", [{}, {"checkpoints": 3}], ids=["kept", "recomputed"])
def test_the_discrete_adjoint_is_that_of_the_tape(name, interpolation, options):
    found = []
    for sensealg in (DirectAdjoint(), CheckpointedAdjoint(**options)):
        y0, a = inputs()
        t = torch.tensor([0.0, 0.37, 0.71, 1.0], dtype=F64, requires_grad=True)
        algorithm = getattr(pynode, name)(steps=15, perturb=True, interpolation=interpolation)
        ys = pynode.solve(field, y0, t, args=(a,), algorithm=algorithm, sensealg=sensealg, **TIGHT).ys
        found.append((ys, *torch.autograd.grad(ys.square().sum(), [y0, a, t])))
    for taped, replayed in zip(*found, strict=True):
        torch.testing.assert_close(replayed, taped, rtol=0, atol=1e-12)


@every_method
@pytest.mark.parametrize("options", [{}, {"checkpoints": 3}], ids=["kept", "recomputed"])
def test_repeated_steps_evaluate_at_no_boundary(name, options):
    seen = []

    def noted(t, y):
        seen.append(t.item())
        return -y

    y0 = torch.ones(2, dtype=F64, requires_grad=True)
    algorithm = getattr(pynode, name)(steps=8, perturb=True)
    sol = pynode.solve(noted, y0, [0.0, 1.0], algorithm=algorithm, sensealg=CheckpointedAdjoint(**options), **TIGHT)
    seen.clear()
    sol.ys.sum().backward()
    assert seen
    assert not set(seen) & set(torch.linspace(0.0, 1.0, 9, dtype=F64).tolist())


@every_method
def test_gradients_against_finite_differences(name):
    """Central differences with 1e-5: truncation 1e-10, rounding 1e-16 * 1e5 * 1e2. Converged corrections: so small
    tolerances that all four are made."""

    def loss(y0, a, t):
        algorithm = getattr(pynode, name)(steps=12, perturb=True, max_order=6)
        return pynode.solve(field, y0, t, args=(a,), algorithm=algorithm, **TIGHT).ys.square().sum()

    y0, a = inputs()
    t = torch.tensor([0.0, 1.0], dtype=F64, requires_grad=True)
    gradients = torch.autograd.grad(loss(y0, a, t), [y0, a, t])
    generator = torch.Generator().manual_seed(1)
    for index, (x, gradient) in enumerate(zip((y0, a, t), gradients, strict=True)):
        along = torch.randn(x.shape, generator=generator, dtype=F64)
        moved = []
        for sign in (1, -1):
            shifted = [y0.detach(), a.detach(), t.detach()]
            shifted[index] = x.detach() + sign * 1e-5 * along
            moved.append(loss(*shifted))
        torch.testing.assert_close((gradient * along).sum(), (moved[0] - moved[1]) / 2e-5, rtol=0, atol=1e-8)


@every_method
@pytest.mark.parametrize(
    "sensealg",
    [ForwardSensitivity(), GaussAdjoint(), QuadratureAdjoint(), InterpolatingAdjoint(), BacksolveAdjoint()],
    ids=lambda x: x.name,
)
def test_the_other_sensitivity_algorithms_look_back_too(name, sensealg):
    """Their sensitivities and adjoints are solutions of the same method, of errors below 1e-6 at 100 steps, and take as
    many evaluations as without nudges, but for one a step (before and behind a boundary are two times): begun anew,
    every step would take RK38's four, at least twice as many more."""
    found, evaluations = [], []
    for way, perturb in ((sensealg, True), (sensealg, False), (DirectAdjoint(), True)):
        y0, a = inputs()
        algorithm = getattr(pynode, name)(steps=100, max_order=6, perturb=perturb)
        sol = pynode.solve(field, y0, [0.0, 1.0], args=(a,), algorithm=algorithm, sensealg=way, **TIGHT)
        found.append(torch.autograd.grad(sol.ys[-1].square().sum(), [y0, a]))
        evaluations.append((sol.stats.forward.nfe, sol.stats.backward.nfe))
    assert evaluations[0][0] == evaluations[1][0]
    assert evaluations[0][1] <= evaluations[1][1] + 100
    for nudged, exact in zip(found[0], found[2], strict=True):
        torch.testing.assert_close(nudged, exact, rtol=0, atol=1e-6)


@every_method
def test_where_perturbed_steps_fail_is_found(name):
    algorithm = getattr(pynode, name)(steps=10, perturb=True)
    with pytest.raises(pynode.SolveError, match=r"t = 0\.[56]"):
        pynode.solve(
            lambda t, y: torch.where(t < 0.55, -y, torch.nan), torch.ones(1, dtype=F64), [0.0, 1.0], algorithm=algorithm
        )
