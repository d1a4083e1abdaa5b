"""Implicit Runge-Kutta methods at fixed steps: coefficients, orders, stability, exact gradients, failures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import pynode
from pynode import FixedImplicit, GradientError, InputError, SolveError, UnsupportedError, solve
from pynode.algorithms.fixed_implicit import SCHEMES
from pynode.native.fixed_implicit_tableaus import SCHEME_TABLEAUS

every_scheme = pytest.mark.parametrize("scheme", SCHEMES)


class Driven(torch.nn.Module):
    """A small network with a drive, nonlinear in everything."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.w = torch.nn.Parameter(torch.randn(2, 2, generator=generator, dtype=torch.float64))

    def forward(self, t, y):
        return torch.tanh(y @ self.w) * torch.cos(y.flip(-1)) + torch.sin(3 * t)


Y0 = torch.tensor([0.4, -0.7], dtype=torch.float64)


@every_scheme
def test_coefficients_satisfy_the_order_conditions(scheme):
    """Those of the quadrature, B(p), and the stage sums; with the measured slope below they fix the method."""
    tableau = SCHEME_TABLEAUS[scheme]
    a, b, c = (np.array(x) for x in (tableau.a, tableau.b, tableau.c))
    np.testing.assert_allclose(a.sum(1), c, atol=1e-15)
    for k in range(1, tableau.order + 1):
        assert b @ c ** (k - 1) == pytest.approx(1 / k, abs=1e-15)


@every_scheme
def test_the_error_falls_with_the_order(scheme):
    field, order = Driven(), SCHEME_TABLEAUS[scheme].order
    with torch.no_grad():
        exact = solve(field, Y0, [0.0, 1.0], algorithm=pynode.Vern9(), rtol=1e-13, atol=1e-13).ys[-1]
        counts = (8, 16) if order > 4 else (16, 32)
        errors = [
            (solve(field, Y0, [0.0, 1.0], algorithm=FixedImplicit(steps=n, scheme=scheme)).ys[-1] - exact).norm().item()
            for n in counts
        ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


@every_scheme
def test_a_stiff_decay_is_followed_at_steps_a_thousand_times_too_long_for_an_explicit_method(scheme):
    field = lambda t, y: -1e6 * (y - torch.cos(t))  # noqa: E731
    start = torch.ones(1, dtype=torch.float64)
    sol = solve(field, start, [0.0, 1.0], algorithm=FixedImplicit(steps=100, scheme=scheme))
    # Errors are those of a step of 0.01 along a smooth solution: h**2 at the worst, undamped from the start.
    assert sol.ys[-1].item() == pytest.approx(math.cos(1.0), abs=1e-3)


@pytest.mark.parametrize(("scheme", "sign"), [*((x, 1.0) for x in SCHEMES), ("trbdf2", -1.0)])
def test_gradients_are_exact_for_the_steps(scheme, sign):
    field = Driven()
    times = (sign * torch.tensor([0.0, 0.3, 0.7], dtype=torch.float64)).requires_grad_()
    y0 = Y0.clone().requires_grad_()

    def ends(y0, times, w):
        with torch.no_grad():
            field.w.copy_(w)
        call = lambda t, y, w: torch.tanh(y @ w) * torch.cos(y.flip(-1)) + torch.sin(3 * t)  # noqa: E731
        return solve(call, y0, times, args=(w,), algorithm=FixedImplicit(scheme=scheme)).ys

    assert torch.autograd.gradcheck(ends, (y0, times, field.w.detach().clone().requires_grad_()))


@pytest.mark.parametrize("scheme", ["implicit_midpoint", "trapezoid", "gl4"])
def test_the_tape_and_the_replay_agree_and_continuous_adjoints_come_close(scheme):
    field = Driven()
    found = {}
    for name, sensealg in {
        "direct": pynode.DirectAdjoint(),
        "checkpointed": pynode.CheckpointedAdjoint(),
        "gauss": pynode.GaussAdjoint(),
        "interpolating": pynode.InterpolatingAdjoint(),
        "backsolve": pynode.BacksolveAdjoint(reconstruction_rtol=None),
    }.items():
        y0 = Y0.clone().requires_grad_()
        algorithm = FixedImplicit(steps=10, scheme=scheme)
        sol = solve(field, y0, [0.0, 0.5, 1.0], algorithm=algorithm, sensealg=sensealg)
        gradients = torch.autograd.grad((sol.ys**2).sum(), [y0, field.w])
        found[name] = torch.cat([g.reshape(-1) for g in gradients])
    torch.testing.assert_close(found["checkpointed"], found["direct"], rtol=1e-12, atol=1e-12)
    # Both are off the true gradient by a term of the method's order: h**p with h = 1/10, and a constant.
    bound = max(10.0 * 10.0 ** -SCHEME_TABLEAUS[scheme].order, 1e-6)
    for name in ("gauss", "interpolating", "backsolve"):
        assert (found[name] - found["direct"]).norm() <= bound * found["direct"].norm()


def test_a_state_of_many_channels_uses_batched_rows():
    n = 12
    field = lambda t, y: -y * torch.linspace(1.0, 2.0, n, dtype=torch.float64) + 0.1 * y.flip(0) ** 2  # noqa: E731
    start = torch.ones(n, dtype=torch.float64)
    sol = solve(field, start, [0.0, 1.0], algorithm=FixedImplicit(steps=20, scheme="gl6"))
    exact = solve(field, start, [0.0, 1.0], algorithm=pynode.Vern9(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sol.ys, exact.ys, rtol=1e-9, atol=1e-9)


def test_dense_output_is_the_cubic_or_the_line():
    field = Driven()
    exact = solve(field, Y0, [0.0, 1.0], algorithm=pynode.Vern9(), rtol=1e-12, atol=1e-12)
    for interpolation, order in (("hermite", 4), ("linear", 2)):
        errors = []
        for n in (8, 16):
            algorithm = FixedImplicit(steps=n, scheme="gl6", interpolation=interpolation)
            at = torch.linspace(0.03, 0.97, 47, dtype=torch.float64)
            errors.append((solve(field, Y0, [0.0, 1.0], algorithm=algorithm)(at) - exact(at)).abs().max().item())
        assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.5)


def test_a_step_that_newton_cannot_solve_fails_the_solve():
    """``k = (1 + h k)**2`` has no real solution for h > 1/4."""
    with pytest.raises(SolveError, match=r"Newton's method did not solve the stages .* lower the step") as caught:
        start = torch.ones(1, dtype=torch.float64)
        solve(lambda t, y: y * y, start, [0.0, 0.9], algorithm=FixedImplicit(steps=1, scheme="implicit_euler"))
    assert caught.value.retcode is pynode.ReturnCode.ConvergenceFailure


def test_second_derivatives_are_refused():
    for sensealg in (pynode.DirectAdjoint(), pynode.CheckpointedAdjoint()):
        y0 = Y0.clone().requires_grad_()
        sol = solve(Driven(), y0, [0.0, 1.0], algorithm=FixedImplicit(), sensealg=sensealg)

        def twice(sol=sol, y0=y0):
            (gradient,) = torch.autograd.grad(sol.ys.square().sum(), y0, create_graph=True)
            torch.autograd.grad(gradient.sum(), y0)

        with pytest.raises(GradientError):
            twice()


def test_transforms_are_refused():
    with pytest.raises(UnsupportedError, match=r"torch.func transform.*Tsit5"):
        torch.func.grad(lambda y: solve(Driven(), y, [0.0, 1.0], algorithm=FixedImplicit()).ys.sum())(Y0)


@pytest.mark.parametrize("options", [{"scheme": "gl8"}, {"max_iters": 0}, {"max_iters": 2.5}])
def test_what_is_no_method(options):
    with pytest.raises(InputError, match="FixedImplicit"):
        FixedImplicit(**options)
