"""Rosenbrock methods: orders, stiff and differential-algebraic problems, gradients."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import pynode
from pynode import Rodas4, Rodas5P, Rosenbrock23
from pynode.errors import GradientError, InputError, UnsupportedError
from pynode.julia.names import expression_of
from pynode.native.error_norm import ErrorNorm
from pynode.native.rosenbrock import Rosenbrock
from pynode.native.rosenbrock_tableaus import ROSENBROCK
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
METHODS = (Rosenbrock23, Rodas4, Rodas5P)
every_method = pytest.mark.parametrize("method", METHODS, ids=[m.__name__ for m in METHODS])
algebraic_methods = pytest.mark.parametrize("method", METHODS[1:], ids=["Rodas4", "Rodas5P"])


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


def curved(t, y):
    return torch.stack([-y[0] * y[1] + torch.cos(t), y[0] - y[1] ** 2 * t])


def exact_curve(t: float) -> torch.Tensor:
    options = {"algorithm": pynode.Vern9(), "rtol": 1e-13, "atol": 1e-14}
    return pynode.solve(curved, tensor(1.0, 0.5), [0.0, t], **options).ys[-1]


def slopes_of(errors: list[float]) -> list[float]:
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]


def stepper_on(f, y0, method) -> Rosenbrock:
    return Rosenbrock(method(), ODEProblem(f, y0, [0.0, 1.0]).field(Counts()), False)


# Orders


@every_method
@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["forward", "reversed"])
def test_the_order_on_a_nonlinear_field_that_depends_on_time(method, sign):
    """Rodas4's error has a zero at coarse steps, so that its slope nears 4 from below."""

    def f(t, y):
        return sign * curved(sign * t, y)

    exact = exact_curve(1.0)
    errors = [
        (pynode.solve(f, tensor(1.0, 0.5), [0.0, sign], algorithm=method(steps=n)).ys[-1] - exact).abs().max().item()
        for n in ((128, 256) if method is Rodas4 else (32, 64))
    ]
    assert abs(slopes_of(errors)[0] - ROSENBROCK[method.__name__].order) < 0.15


@every_method
def test_the_error_estimate_has_its_order(method):
    y0, estimates = tensor(1.0, 0.5), []
    stepper = stepper_on(curved, y0, method)
    norm = ErrorNorm(0.0, 1.0)
    for h in (0.02, 0.01, 0.005):
        stepper.begin(0.3, y0)
        y1 = stepper.attempt(0.3, h, y0)
        norm.start(y0)
        norm.between(y1)
        estimates.append(stepper.error_ratio(norm))
    for slope in slopes_of(estimates):
        assert abs(slope - stepper.error_order) < 0.2


@every_method
def test_dense_output_meets_both_ends_and_has_its_order(method):
    y0, errors, slope_errors = tensor(1.0, 0.5), [], []
    for h in (0.2, 0.1, 0.05) if method is Rodas5P else (0.1, 0.05, 0.025):
        stepper = stepper_on(curved, y0, method)
        stepper.begin(0.0, y0)
        y1 = stepper.attempt(0.0, h, y0)
        rows = stepper.interpolate([0.0, 0.4, 1.0])
        torch.testing.assert_close(rows[[0, 2]], torch.stack([y0, y1]), rtol=1e-13, atol=1e-13)
        inner = exact_curve(0.4 * h)
        errors.append((rows[1] - inner).abs().max().item())
        kept = stepper.piece()((0.4 * h,), stepper.field)
        torch.testing.assert_close(kept[0], rows[1], rtol=1e-14, atol=1e-14)
        inner_slope = curved(torch.tensor(0.4 * h, dtype=F64), inner)
        slope_errors.append((stepper.interpolate([0.4], True)[0] - inner_slope).abs().max().item())
    order = ROSENBROCK[method.__name__].dense_order
    assert slopes_of(errors)[-1] > order + 1 - 0.3
    assert slopes_of(slope_errors)[-1] > order - 0.3


@every_method
def test_stiff_components_are_damped_in_one_step(method):
    """L-stability: R(z) = O(1 / z); and df/dt counts, or the quasi-steady state would be missed."""

    def f(t, y):
        return -1e9 * (y - torch.cos(t))

    sol = pynode.solve(f, tensor(5.0), [0.0, 0.1, 0.2], algorithm=method())
    torch.testing.assert_close(sol.ys[1:, 0], torch.cos(sol.ts[1:]), rtol=1e-5, atol=0)
    assert sol.stats.forward.accepted < 200  # an explicit method would take 1e7


# Stiff problems


def van_der_pol(t, y):
    return torch.stack([y[1], 1e3 * (1 - y[0] ** 2) * y[1] - y[0]])


def robertson(t, y):
    slow, fast = -0.04 * y[0] + 1e4 * y[1] * y[2], 3e7 * y[1] ** 2
    return torch.stack([slow, -slow - fast, fast])


def oregonator(t, y):
    s, q, w = 77.27, 8.375e-6, 0.161
    return torch.stack([s * (y[1] + y[0] * (1 - q * y[0] - y[1])), (y[2] - (1 + y[0]) * y[1]) / s, w * (y[0] - y[2])])


STIFF = {
    "van der Pol": (van_der_pol, (2.0, 0.0), 1500.0, 1e-6),
    "Robertson": (robertson, (1.0, 0.0, 0.0), 1e5, 1e-10),
    "OREGO": (oregonator, (1.0, 2.0, 3.0), 30.0, 1e-6),
}


@pytest.mark.parametrize(
    "problem", [pytest.param(name, marks=() if name == "Robertson" else pytest.mark.slow) for name in STIFF]
)
@every_method
def test_stiff_problems_against_scipy(method, problem):
    """No worse than 3 times SciPy's Radau or 10 times the tolerance, whichever is more; and in no more evaluations,
    where the methods are of comparable order."""
    f, start, end, atol = STIFF[problem]
    rtol = 1e-3 if method is Rosenbrock23 else 1e-5

    def plain(t, y):
        return f(torch.tensor(t), torch.from_numpy(y)).numpy()

    def relative(y):
        return np.sqrt(np.mean(((y - exact) / (atol / rtol * 0.1 + np.abs(exact))) ** 2))

    exact = solve_ivp(plain, (0, end), start, method="Radau", rtol=1e-9, atol=atol * 1e-4).y[:, -1]
    scipy = solve_ivp(plain, (0, end), start, method="Radau", rtol=rtol, atol=atol * 0.1)
    sol = pynode.solve(f, tensor(*start), [0.0, end], algorithm=method(), rtol=rtol, atol=atol * 0.1)
    assert relative(sol.ys[-1].numpy()) <= max(3 * relative(scipy.y[:, -1]), 10 * rtol)
    if method is not Rosenbrock23:
        # SciPy's Jacobians are differences: of n + 1 evaluations, in nfev.
        work = sol.stats.forward.nfe + len(start) * sol.stats.forward.njac
        assert work <= 1.5 * (scipy.nfev + len(start) * scipy.njev)


@every_method
def test_a_matrix_free_solve_takes_the_same_steps(method):
    options = {"rtol": 1e-4, "atol": 1e-8}
    dense = pynode.solve(robertson, tensor(1.0, 0.0, 0.0), [0.0, 10.0], algorithm=method(), **options)
    free = pynode.solve(robertson, tensor(1.0, 0.0, 0.0), [0.0, 10.0], algorithm=method(linsolve="gmres"), **options)
    assert dense.stats.forward.accepted == free.stats.forward.accepted
    torch.testing.assert_close(dense.ys, free.ys, rtol=1e-6, atol=1e-10)


def test_a_given_jacobian():
    def jac(t, y):
        rows = [[-0.04, 1e4 * y[2], 1e4 * y[1]], [0.04, -1e4 * y[2] - 6e7 * y[1], -1e4 * y[1]], [0, 6e7 * y[1], 0]]
        return torch.tensor(rows, dtype=F64)

    y0 = tensor(1.0, 0.0, 0.0)
    own = pynode.solve(robertson, y0, [0.0, 10.0], algorithm=Rodas5P(), jac=jac)
    found = pynode.solve(robertson, y0, [0.0, 10.0], algorithm=Rodas5P())
    torch.testing.assert_close(own.ys, found.ys, rtol=1e-10, atol=1e-14)
    assert own.stats.forward.njac == own.stats.forward.accepted


@every_method
def test_a_jump_is_met_from_both_sides(method):
    def f(t, y):
        return torch.where(t < 0.5, -1.0, 2.0) * torch.ones_like(y)

    sol = pynode.solve(f, tensor(0.0), [0.0, 1.0], algorithm=method(), d_discontinuities=[0.5])
    torch.testing.assert_close(sol.ys[-1], tensor(0.5), rtol=0, atol=1e-12)
    assert sol.stats.forward.rejected == 0


def test_trees_and_complex_states():
    def f(t, y):
        return {"z": (-100 + 3j) * y["z"], "x": [y["x"][0] * 0 - y["z"].abs().sum()]}

    y0 = {"z": torch.tensor([1.0 + 1j, 2.0], dtype=torch.complex128), "x": [torch.zeros(1, dtype=torch.complex128)]}
    sol = pynode.solve(f, y0, [0.0, 0.1], algorithm=Rodas5P(), rtol=1e-8, atol=1e-10)
    growth = torch.exp(torch.tensor((-100 + 3j) * 0.1))
    torch.testing.assert_close(sol.ys["z"][-1], y0["z"] * growth, rtol=1e-4, atol=1e-9)


# Mass matrices

INDEX_1 = torch.diag(tensor(1.0, 1.0, 0.0))


def robertson_dae(t, y):
    rates = robertson(t, y)
    return torch.stack([rates[0], rates[1], y.sum() - 1.0])


@algebraic_methods
def test_robertson_as_a_differential_algebraic_problem(method):
    options = {"algorithm": method(), "rtol": 1e-6, "atol": 1e-10}
    y0 = tensor(1.0, 0.0, 0.0)
    sol = pynode.solve(robertson_dae, y0, [0.0, 10.0, 1e4], mass_matrix=INDEX_1, **options)
    plain = pynode.solve(robertson, y0, [0.0, 10.0, 1e4], algorithm=Rodas5P(), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(sol.ys, plain.ys, rtol=1e-4, atol=1e-9)
    # Stiffly accurate: the constraint is linear, so that every step solves it.
    torch.testing.assert_close(sol.ys.sum(1), torch.ones(3, dtype=F64), rtol=0, atol=1e-12)


@algebraic_methods
def test_the_order_on_a_differential_algebraic_problem(method):
    """y' = z y, 0 = z^2 - y - t^2 - 2: the algebraic variable is of the order of the method, too."""

    def f(t, y):
        return torch.stack([-y[1] * y[0], y[1] ** 2 - y[0] - t**2 - 2])

    mass = torch.diag(tensor(1.0, 0.0))
    y0 = tensor(2.0, 2.0)
    ends = [pynode.solve(f, y0, [0.0, 1.0], algorithm=method(steps=n), mass_matrix=mass).ys[-1] for n in (40, 80, 640)]
    errors = [(end - ends[-1]).abs().max().item() for end in ends[:-1]]
    assert slopes_of(errors)[0] > ROSENBROCK[method.__name__].order - 0.4


@every_method
def test_a_regular_mass_matrix_is_its_inverse_before_f(method):
    mass = torch.tensor([[2.0, 1.0], [0.0, 0.5]], dtype=F64)
    inverse = torch.linalg.inv(mass)
    options = {"algorithm": method(), "rtol": 1e-6, "atol": 1e-8}
    with_mass = pynode.solve(curved, tensor(1.0, 0.5), [0.0, 1.0], mass_matrix=mass, **options)
    without = pynode.solve(lambda t, y: inverse @ curved(t, y), tensor(1.0, 0.5), [0.0, 1.0], **options)
    # The same method in other words: W = M (1 - h g M^-1 J).
    torch.testing.assert_close(with_mass.ys, without.ys, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(with_mass(0.3), without(0.3), rtol=1e-11, atol=1e-11)


def test_a_singular_mass_matrix_needs_a_method_for_it():
    y0 = tensor(1.0, 0.0, 0.0)
    with pytest.raises(UnsupportedError, match="singular"):
        pynode.solve(robertson_dae, y0, [0.0, 1.0], algorithm=Rosenbrock23(), mass_matrix=INDEX_1)
    with pytest.raises(InputError, match="algebraic"):
        pynode.solve(robertson_dae, tensor(1.0, 0.0, 0.5), [0.0, 1.0], algorithm=Rodas5P(), mass_matrix=INDEX_1)


# Gradients


def central(loss, x: torch.Tensor, h: float = 1e-5) -> torch.Tensor:
    """Differences of fourth order: their errors are h^4 and U / h of the loss."""
    found = torch.zeros_like(x)
    for i in range(x.numel()):
        step = torch.zeros_like(x)
        step.view(-1)[i] = h
        near, far = loss(x + step) - loss(x - step), loss(x + 2 * step) - loss(x - 2 * step)
        found.view(-1)[i] = (8 * near - far) / (12 * h)
    return found


@every_method
@pytest.mark.parametrize(("linsolve", "mass"), [("dense", None), ("gmres", "regular"), ("dense", "singular")])
def test_gradients_are_those_of_the_steps(method, linsolve, mass):
    """Fixed steps are a smooth function of everything: differences are exact up to 1e-9. Coarse ones, which are far
    from the solution: an approximate adjoint would show."""
    if mass == "singular" and method is Rosenbrock23:
        return
    matrix = {
        None: None,
        "regular": torch.tensor([[2.0, 1.0], [0.0, 0.5]], dtype=F64),
        "singular": torch.diag(tensor(1.0, 0.0)),
    }[mass]

    def f(t, y, w):
        if mass == "singular":
            return torch.stack([-y[1] * y[0] * w[0] + torch.sin(w[1] * t), y[1] ** 2 - y[0] - 2])
        return torch.stack([-20 * y[0] * y[1] * w[0] + torch.sin(w[1] * t), y[0] - y[1] ** 2 * t])

    def loss(y0, w, t):
        if mass == "singular":
            y0 = torch.stack([y0[0], torch.sqrt(2 + y0[0])])  # consistent
        algorithm = method(steps=3, linsolve=linsolve)
        sol = pynode.solve(f, y0, t, args=(w,), algorithm=algorithm, mass_matrix=matrix, saveat=None)
        return (sol.ys[-1] * tensor(1.0, 2.0)).sum() + sol.ys[1].square().sum()

    values = [tensor(1.0, 0.5), tensor(0.8, 3.0), tensor(0.1, 0.5, 1.0)]
    leaves = [x.clone().requires_grad_() for x in values]
    found = torch.autograd.grad(loss(*leaves), leaves)
    with torch.no_grad():
        for i, gradient in enumerate(found):
            expected = central(lambda x, i=i: loss(*values[:i], x, *values[i + 1 :]), values[i])
            torch.testing.assert_close(gradient, expected, rtol=2e-8, atol=2e-8)


@every_method
@pytest.mark.parametrize("checkpoints", [None, 3])
def test_adaptive_gradients_are_those_of_the_tape(method, checkpoints):
    w = tensor(0.04, 1e4, 3e7).requires_grad_()
    y0 = tensor(1.0, 0.0, 0.0).requires_grad_()

    def f(t, y, w):
        slow, fast = -w[0] * y[0] + w[1] * y[1] * y[2], w[2] * y[1] ** 2
        return torch.stack([slow, -slow - fast, fast])

    gradients = []
    for sensealg in (DirectAdjoint(), CheckpointedAdjoint(checkpoints)):
        sol = pynode.solve(
            f, y0, [0.0, 0.3, 40.0], args=(w,), algorithm=method(), rtol=1e-3, atol=1e-7, sensealg=sensealg
        )
        assert sol.stats.forward.accepted > 5
        gradients.append(torch.autograd.grad((sol.ys[:, 0] - sol.ys[:, 2]).square().sum(), [y0, w]))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=0)


def test_gradients_of_robertson_as_a_differential_algebraic_problem():
    """Against those of the ordinary differential equation it stands for, both at tight tolerances."""
    w = tensor(0.04, 1e4, 3e7).requires_grad_()

    def rates(y, w):
        slow, fast = -w[0] * y[0] + w[1] * y[1] * y[2], w[2] * y[1] ** 2
        return torch.stack([slow, -slow - fast, fast])

    def constrained(t, y, w):
        return torch.cat([rates(y, w)[:2], y.sum().sub(1.0)[None]])

    found = []
    for f, mass in ((constrained, INDEX_1), (lambda t, y, w: rates(y, w), None)):
        options = {"rtol": 1e-6, "atol": 1e-10, "mass_matrix": mass}
        sol = pynode.solve(f, tensor(1.0, 0.0, 0.0), [0.0, 40.0], args=(w,), algorithm=Rodas5P(), **options)
        found.append(torch.autograd.grad(sol.ys[-1, 2], w)[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("method", "sensealg"),
    [(Rosenbrock23, GaussAdjoint), (Rodas4, QuadratureAdjoint), (Rodas5P, GaussAdjoint)],
    ids=["Rosenbrock23", "Rodas4", "Rodas5P"],
)
def test_continuous_adjoints_go_back_by_the_method_itself(method, sensealg):
    """df/dt of the adjoint equation is a difference: without it the way back would be of order 1."""
    w = tensor(3.0, 50.0).requires_grad_()
    y0 = tensor(1.0, 0.5).requires_grad_()

    def f(t, y, w):
        return torch.stack([-w[0] * y[0] * y[1], w[1] * (torch.cos(t) * y[0] - y[1])])

    def gradient(chosen, algorithm, tolerance):
        sol = pynode.solve(
            f, y0, [0.0, 1.0], args=(w,), algorithm=algorithm, rtol=tolerance, atol=tolerance, sensealg=chosen
        )
        return torch.autograd.grad(sol.ys[-1].square().sum(), [y0, w])

    tolerance = 1e-3 if method is Rosenbrock23 else 1e-5
    expected = gradient(CheckpointedAdjoint(), Rodas5P(), 1e-7)
    found = gradient(sensealg(), method(), tolerance)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=100 * tolerance)


@pytest.mark.parametrize("sensealg", [BacksolveAdjoint, InterpolatingAdjoint, ForwardSensitivity])
def test_what_would_need_second_derivatives_is_refused(sensealg):
    y0 = tensor(1.0).requires_grad_()
    with pytest.raises(UnsupportedError, match="Rodas5P"):
        pynode.solve(lambda t, y: -y, y0, [0.0, 1.0], algorithm=Rodas5P(), sensealg=sensealg())


@pytest.mark.parametrize("sensealg", [CheckpointedAdjoint, DirectAdjoint])
def test_second_derivatives_raise(sensealg):
    """They would be wrong: the inverse in the implicit function theorem is a constant on the tape."""
    y0 = tensor(1.0).requires_grad_()
    sol = pynode.solve(lambda t, y: -(y**2), y0, [0.0, 1.0], algorithm=Rodas5P(), sensealg=sensealg())
    (first,) = torch.autograd.grad(sol.ys[-1].sum(), y0, create_graph=True)
    with pytest.raises(GradientError, match="again"):
        torch.autograd.grad(first.sum(), y0)


class _Lossy(torch.autograd.Function):
    """x^3 with a pullback off the tape."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient.detach() * 3 * x.detach() ** 2


def test_a_pullback_that_loses_its_graph_is_noticed():
    y0 = tensor(1.0, 2.0).requires_grad_()
    for f in (lambda t, y: -_Lossy.apply(y), lambda t, y: -y - _Lossy.apply(y)):
        sol = pynode.solve(f, y0, [0.0, 1.0], algorithm=Rodas5P())
        with pytest.raises(GradientError, match="differentiate twice"):
            sol.ys[-1].sum().backward()


def test_a_field_of_nothing_and_one_of_time_alone():
    y0 = tensor(1.0, 2.0).requires_grad_()
    sol = pynode.solve(lambda t, y: torch.ones(2, dtype=F64), y0, [0.0, 1.0], algorithm=Rodas4())
    sol.ys[-1].sum().backward()
    torch.testing.assert_close(y0.grad, torch.ones(2, dtype=F64))
    t = tensor(0.0, 1.0).requires_grad_()
    sol = pynode.solve(lambda t, y: torch.cos(t).expand(2), y0, t, algorithm=Rodas5P(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sol.ys[-1], y0 + math.sin(1.0), rtol=0, atol=1e-7)
    (gradient,) = torch.autograd.grad(sol.ys[-1, 0], t)
    torch.testing.assert_close(gradient, tensor(-1.0, math.cos(1.0)), rtol=0, atol=1e-7)


# Failure


def test_a_blow_up_is_a_failure():
    sol = pynode.solve(lambda t, y: y**2, tensor(1.0), [0.0, 2.0], algorithm=Rodas5P(), throw=False)
    assert not sol.retcode.successful
    assert "t = 1" in sol.message or "0.99" in sol.message


def test_a_large_dense_jacobian_is_refused():
    with pytest.raises(UnsupportedError, match="gmres"):
        pynode.solve(lambda t, y: -y, torch.ones(7000, dtype=F64), [0.0, 1.0], algorithm=Rodas5P())


def test_what_julia_is_told():
    assert [expression_of(m()) for m in METHODS] == ["Rosenbrock23()", "Rodas4()", "Rodas5P()"]
    assert expression_of(Rodas5P(linsolve="gmres")) == "Rodas5P(linsolve = KrylovJL_GMRES())"
