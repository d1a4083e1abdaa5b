"""``M dy/dt = f``: regular matrices, differential-algebraic problems of index 1, and what is refused."""

from __future__ import annotations

import pytest
import torch

import pynode
from pynode import CheckpointedAdjoint, DirectAdjoint

F64 = torch.float64
M = torch.tensor([[2.0, 0.3], [-0.1, 0.5]], dtype=F64)
HALF = torch.diag(torch.tensor([1.0, 0.0], dtype=F64))
T = [0.0, 0.5, 2.0]


def f(t, y):
    return torch.stack([-y[0] * y[1], torch.sin(y[0]) - y[1] + t])


def dae(t, y):
    """``x' = -x z``, ``0 = z - x^2 - 1``: ``x' = -x^3 - x``, whose ``x^-2`` is linear."""
    return torch.stack([-y[0] * y[1], y[1] - y[0] ** 2 - 1.0])


def exact(t, x0=1.0):
    u = (x0**-2 + 1.0) * torch.exp(2.0 * torch.as_tensor(t, dtype=F64)) - 1.0
    return torch.stack([u**-0.5, 1.0 / u + 1.0], dim=-1)


@pytest.mark.parametrize("name", ["ImplicitEuler", "ImplicitMidpoint", "Trapezoid", "TRBDF2", "KenCarp4", "Kvaerno5"])
@pytest.mark.parametrize("linsolve", ["dense", "gmres"])
def test_a_regular_matrix_is_as_good_as_its_inverse(name, linsolve):
    """The same steps of the problem that was solved for dy/dt by hand: equal to what Newton's iteration leaves."""
    y0, inverse = torch.tensor([1.0, 0.2], dtype=F64), torch.linalg.inv(M)
    algorithm = getattr(pynode, name)(steps=4, linsolve=linsolve)
    a = pynode.solve(f, y0, T, algorithm=algorithm, mass_matrix=M)
    b = pynode.solve(lambda t, y: inverse @ f(t, y), y0, T, algorithm=algorithm)
    torch.testing.assert_close(a.ys, b.ys, rtol=1e-8, atol=1e-8)


def test_radau_with_a_regular_matrix():
    y0, inverse = torch.tensor([1.0, 0.2], dtype=F64), torch.linalg.inv(M)
    for options in ({"steps": 10}, {}):
        algorithm = pynode.RadauIIA5(**options)
        a = pynode.solve(f, y0, T, algorithm=algorithm, mass_matrix=M, rtol=1e-8, atol=1e-10)
        b = pynode.solve(lambda t, y: inverse @ f(t, y), y0, T, algorithm=algorithm, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(a.ys, b.ys, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("name", "tolerance"), [("RadauIIA5", 1e-8), ("ImplicitEuler", 1e-4)])
def test_a_differential_algebraic_problem(name, tolerance):
    sol = pynode.solve(dae, exact(0.0), T, algorithm=name, mass_matrix=HALF, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(sol.ys, exact(torch.tensor(T)), rtol=0, atol=100 * tolerance)
    # The algebraic equation itself holds to what Newton's iteration leaves at save points that end steps.
    assert abs(dae(0.0, sol.ys[-1])[1].item()) < tolerance
    if name == "RadauIIA5":
        torch.testing.assert_close(sol(torch.tensor([0.33, 1.7])), exact(torch.tensor([0.33, 1.7])), rtol=0, atol=1e-5)


@pytest.mark.parametrize("linsolve", ["dense", "gmres"])
def test_gradients_through_a_differential_algebraic_problem(linsolve):
    x0 = torch.tensor(1.3, dtype=F64, requires_grad=True)
    w = torch.tensor(0.7, dtype=F64, requires_grad=True)

    def end(x0, w, sensealg=None):
        g = lambda t, y: torch.stack([-w * y[0] * y[1], y[1] - y[0] ** 2 - w])  # noqa: E731
        y0, algorithm = torch.stack([x0, x0**2 + w]), pynode.RadauIIA5(steps=4, linsolve=linsolve)
        return pynode.solve(g, y0, [0.0, 1.0], algorithm=algorithm, mass_matrix=HALF, sensealg=sensealg).ys[-1].sum()

    a = torch.autograd.grad(end(x0, w, CheckpointedAdjoint()), [x0, w])
    b = torch.autograd.grad(end(x0, w, DirectAdjoint()), [x0, w])
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    h = 1e-5
    with torch.no_grad():
        by_x = (end(x0 + h, w) - end(x0 - h, w)) / (2 * h)
        by_w = (end(x0, w + h) - end(x0, w - h)) / (2 * h)
    # Central differences: h^2 of a third derivative, and 1e-10 of the iterations over h.
    torch.testing.assert_close(torch.stack(a), torch.stack([by_x, by_w]), rtol=1e-6, atol=1e-6)


def test_inconsistent_initial_values_are_named():
    with pytest.raises(pynode.InputError, match=r"algebraic equations.*residual is 0\.5.*number 1 .*-0\.5.*consistent"):
        pynode.solve(
            dae, torch.tensor([1.0, 2.5], dtype=F64), T, algorithm="RadauIIA5", mass_matrix=HALF, rtol=1e-6, atol=1e-6
        )


def test_a_higher_index_is_named():
    pendulum_like = lambda t, y: torch.stack([y[1], y[0] - torch.sin(t)])  # noqa: E731
    with pytest.raises(pynode.InputError, match="index 1"):
        pynode.solve(pendulum_like, torch.tensor([0.0, 1.0], dtype=F64), T, algorithm="RadauIIA5", mass_matrix=HALF)


@pytest.mark.parametrize(
    ("algorithm", "mass", "message"),
    [
        ("Tsit5", M, "a mass matrix with Tsit5.*RadauIIA5"),
        ("KenCarp4", HALF, "a singular mass matrix with KenCarp4.*takes regular ones"),
        ("Trapezoid", HALF, "a singular mass matrix with Trapezoid"),
    ],
)
def test_methods_that_do_not_take_it(algorithm, mass, message):
    with pytest.raises(pynode.UnsupportedError, match=message):
        pynode.solve(dae, exact(0.0), T, algorithm=algorithm, mass_matrix=mass)


def test_continuous_adjoints_do_not_take_it():
    y0 = exact(0.0).requires_grad_()
    with pytest.raises(pynode.UnsupportedError, match=r"mass matrix with GaussAdjoint.*CheckpointedAdjoint"):
        pynode.solve(dae, y0, T, algorithm="RadauIIA5", mass_matrix=HALF, sensealg=pynode.GaussAdjoint())


@pytest.mark.parametrize(
    ("mass", "message"),
    [
        (torch.eye(3, dtype=F64), r"shape \(3, 3\).*\(2, 2\)"),
        (torch.eye(2), "float32.*float64"),
        ([[1.0, 0.0], [0.0, 1.0]], "a list"),
        (torch.eye(2, dtype=F64) / 0.0, "NaN or an infinity"),
        (torch.eye(2, dtype=F64).requires_grad_(), "requires a gradient.*detach"),
    ],
)
def test_matrices_that_make_no_sense(mass, message):
    with pytest.raises(pynode.InputError, match=message):
        pynode.solve(dae, exact(0.0), T, algorithm="RadauIIA5", mass_matrix=mass)


def test_a_running_cost_is_integrated_beside_it():
    sol = pynode.solve(
        dae,
        exact(0.0),
        T,
        algorithm="RadauIIA5",
        mass_matrix=HALF,
        running_cost=lambda t, y: y[0] * y[1],
        rtol=1e-8,
        atol=1e-10,
    )
    assert abs(sol.running_cost.item() - (1.0 - sol.ys[-1, 0].item())) < 1e-6  # x' = -x z


REFUSED_BY_JULIA = {
    "jac": ({"jac": dae}, pynode.UnsupportedError, "exact Jacobian"),
    "method": ({"mass_matrix": HALF, "algorithm": "KenCarp4"}, pynode.UnsupportedError, "singular mass matrix"),
    "between": ({"mass_matrix": M, "algorithm": "Trapezoid"}, pynode.UnsupportedError, "between steps"),
    "explicit": ({"mass_matrix": M, "algorithm": "tsit5"}, pynode.UnsupportedError, "a mass matrix with Tsit5"),
    "adjoint": ({"mass_matrix": M, "sensealg": pynode.BacksolveAdjoint()}, pynode.UnsupportedError, "GaussAdjoint"),
    "checkpoints": (
        {"mass_matrix": M, "sensealg": pynode.GaussAdjoint(checkpointing=True)},
        pynode.UnsupportedError,
        "checkpointing",
    ),
    "inconsistent": ({"mass_matrix": HALF, "y0": [1.0, 0.0]}, pynode.InputError, "does not satisfy"),
}


@pytest.mark.parametrize("case", REFUSED_BY_JULIA)
def test_what_the_julia_backend_refuses_before_it_starts_julia(case):
    options, error, message = REFUSED_BY_JULIA[case]
    options = {"algorithm": "Rodas5P", "y0": exact(0.0).tolist(), **options}
    y0 = torch.tensor(options.pop("y0"), dtype=F64, requires_grad=True)
    with pytest.raises(error, match=message):
        pynode.solve(dae, y0, T, backend="julia", **options)
