"""Stabilised explicit methods: their coefficients against the theory, and what they are for, the heat equation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import pynode
from pynode import RKC, ROCK2, ROCK4, Tsit5
from pynode.errors import GradientError, InputError, UnsupportedError
from pynode.julia.names import expression_of
from pynode.native.chebyshev import SCHEMES, Chebyshev
from pynode.native.spectral_radius import spectral_radius
from pynode.native.stabilized import Stabilized
from pynode.problem import ODEProblem
from pynode.sensealg import (
    BacksolveAdjoint,
    CheckpointedAdjoint,
    DirectAdjoint,
    ForwardSensitivity,
    GaussAdjoint,
    InterpolatingAdjoint,
    QuadratureAdjoint,
)
from pynode.solution import Counts

F64 = torch.float64
METHODS = (RKC, ROCK2, ROCK4)
every_method = pytest.mark.parametrize("method", METHODS, ids=[m.__name__ for m in METHODS])
#: Those after which the next polynomial of the tables is taken, and some between.
STAGES = {"RKC": (2, 3, 7, 30, 200, 1000), "ROCK2": range(3, 201, 3), "ROCK4": range(5, 153, 3)}


def run(method: Chebyshev, z: np.ndarray) -> np.ndarray:
    """One step of size 1 of y' = z y from 1: the stability polynomial."""
    before, state = np.ones_like(z), 1.0 + method.first * z
    for mu, a, b, c, d in method.rows:
        before, state = state, mu * z * state + a * state + b * before + c + d * z
    ks: list[np.ndarray] = []
    for row in method.finish_a:
        ks.append(z * (state + sum((w * k for w, k in zip(row, ks, strict=True)), 0.0)))
    return state + sum((w * k for w, k in zip(method.finish_b, ks, strict=True)), 0.0)


# Coefficients


@every_method
def test_steps_are_stable_as_far_as_the_number_of_stages_says(method):
    """|R(-x)| <= 1 up to the largest x for which that many stages are taken, where 1.2 is left for an estimate of rho
    that is too small; rounding grows like s^2 U there. The published intervals of the ROCK methods end up to 0.5 % too
    late, and some of ROCK4's polynomials with over 120 stages ripple by 0.8 % above one."""
    ripple = 0.008 if method is ROCK4 else 0.0
    scheme = SCHEMES[method.__name__]
    for s in STAGES[method.__name__]:
        reach = scheme.reach(s)
        assert scheme.needed(reach * (1 - 1e-12)) <= s < scheme.needed(reach * (1 + 1e-12))
        x = reach / (1.0 if method is RKC else 1.01) * np.sin(np.linspace(1e-3, math.pi / 2, 1000)) ** 2
        assert np.abs(run(scheme.method(s), -x)).max() <= 1.0 + 10 * s**2 * 2.0**-53 + ripple


@every_method
def test_the_stability_polynomial_has_the_order_of_the_method(method):
    """R(z) = exp(z) + C z^(p+1) + O(z^(p+2)): halving z divides the difference by 2^(p+1), up to O(z) = 0.1."""
    scheme = SCHEMES[method.__name__]
    for s in STAGES[method.__name__]:
        z = np.array([-0.4, -0.2, -0.1])
        error = np.abs(run(scheme.method(s), z) - np.exp(z))
        # ROCK4's published coefficients have 15 digits: there is no more to see below 1e-13 s^2.
        assert error[2] > 1e-13 * s**2 or method is RKC or s > 100
        slopes = np.log2(error[:-1] / error[1:])
        assert np.all(np.abs(slopes - (scheme.order + 1)) < 0.35), (s, slopes)


@every_method
@pytest.mark.parametrize("stages", [5, 17, 60])
def test_the_order_on_a_nonlinear_field_that_depends_on_time(method, stages):
    """With the number of stages held, errors fall by 2^p when the steps are halved."""

    def f(t, y):
        return torch.stack([-y[0] * y[1] + torch.cos(t), y[0] - y[1] ** 2 * t])

    y0 = torch.tensor([1.0, 0.5], dtype=F64)
    exact = pynode.solve(f, y0, [0.0, 1.0], algorithm=pynode.Vern9(), rtol=1e-13, atol=1e-14).ys[-1]
    scheme = SCHEMES[method.__name__]
    errors = []
    for steps in (16, 32, 64):
        radius = 0.999 * scheme.reach(stages) * steps
        field = ODEProblem(f, y0, [0.0, 1.0]).field(Counts())
        stepper = Stabilized(method(eigen_est=lambda t, y, radius=radius: radius), field)
        y = y0
        stepper.begin(0.0, y)
        for i in range(steps):
            y = stepper.attempt(i / steps, 1 / steps, y, 0.0, (i + 1) / steps)
            stepper.advance((i + 1) / steps, y)
        errors.append((y - exact).abs().max().item())
    for coarse, fine in itertools.pairwise(errors):
        assert abs(math.log2(coarse / fine) - scheme.order) < 0.15


def test_every_number_of_stages_has_coefficients():
    for name, most in (("ROCK2", 200), ("ROCK4", 152)):
        scheme = SCHEMES[name]
        for s in range(1, most + 1):
            method = scheme.method(s)
            assert len(method.rows) + 1 + len(method.finish_b) >= s
            assert all(0.0 < c <= 1.0 for c in method.times)
            assert list(method.times) == sorted(method.times)


# The spectral radius


def test_the_spectral_radius_of_matrices():
    torch.manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(20, 20, dtype=F64))
    matrix = q @ torch.diag(-torch.logspace(-2, 4, 20, dtype=F64)) @ q.t()
    y = torch.randn(20, dtype=F64)
    z, radius = spectral_radius(lambda x: matrix @ x, y, matrix @ y)
    assert radius == pytest.approx(1e4, rel=0.01)
    calls = []
    spectral_radius(lambda x: calls.append(1) or matrix @ x, y + 0.1, matrix @ (y + 0.1), (z, radius))
    assert len(calls) == 1  # known already


def test_the_spectral_radius_where_the_slope_is_an_eigenvector_of_another():
    matrix = torch.diag(torch.tensor([-1.0, -900.0], dtype=F64))
    y = torch.tensor([1.0, 0.0], dtype=F64)
    assert spectral_radius(lambda x: matrix @ x, y, matrix @ y)[1] == pytest.approx(900.0, rel=0.01)


def test_the_spectral_radius_of_a_rotation_and_of_nothing():
    skew = torch.tensor([[0.0, 30.0], [-30.0, 0.0]], dtype=F64)
    y = torch.tensor([0.0, 0.0], dtype=F64)
    assert spectral_radius(lambda x: skew @ x, y, y)[1] == pytest.approx(30.0, rel=0.01)
    constant = torch.tensor([3.0, 4.0], dtype=F64)
    assert spectral_radius(lambda x: constant, y, constant)[1] == 0.0
    assert math.isnan(spectral_radius(lambda x: x * math.nan, y, constant)[1])


# The heat equation

N = 60
X = torch.linspace(0, 1, N + 2, dtype=F64)[1:-1]
DX = 1.0 / (N + 1)
LAPLACE = (
    torch.diag(torch.full((N,), -2.0)) + torch.diag(torch.ones(N - 1), 1) + torch.diag(torch.ones(N - 1), -1)
).to(F64) / DX**2
RADIUS = 4.0 / DX**2
SMOOTH = torch.sin(math.pi * X)
ROUGH = (X > 0.5).double()


def heat(t, u):
    return LAPLACE @ u


@every_method
@pytest.mark.parametrize("u0", [SMOOTH, ROUGH], ids=["smooth", "rough"])
def test_the_heat_equation_takes_far_fewer_evaluations_than_an_explicit_method(method, u0):
    """Tsit5 is held to steps of 3.5 / rho, six evaluations each: 6 * 0.1 * rho / 3.5 = 2 550 of them. With s stages a
    step of h takes s = sqrt(h rho / 0.35) at most: one of 0.02 takes 30."""
    exact = torch.linalg.matrix_exp(0.1 * LAPLACE) @ u0
    options = {"rtol": 1e-4, "atol": 1e-4}
    sol = pynode.solve(heat, u0, [0.0, 0.1], algorithm=method(), **options)
    plain = pynode.solve(heat, u0, [0.0, 0.1], algorithm=Tsit5(), controller=pynode.IController(), **options)
    assert plain.stats.forward.nfe > 2500
    assert sol.stats.forward.nfe < plain.stats.forward.nfe / 3
    # Local errors of at most tol = 1e-4 (1 + 1) sqrt(N) each, which diffusion does not amplify.
    assert (sol.ys[-1] - exact).abs().max() <= sol.stats.forward.accepted * 2e-4 * N**0.5


@every_method
def test_single_precision(method):
    exact = torch.linalg.matrix_exp(0.1 * LAPLACE) @ ROUGH
    laplace = LAPLACE.float()
    sol = pynode.solve(lambda t, u: laplace @ u, ROUGH.float(), [0.0, 0.1], algorithm=method(), rtol=1e-3, atol=1e-3)
    assert sol.ys.dtype == torch.float32
    assert sol.stats.forward.nfe < 800
    assert (sol.ys[-1] - exact).abs().max() <= sol.stats.forward.accepted * 2e-3 * N**0.5


@every_method
def test_backward_in_time(method):
    sol = pynode.solve(lambda t, u: -heat(t, u), SMOOTH, [0.1, 0.0], algorithm=method(), rtol=1e-6, atol=1e-6)
    exact = torch.linalg.matrix_exp(0.1 * LAPLACE) @ SMOOTH
    assert (sol.ys[-1] - exact).abs().max() <= sol.stats.forward.accepted * 2e-6 * N**0.5


@every_method
def test_a_given_spectral_radius_costs_no_evaluations(method):
    options = {"rtol": 1e-4, "atol": 1e-4}
    seen = []

    def bound(t, y):
        seen.append((t.shape, y["u"].shape))
        return 1.2 * RADIUS

    def f(t, y):
        return {"u": heat(t, y["u"])}

    given = pynode.solve(f, {"u": ROUGH}, [0.0, 0.1], algorithm=method(eigen_est=bound), **options)
    estimated = pynode.solve(heat, ROUGH, [0.0, 0.1], algorithm=method(), **options)
    assert set(seen) == {(torch.Size(()), ROUGH.shape)}
    assert given.stats.forward.nfe < estimated.stats.forward.nfe
    torch.testing.assert_close(given.ys["u"][-1], estimated.ys[-1], rtol=0, atol=2e-3)


@every_method
def test_few_stages_make_shorter_steps(method):
    most = 20
    sol = pynode.solve(heat, SMOOTH, [0.0, 0.1], algorithm=method(max_stages=most), rtol=1e-3, atol=1e-3)
    reach = SCHEMES[method.__name__].reach(most)
    assert sol.stats.forward.accepted >= 0.1 * RADIUS / reach
    # Attempts that would need more stages cost nothing: accepted steps with the stages of the next table entry, an
    # estimate each (the first one takes up to 50), and those rejected for their error.
    assert sol.stats.forward.nfe <= 60 + (sol.stats.forward.accepted + 20) * (most + 3)


@every_method
def test_cubic_dense_output(method):
    """Hermite's cubic of a step: its error falls by 2^4 when the step is halved."""
    y0 = torch.tensor([1.0], dtype=F64)
    errors = []
    for h in (0.2, 0.1, 0.05):
        field = ODEProblem(lambda t, y: -y * torch.cos(t), y0, [0.0, 1.0]).field(Counts())
        stepper = Stabilized(method(min_stages=60), field)
        stepper.begin(0.0, y0)
        y1 = stepper.attempt(0.0, h, y0)
        inner = stepper.interpolate([0.3])[0]
        ends = [1.0, math.exp(-math.sin(h))]
        x = 0.3
        through = y1.item() * x * x * (3 - 2 * x) + ends[0] * (1 - x * x * (3 - 2 * x))
        slopes = h * (-x * (1 - x) ** 2 - x * x * (x - 1) * math.cos(h) * y1.item())
        assert inner.item() == pytest.approx(through + slopes, abs=1e-14)  # that it is the cubic
        exact = ends[0] * (1 - x * x * (3 - 2 * x)) + ends[1] * x * x * (3 - 2 * x)
        exact += h * (-x * (1 - x) ** 2 - x * x * (x - 1) * math.cos(h) * ends[1])
        errors.append(abs(exact - math.exp(-math.sin(0.3 * h))))
    for coarse, fine in itertools.pairwise(errors):
        assert abs(math.log2(coarse / fine) - 4) < 0.3


# Gradients


@every_method
def test_gradients_of_the_heat_equation(method):
    """Against the derivatives of the exact solution: its sensitivities have local errors of the tolerance, too, in all
    directions that the error estimate has seen. Rough perturbations of a smooth initial state are not among them."""
    diffusivity = torch.tensor(0.7, dtype=F64, requires_grad=True)
    u0 = SMOOTH.clone().requires_grad_()
    t = torch.tensor([0.0, 0.02, 0.1], dtype=F64, requires_grad=True)
    weights = torch.cos(3 * X)

    def loss(ys):
        return (ys @ weights).square().sum()

    sol = pynode.solve(lambda t, u: diffusivity * heat(t, u), u0, t, algorithm=method(), rtol=1e-7, atol=1e-7)
    found = torch.autograd.grad(loss(sol.ys), [u0, diffusivity, t])
    exact = torch.stack([torch.linalg.matrix_exp(diffusivity * (x - t[0]) * LAPLACE) @ u0 for x in t])
    expected = torch.autograd.grad(loss(exact), [u0, diffusivity, t])
    along_u0 = torch.dot(found[0], SMOOTH), torch.dot(expected[0], SMOOTH)
    for a, b in (along_u0, *zip(found[1:], expected[1:], strict=True)):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * b.abs().max().item())


@every_method
@pytest.mark.parametrize("checkpoints", [None, 3])
def test_replayed_steps_are_the_steps_taken(method, checkpoints):
    """A stiff field whose spectral radius changes along the solution: the number of stages has to be found again."""
    scale = torch.tensor([2.0], dtype=F64, requires_grad=True)
    gradients = []
    for sensealg in (DirectAdjoint(), CheckpointedAdjoint(checkpoints)):
        sol = pynode.solve(
            lambda t, u: scale * (1 + u.square()) * heat(t, u) * 0.1,
            ROUGH,
            [0.0, 0.3],
            algorithm=method(),
            rtol=1e-3,
            atol=1e-3,
            sensealg=sensealg,
        )
        assert sol.stats.forward.accepted > 5
        gradients.append(torch.autograd.grad(sol.ys[-1].square().sum(), scale)[0])
    # The same operations; their sums in another order.
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=0)


CONTINUOUS = (BacksolveAdjoint, InterpolatingAdjoint, QuadratureAdjoint, GaussAdjoint, ForwardSensitivity)


@pytest.mark.parametrize("sensealg", CONTINUOUS, ids=[s.__name__ for s in CONTINUOUS])
def test_every_sensitivity_algorithm(sensealg):
    w = torch.tensor([[-1.0, 0.3], [0.2, -2.0]], dtype=F64, requires_grad=True)
    y0 = torch.tensor([1.0, 0.5], dtype=F64, requires_grad=True)

    def gradient(chosen, algorithm):
        sol = pynode.solve(
            lambda t, y: torch.tanh(w @ y), y0, [0.0, 1.0], algorithm=algorithm, rtol=1e-4, atol=1e-4, sensealg=chosen
        )
        value = sol(torch.tensor([0.4], dtype=F64)) if chosen.name == "ForwardSensitivity" else sol.ys[-1:]
        return torch.autograd.grad((value + sol.ys[-1:]).square().sum(), [y0, w])

    reference = CheckpointedAdjoint() if sensealg is not ForwardSensitivity else ForwardSensitivity()
    expected = gradient(reference, pynode.Vern9())  # of order 9, its errors are not seen
    # About 20 steps with local errors of 1e-4 (1 + |y|) in each of the two solves; |df/dy| < 2.3 over a span of 1.
    for a, b in zip(gradient(sensealg(), ROCK4()), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2 * 20 * 2e-4 * math.exp(2.3))


def test_second_derivatives_are_refused():
    y0 = torch.tensor([1.0], dtype=F64, requires_grad=True)
    sol = pynode.solve(lambda t, y: -(y**2), y0, [0.0, 1.0], algorithm=ROCK2())
    (first,) = torch.autograd.grad(sol.ys[-1].sum(), y0, create_graph=True)
    with pytest.raises(GradientError, match="DirectAdjoint"):
        torch.autograd.grad(first.sum(), y0)


def test_torch_func():
    def end(x):
        return pynode.solve(lambda t, y: -(y**2), x, [0.0, 1.0], algorithm=ROCK4(), rtol=1e-4, atol=1e-4).ys[-1]

    rows = torch.tensor([[1.0], [2.0]], dtype=F64)
    jacobians = torch.func.vmap(torch.func.jacrev(end))(rows)
    torch.testing.assert_close(jacobians[:, :, 0], 1 / (1 + rows) ** 2, rtol=1e-2, atol=0)


# Bad input


def test_options_are_checked():
    with pytest.raises(InputError, match="min_stages"):
        ROCK2(min_stages=50, max_stages=20)
    with pytest.raises(InputError, match="200"):
        ROCK2(max_stages=201)
    with pytest.raises(InputError, match="integer"):
        ROCK4(min_stages=5.5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="spectral radius"):
        RKC(eigen_est=3.0)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="eigen_est returned"):
        pynode.solve(heat, SMOOTH, [0.0, 0.1], algorithm=RKC(eigen_est=lambda t, y: -1.0))


def test_a_nan_region_is_a_failure_not_a_number():
    sol = pynode.solve(
        lambda t, y: -torch.log(y), torch.tensor([0.5], dtype=F64), [0.0, -5.0], algorithm=ROCK2(), throw=False
    )
    assert not sol.retcode.successful
    assert sol.ys.isfinite().all()


def test_what_julia_is_told():
    assert expression_of(RKC()) == "RKC()"
    assert expression_of(ROCK2()) == "ROCK2()"
    assert expression_of(ROCK4(min_stages=6, max_stages=100)) == "ROCK4(min_stages = 6, max_stages = 100)"
    with pytest.raises(UnsupportedError, match="eigen_est"):
        expression_of(ROCK2(eigen_est=lambda t, y: 1.0))
    with pytest.raises(UnsupportedError, match="max_stages"):
        expression_of(RKC(max_stages=20))
