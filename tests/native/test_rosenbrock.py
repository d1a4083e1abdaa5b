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
from pynode.errors import InputError, UnsupportedError
from pynode.julia.names import expression_of
from pynode.native.error_norm import ErrorNorm
from pynode.native.rosenbrock import Rosenbrock
from pynode.native.rosenbrock_tableaus import ROSENBROCK
from pynode.problem import ODEProblem
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
        for n in ((96, 192) if method is Rodas4 else (16, 32))
    ]
    assert abs(slopes_of(errors)[0] - ROSENBROCK[method.__name__].order) < 0.2


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
    "Robertson": (robertson, (1.0, 0.0, 0.0), 1e3, 1e-10),
    "OREGO": (oregonator, (1.0, 2.0, 3.0), 30.0, 1e-6),
}


@pytest.mark.parametrize(
    ("method", "problem"),
    [
        pytest.param(m, name, marks=() if (m, name) == (Rodas5P, "Robertson") else pytest.mark.slow)
        for m in METHODS
        for name in STIFF
    ],
)
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
    sol = pynode.solve(robertson_dae, y0, [0.0, 10.0, 100.0], mass_matrix=INDEX_1, **options)
    plain = pynode.solve(robertson, y0, [0.0, 10.0, 100.0], algorithm=Rodas5P(), rtol=1e-8, atol=1e-12)
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
    ends = [pynode.solve(f, y0, [0.0, 1.0], algorithm=method(steps=n), mass_matrix=mass).ys[-1] for n in (20, 40, 160)]
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
