"""Implicit Runge-Kutta methods: orders of the steps and of dense output, both directions of time, costs."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import pynode
from pynode.native.implicit_tableaus import IMPLICIT_TABLEAUS
from pynode.native.radau_tableau import radau_tableau

F64 = torch.float64
#: Order, and order of the dense output.
METHODS = {
    "ImplicitEuler": (1, 3),
    "ImplicitMidpoint": (2, 3),
    "Trapezoid": (2, 3),
    "TRBDF2": (2, 3),
    "KenCarp4": (4, 3),
    "Kvaerno5": (5, 3),
    "RadauIIA5": (5, 3),
    "RadauIIA9": (9, 5),
}
ADAPTIVE = [name for name in METHODS if name != "ImplicitMidpoint"]
START = torch.tensor([1.0, 0.5], dtype=F64)
every_direction = pytest.mark.parametrize("times", [(0.0, 4.0), (4.0, 0.0)], ids=["forward", "reversed"])
every_method = pytest.mark.parametrize("name", METHODS)
#: RadauIIA9 comes down to rounding within one halving of the step here: see ``test_order_nine``.
below_nine = pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name][0] < 9])


def f(t, y):
    """Nonlinear and with time, so that no order condition is met by accident; errors shrink forward in time."""
    return -(1.0 + 0.5 * torch.sin(t)) * y**2


def exact(t):
    return 1.0 / (1.0 / START + (torch.as_tensor(t, dtype=F64) + 0.5 - 0.5 * torch.cos(torch.as_tensor(t)))[..., None])


def _errors(name, times, steps, thetas):
    """Largest errors at fractions of the steps."""
    errors = []
    for n in steps:
        mesh = torch.linspace(*times, n + 1, dtype=F64)
        at = torch.cat([a + (b - a) * torch.tensor(thetas, dtype=F64) for a, b in itertools.pairwise(mesh)])
        sol = pynode.solve(f, exact(times[0]), times, algorithm=getattr(pynode, name)(steps=n), saveat=at)
        errors.append((sol.ys - exact(at)).abs().max().item())
    return errors


def test_order_nine():
    """``y' = i w y`` over 1 in steps h: the error per step is ``C (w h)^10`` with Pade's constant ``5! 4! / (9! 10!)``
    of the stability function, so the sum over 1/h of them is known, not just its slope."""
    w = 8.0

    def turning(t, y):
        return torch.stack([-w * y[1], w * y[0]])

    def error(n):
        y0 = torch.tensor([1.0, 0.0], dtype=F64)
        end = pynode.solve(turning, y0, [0.0, 1.0], algorithm=pynode.RadauIIA9(steps=n)).ys[-1]
        return (end - torch.tensor([math.cos(w), math.sin(w)], dtype=F64)).norm().item()

    constant = math.factorial(5) * math.factorial(4) / (math.factorial(9) * math.factorial(10))
    for n in (6, 12):
        assert error(n) == pytest.approx(constant * w**10 / n**9, rel=0.2)


@below_nine
@every_direction
def test_order_of_convergence(name, times):
    """Halving the step divides the error by 2^p: nearer to it than to any other power of two."""
    order = METHODS[name][0]
    steps = {1: (128, 256), 2: (48, 96)}.get(order, (12, 24))
    a, b = _errors(name, times, steps, [1.0])
    assert b > 1e-10  # above what the iteration leaves
    assert abs(math.log2(a / b) - order) < 0.5


@every_method
def test_order_of_dense_output(name):
    """Inside steps the error falls as h^min(p, q + 1)."""
    order, dense = METHODS[name]
    a, b = _errors(name, (0.0, 4.0), (16, 32), [0.3, 0.6])
    assert abs(math.log2(a / b) - min(order, dense + 1)) < 0.5


@every_method
def test_linear_interpolation_is_a_straight_line(name):
    algorithm = getattr(pynode, name)(steps=2, interpolation="linear")
    sol = pynode.solve(f, START, [0.0, 1.0], algorithm=algorithm, saveat=torch.linspace(0.0, 1.0, 5))
    torch.testing.assert_close(sol.ys[1::2], (sol.ys[:-1:2] + sol.ys[2::2]) / 2, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("tableau", IMPLICIT_TABLEAUS.values(), ids=IMPLICIT_TABLEAUS)
def test_rows_of_a_tableau_add_up(tableau):
    """To the abscissae, the weights to one and those of an estimate to zero, each to the 1e-15 of printed digits."""
    for c, row in zip(tableau.c, tableau.a, strict=True):
        assert abs(math.fsum(row) - c) < 4e-15
    assert abs(math.fsum(tableau.b) - 1.0) < 4e-15
    if isinstance(tableau.error, tuple):
        assert abs(math.fsum(tableau.error)) < 4e-15
    assert len({row[-1] for row in tableau.a} - {0.0}) == 1


@pytest.mark.parametrize("stages", [3, 5])
def test_radaus_tableau_is_collocation(stages):
    """``sum_j a_ij c_j^(k-1) = c_i^k / k`` for k up to s, and for its last row, the weights, up to 2 s - 1."""
    radau = radau_tableau(stages, F64, torch.device("cpu"))
    for c, row in zip(radau.c, radau.a.tolist(), strict=True):
        for k in range(1, 2 * stages if c == 1.0 else stages + 1):
            assert abs(sum(a * x ** (k - 1) for a, x in zip(row, radau.c, strict=True)) - c**k / k) < 2e-15


def test_radaus_numbers_are_the_printed_ones():
    """Hairer and Wanner: abscissae and equation IV.8.19; eigenvalues of the inverse of five stages in their RADAU."""
    root = math.sqrt(6.0)
    three, five = (radau_tableau(stages, F64, torch.device("cpu")) for stages in (3, 5))
    assert three.c == pytest.approx([(4.0 - root) / 10.0, (4.0 + root) / 10.0, 1.0], rel=1e-15)
    error = [(-13.0 - 7.0 * root) / 3.0, (-13.0 + 7.0 * root) / 3.0, -1.0 / 3.0]
    assert three.e.tolist() == pytest.approx(error, rel=1e-13)
    assert five.real == pytest.approx(6.286704751729276, rel=1e-13)
    assert [value for value, _, _ in five.pairs] == pytest.approx(
        [5.700953298671789 + 3.210265600308550j, 3.655694325463572 + 6.543736899360077j], rel=1e-13
    )


def test_radaus_slope_at_the_end_costs_no_evaluation():
    """One at the start of the solve, one for its first step size, and those of the stages."""
    sol = pynode.solve(lambda t, y: -y, START, [0.0, 1.0], algorithm="RadauIIA5")
    counts = sol.stats.forward
    assert (counts.nfe - 2) % 3 == 0


@pytest.mark.parametrize("name", ADAPTIVE)
@every_direction
def test_adaptive_errors_follow_the_tolerance(name, times):
    """No more than the sum of the steps' errors, each of one tolerance; backward in time they grow like
    ``(y(0) / y(4))^2``, at most 30-fold."""
    for tolerance in (1e-3, 1e-4) if METHODS[name][0] < 3 else (1e-4, 1e-7):
        sol = pynode.solve(f, exact(times[0]), times, algorithm=name, rtol=tolerance, atol=tolerance)
        growth = 30.0 if times[0] else 1.0
        assert (sol.ys[-1] - exact(times[1])).abs().max().item() < growth * tolerance * sol.stats.forward.accepted
        assert sol.stats.forward.accepted < 1000


@pytest.mark.parametrize("name", ADAPTIVE)
def test_stiff_decay_costs_few_steps(name):
    """``y' = -1e6 (y - cos t)`` over its slow solution: an explicit method would take 1e6 steps."""
    sol = pynode.solve(
        lambda t, y: -1e6 * (y - torch.cos(t)),
        torch.ones(1, dtype=F64),
        [0.0, 3.0],
        algorithm=name,
        rtol=1e-3,
        atol=1e-5,
    )
    assert sol.stats.forward.accepted < 500
    assert abs(sol.ys[-1].item() - math.cos(3.0)) < 1e-2
    assert sol.stats.forward.njac < sol.stats.forward.accepted


@every_method
def test_gmres_takes_the_same_steps(name):
    algorithm = getattr(pynode, name)
    ends = [
        pynode.solve(f, START, [0.0, 2.0], algorithm=algorithm(steps=4, linsolve=how)).ys[-1]
        for how in ("dense", "gmres")
    ]
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-9)


def test_a_large_state_without_its_jacobian():
    """The heat equation on 60 points; GMRES on a symmetric matrix with few directions of interest."""
    n = 60
    x = torch.linspace(0, 1, n + 2, dtype=F64)[1:-1]

    def heat(t, y):
        padded = torch.nn.functional.pad(y, (1, 1))
        return (padded[2:] - 2 * y + padded[:-2]) * (n + 1) ** 2

    sol = pynode.solve(
        heat, torch.sin(math.pi * x), [0.0, 0.1], algorithm=pynode.TRBDF2(linsolve="gmres"), rtol=1e-5, atol=1e-7
    )
    decay = math.exp(-4 * (n + 1) ** 2 * math.sin(math.pi / (2 * (n + 1))) ** 2 * 0.1)
    torch.testing.assert_close(sol.ys[-1], decay * torch.sin(math.pi * x), rtol=1e-3, atol=1e-5)
    assert sol.stats.forward.nlu == 0


@every_method
def test_float32(name):
    algorithm = getattr(pynode, name)(steps=40)
    sol = pynode.solve(lambda t, y: -y * torch.cos(t), torch.ones(2), [0.0, 1.0], algorithm=algorithm)
    assert sol.ys.dtype == torch.float32
    order = METHODS[name][0]
    assert (sol.ys[-1] - math.exp(-math.sin(1.0))).abs().max().item() < 1.0 / 40**order + 2e-5
