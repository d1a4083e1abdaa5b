"""The Butcher tableaus against the theory (order conditions over rooted trees) and against other packages.

A Runge-Kutta method has order p exactly if ``sum_i b_i Phi_i(t) = 1 / gamma(t)`` for every rooted tree ``t`` with at
most p vertices (Hairer, Norsett, Wanner, Solving ODEs I, theorem II.2.13), and its dense output has order p exactly if
``sum_i b_i(theta) Phi_i(t) = theta**|t| / gamma(t)`` for these trees and all theta. Both are checked here for all
trees, 486 of them up to order 9, and each order is checked to be neither too high nor too low.

Tolerances are not chosen, they are computed: next to each number a running bound of its rounding error is carried, in
units ``U = 2**-53`` and to first order (counting one operation too many covers the terms of order ``U**2``). All
coefficients are taken to be the doubles nearest to the true ones, that is relatively wrong by at most ``U``.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest

from pynode.native.tableaus import TABLEAUS, Tableau

U = 2.0**-53
THETAS = (0.125, 0.3, 0.5, 0.77, 0.9)
NAMES = (
    *("Euler", "Midpoint", "Heun", "Ralston", "RK4", "RK38", "SSPRK33", "Heun3"),
    *("BS3", "DP5", "Tsit5", "Vern7", "Vern9", "DP8", "Fehlberg2", "AdaptiveHeun"),
)
# A condition that fails must fail by far more than rounding can explain.
FAR = 1e3

every_tableau = pytest.mark.parametrize("tableau", TABLEAUS.values(), ids=TABLEAUS.keys())
adaptive_tableaus = pytest.mark.parametrize(
    "tableau",
    [t for t in TABLEAUS.values() if t.b_error is not None],
    ids=[t.name for t in TABLEAUS.values() if t.b_error is not None],
)


# Rooted trees. A tree is named (n, index): its number of vertices and its place in trees(n), and there it is stored as
# the tuple of the names of the subtrees that hang on its root, in descending order, so that no tree comes twice.


@cache
def trees(n: int) -> list[tuple[tuple[int, int], ...]]:
    """All rooted trees with n vertices."""

    def forests(vertices: int, largest: tuple[int, int]) -> list[tuple[tuple[int, int], ...]]:
        if vertices == 0:
            return [()]
        found = []
        for size in range(min(vertices, largest[0]), 0, -1):
            for index in range(len(trees(size))):
                if (size, index) <= largest:
                    found += [((size, index), *rest) for rest in forests(vertices - size, (size, index))]
        return found

    return forests(n - 1, (n - 1, len(trees(n - 1)))) if n > 1 else [()]


@cache
def density(n: int) -> np.ndarray:
    """gamma(t) for all trees with n vertices: n times the densities of the subtrees."""
    return np.array([n * math.prod(int(density(m)[i]) for m, i in tree) for tree in trees(n)])


class Weights:
    """Phi_i(t) for all trees up to some order, with error bounds, computed when asked for.

    ``phi(n)`` is a pair of matrices, stages times trees(n). With ``Phi(root only) = 1``, Phi of a tree is the product
    of ``A Phi`` over its subtrees. A row of ``A v`` with n entries, each wrong by U, takes n products and n - 1 sums.
    """

    def __init__(self, a: np.ndarray) -> None:
        self.a = a
        self.known: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.inner: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def phi(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        if n not in self.known:
            value = np.ones((len(self.a), len(trees(n))))
            bound = np.zeros_like(value)
            for j, tree in enumerate(trees(n)):
                for m, i in tree:
                    v, e = self.times_a(m)
                    bound[:, j] = bound[:, j] * abs(v[:, i]) + abs(value[:, j]) * (e[:, i] + 2 * U * abs(v[:, i]))
                    value[:, j] *= v[:, i]
            self.known[n] = value, bound
        return self.known[n]

    def times_a(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        if n not in self.inner:
            v, e = self.phi(n)
            self.inner[n] = self.a @ v, abs(self.a) @ (e + (len(self.a) + 2) * U * abs(v))
        return self.inner[n]

    def defects(self, w: np.ndarray, w_bound: np.ndarray, n: int, theta: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """|sum_i w_i Phi_i(t) - theta**n / gamma(t)| for all trees with n vertices, and bounds for rounding."""
        value, bound = self.phi(n)
        right = theta**n / density(n)
        bounds = abs(w) @ (bound + (len(w) + 1) * U * abs(value)) + w_bound @ abs(value) + 4 * U * right
        return abs(w @ value - right), bounds


def full_a(tableau: Tableau, dense: bool) -> np.ndarray:
    """The matrix A with its zeros, of the main stages or of the main and extra stages."""
    rows = tableau.a + (tableau.dense_a if dense else ())
    return np.array([[*row, *[0.0] * (len(rows) - len(row))] for row in rows])


@cache
def weights_of(name: str, dense: bool) -> Weights:
    return Weights(full_a(TABLEAUS[name], dense))


def dense_weights(tableau: Tableau, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """b_i(theta) and bounds: d terms, in each the coefficient is wrong by U and the power by 2 U."""
    coefficients = np.array(tableau.dense_b)
    d = coefficients.shape[1]
    powers = theta ** np.arange(1, d + 1)
    return coefficients @ powers, (d + 5) * U * (abs(coefficients) @ powers)


def assert_order_is(weights: Weights, w: np.ndarray, w_bound: np.ndarray, order: int) -> None:
    """The weights satisfy all conditions up to `order`, and not all of order `order + 1`."""
    for n in range(1, order + 1):
        defects, bounds = weights.defects(w, w_bound, n)
        assert bounds.max() < 1e-11  # or else the check would mean little
        assert (defects <= bounds).all(), f"order {n}: {(defects > bounds).sum()} conditions fail, {defects.max()}"
    defects, bounds = weights.defects(w, w_bound, order + 1)
    assert (defects > FAR * bounds).any(), f"the order is higher than {order}"


def test_all_methods_are_there() -> None:
    assert set(TABLEAUS) == set(NAMES)
    assert all(name == tableau.name for name, tableau in TABLEAUS.items())


def test_trees_are_counted_right() -> None:
    # Number of rooted trees, OEIS A000081, and sum over trees with n vertices of n! / (gamma sigma) = (n - 1)!, in
    # which the symmetry sigma follows from equal subtrees.
    assert [len(trees(n)) for n in range(1, 11)] == [1, 1, 2, 4, 9, 20, 48, 115, 286, 719]
    symmetry: dict[tuple[int, int], int] = {}
    for n in range(1, 11):
        for i, tree in enumerate(trees(n)):
            repeats = math.prod(math.factorial(tree.count(child)) for child in set(tree))
            symmetry[n, i] = repeats * math.prod(symmetry[child] for child in tree)
        total = sum(math.factorial(n) / (int(density(n)[i]) * symmetry[n, i]) for i in range(len(trees(n))))
        assert total == pytest.approx(math.factorial(n - 1), rel=1e-12)


@every_tableau
def test_shapes(tableau: Tableau) -> None:
    stages, extra = len(tableau.c), len(tableau.dense_c)
    assert tableau.c[0] == 0.0
    assert len(tableau.b) == stages
    assert [len(row) for row in tableau.a] == list(range(stages))
    assert [len(row) for row in tableau.dense_a] == list(range(stages, stages + extra))
    assert len(tableau.dense_b) == stages + extra
    assert len({len(row) for row in tableau.dense_b}) == 1
    assert (tableau.b_error is None) == (tableau.error_order is None)
    assert tableau.b_error is None or len(tableau.b_error) == stages
    assert tableau.b_error_low is None or len(tableau.b_error_low) == stages
    numbers = [*tableau.c, *tableau.b, *(tableau.b_error or ()), *(tableau.b_error_low or ()), *tableau.dense_c]
    numbers += [x for rows in (tableau.a, tableau.dense_a, tableau.dense_b) for row in rows for x in row]
    assert all(type(x) is float and math.isfinite(x) for x in numbers)
    assert tableau.source


@every_tableau
def test_abscissae_are_row_sums(tableau: Tableau) -> None:
    for c, row in zip(tableau.c + tableau.dense_c, tableau.a + tableau.dense_a, strict=True):
        assert math.fsum(row) == pytest.approx(c, rel=0, abs=1e-13)


@every_tableau
def test_fsal(tableau: Tableau) -> None:
    is_fsal = tableau.c[-1] == 1.0 and tableau.a[-1] == tableau.b[:-1] and tableau.b[-1] == 0.0
    assert tableau.fsal == is_fsal
    assert tableau.fsal == (tableau.name in {"BS3", "DP5", "Tsit5", "DP8"})


@every_tableau
def test_order(tableau: Tableau) -> None:
    b = np.array(tableau.b)
    assert_order_is(weights_of(tableau.name, False), b, U * abs(b), tableau.order)


@adaptive_tableaus
def test_embedded_order(tableau: Tableau) -> None:
    # y1 - err, of order error_order - 1. DP8 is different: its two estimates are of orders 5 and 3, and the combination
    # E = |E5|^2 / sqrt(|E5|^2 + 0.01 |E3|^2) with E5 = O(h^6) and E3 = O(h^4) is O(h^(12 - 4)), hence error_order 8.
    b, weights = np.array(tableau.b), weights_of(tableau.name, False)
    assert tableau.error_order is not None
    assert (tableau.b_error_low is not None) == (tableau.name == "DP8")
    if tableau.name == "DP8":
        assert tableau.error_order == 2 * (5 + 1) - (3 + 1)
        estimates = [(tableau.b_error, 5), (tableau.b_error_low, 3)]
    else:
        assert tableau.error_order <= tableau.order
        estimates = [(tableau.b_error, tableau.error_order - 1)]
    for b_error, order in estimates:
        e = np.array(b_error)
        assert_order_is(weights, b - e, 2 * U * (abs(b) + abs(e)), order)


@every_tableau
def test_dense_order(tableau: Tableau) -> None:
    weights = weights_of(tableau.name, True)
    failed = []
    for theta in THETAS:
        w, w_bound = dense_weights(tableau, theta)
        for n in range(1, tableau.dense_order + 1):
            defects, bounds = weights.defects(w, w_bound, n, theta)
            assert bounds.max() < 1e-9  # or else the check would mean little; Vern9 has coefficients up to 1e4
            assert (defects <= bounds).all(), f"theta {theta}, order {n}: {defects.max()}"
        defects, bounds = weights.defects(w, w_bound, tableau.dense_order + 1, theta)
        failed.append((defects > FAR * bounds).any())
    assert all(failed), f"the order is higher than {tableau.dense_order}"


@every_tableau
def test_dense_end_points(tableau: Tableau) -> None:
    # There is no theta**0, so b_i(0) = 0 by the format; b_i(1) = b_i, and 0 for the extra stages.
    w, w_bound = dense_weights(tableau, 1.0)
    b = np.array([*tableau.b, *[0.0] * len(tableau.dense_c)])
    assert (abs(w - b) <= w_bound + U * abs(b)).all()


@every_tableau
def test_dense_output_is_continuously_differentiable(tableau: Tableau) -> None:
    # The slope is k_1 = f(t, y) at theta = 0, exactly, and f(t + h, y1) at theta = 1, which is the last main stage of
    # an FSAL method and the first extra stage of the others.
    coefficients = np.array(tableau.dense_b)
    stages, d = len(tableau.c), coefficients.shape[1]
    assert (coefficients[:, 0] == np.eye(len(coefficients))[0]).all()
    last = stages - 1 if tableau.fsal else stages
    if not tableau.fsal:
        assert tableau.dense_c[0] == 1.0
        assert tableau.dense_a[0] == tableau.b
    powers = np.arange(1, d + 1)
    slope, bound = coefficients @ powers, (d + 3) * U * (abs(coefficients) @ powers)
    assert (abs(slope - np.eye(len(coefficients))[last]) <= bound).all()


@every_tableau
def test_hermite_interpolant_is_of_order_three_at_most(tableau: Tableau) -> None:
    if len(tableau.dense_b[0]) == 3:
        assert tableau.dense_order == min(tableau.order, 3)


def test_interpolant_of_vern7_is_not_of_order_seven() -> None:
    # It passes for one of order 7 (see the comment in tableaus.py). The defects of order 7 are those of 12 trees, all
    # of which have one subtree only, and they vanish at the end of the step.
    tableau, weights = TABLEAUS["Vern7"], weights_of("Vern7", True)
    w, w_bound = dense_weights(tableau, 0.3)
    defects, bounds = weights.defects(w, w_bound, 7, 0.3)
    wrong = np.flatnonzero(defects > bounds)
    assert len(wrong) == 12
    assert all(len(trees(7)[i]) == 1 for i in wrong)
    assert 1e-7 < defects.max() < 4e-7
    defects, bounds = weights.defects(*dense_weights(tableau, 1.0), 7)
    assert (defects <= bounds).all()


@every_tableau
def test_a_wrong_digit_is_found(tableau: Tableau) -> None:
    # A change of 1e-9 in one weight, made up for in another one so that the sum stays right, if there is another one.
    b = np.array(tableau.b)
    used = np.flatnonzero(b)
    b[used[0]] += 1e-9
    if len(used) > 1:
        b[used[-1]] -= 1e-9
    with pytest.raises(AssertionError, match="conditions fail"):
        assert_order_is(weights_of(tableau.name, False), b, U * abs(b), tableau.order)


# Spot checks against other packages. All of them round the same numbers to doubles, by other ways.


def close(ours: object, theirs: object) -> None:
    np.testing.assert_allclose(np.array(ours), np.array(theirs), rtol=4e-15, atol=4e-17)


@pytest.mark.parametrize(("name", "theirs"), [("DP5", "RK45"), ("BS3", "RK23")])
def test_against_scipy_rk(name: str, theirs: str) -> None:
    method = getattr(pytest.importorskip("scipy.integrate"), theirs)
    ours, stages = TABLEAUS[name], len(method.C)
    close(full_a(ours, False)[:stages, : method.A.shape[1]], method.A)
    close(ours.c[:stages], method.C)
    close(ours.b[:stages], method.B)
    close(ours.b_error, -method.E)
    close(ours.dense_b, method.P)
    assert ours.order == method.order
    assert ours.error_order == method.error_estimator_order + 1


def test_against_scipy_dop853() -> None:
    integrate = pytest.importorskip("scipy.integrate")
    ours, method = TABLEAUS["DP8"], integrate.DOP853
    close(full_a(ours, False)[:12, :12], method.A)
    close(ours.c[:12], method.C)
    close(ours.b[:12], method.B)
    close(ours.b_error, method.E5)
    close(ours.b_error_low, method.E3)
    close(full_a(ours, True)[13:], method.A_EXTRA)
    close(ours.dense_c, method.C_EXTRA)
    assert ours.error_order == method.error_estimator_order + 1

    # The dense output is written in another basis there: compare the values within one step.
    def f(t: float, y: np.ndarray) -> np.ndarray:
        return np.array([y[1] * np.cos(t), -np.sin(y[0]) - 0.3 * y[1]])

    y = np.array([1.0, 0.5])
    solver = method(f, 0.2, y, 5.0, first_step=0.6, rtol=1e-2, atol=1e-2)
    solver.step()
    h = solver.t - solver.t_old
    assert h == pytest.approx(0.6)
    k: list[np.ndarray] = []
    for c, row in zip(ours.c + ours.dense_c, ours.a + ours.dense_a, strict=True):
        k.append(f(0.2 + c * h, y + h * sum((x * slope for x, slope in zip(row, k, strict=True)), np.zeros(2))))
    for theta in (*THETAS, 1.0):
        w, w_bound = dense_weights(ours, theta)
        rounding = h * float((w_bound @ abs(np.array(k))).max())
        expected = solver.dense_output()(0.2 + theta * h)
        np.testing.assert_allclose(y + h * w @ np.array(k), expected, rtol=1e-14, atol=rounding)


@pytest.mark.parametrize(
    ("name", "module", "attribute"),
    [
        ("BS3", "bosh3", "_BOGACKI_SHAMPINE_TABLEAU"),
        ("DP5", "dopri5", "_DORMAND_PRINCE_SHAMPINE_TABLEAU"),
        ("Tsit5", "tsit5", "_TSITOURAS_TABLEAU"),
        ("Fehlberg2", "fehlberg2", "_FEHLBERG2_TABLEAU"),
        ("AdaptiveHeun", "adaptive_heun", "_ADAPTIVE_HEUN_TABLEAU"),
    ],
)
def test_against_torchdiffeq(name: str, module: str, attribute: str) -> None:
    # No release up to 0.2.5 has tsit5, it is skipped with these.
    theirs = getattr(pytest.importorskip(f"torchdiffeq._impl.{module}"), attribute)
    ours = TABLEAUS[name]
    assert ours.b_error is not None
    for our_row, their_row in zip(ours.a[1:], theirs.beta, strict=True):
        close(our_row, their_row.tolist())
    close(ours.c[1:], theirs.alpha.tolist())
    # They subtract rounded numbers to get the error weights, hence the tolerance. The sign of the estimate does not
    # matter; dopri5 has 2/3 of the estimate of Dormand and Prince; tsit5 propagates the embedded solution, of order 4.
    b, b_error, c_error = np.array(ours.b), np.array(ours.b_error), np.array(theirs.c_error.tolist())
    scale = np.sign(c_error @ b_error) * (2 / 3 if name == "DP5" else 1)
    np.testing.assert_allclose(c_error, scale * b_error, rtol=0, atol=1e-15)
    np.testing.assert_allclose(theirs.c_sol.tolist(), b - b_error if name == "Tsit5" else b, rtol=0, atol=1e-15)


def test_against_torchdiffeq_rk4() -> None:
    torch = pytest.importorskip("torch")
    step = pytest.importorskip("torchdiffeq._impl.rk_common").rk4_alt_step_func
    ours = TABLEAUS["RK38"]

    def f(t: object, y: object, perturb: object = None) -> object:
        return torch.sin(y) + t * y

    y, t, h = (torch.tensor(x, dtype=torch.float64) for x in (0.8, 0.3, 0.7))
    k: list[object] = []
    for c, row in zip(ours.c, ours.a, strict=True):
        k.append(f(t + c * h, y + h * sum(x * slope for x, slope in zip(row, k, strict=True))))
    increment = h * sum(x * slope for x, slope in zip(ours.b, k, strict=True))
    assert float(increment) == pytest.approx(float(step(f, t, h, t + h, y)), rel=1e-14)
