"""The stiff test set at its published reference solutions, next to SciPy's Radau; and what failures say.

References: Mazzia and Magherini, "Test Set for Initial Value Problem Solvers" (release 2.4): HIRES, Van der Pol,
Robertson; that of Robertson's problem at 1e5 by SciPy's Radau at 1e-13.
"""

from __future__ import annotations

import math

import pytest
import torch

import pynode
from pynode.julia.names import known, number_of
from pynode.native.newton import NewtonNorm, newton
from pynode.problems.stiff import REFERENCES, STIFF
from pynode.solution import ReturnCode

scipy_integrate = pytest.importorskip("scipy.integrate")
F64 = torch.float64


#: Names of the stiff set, and the absolute tolerance over the relative one.
PROBLEMS = {"vdpol": 1e-2, "rober": 1e-9, "hires": 1e-3}
every_problem = pytest.mark.parametrize("problem", PROBLEMS)


def _solved(name, algorithm, tolerance):
    problem, atol = STIFF[name].build(), PROBLEMS[name] * tolerance
    with torch.no_grad():
        sol = pynode.solve(
            problem.field, problem.y0, problem.t, algorithm=algorithm, rtol=tolerance, atol=atol, max_steps=20_000
        )
    return sol, _error(sol.ys[-1], name, tolerance, atol)


def _error(end, name, rtol, atol):
    reference = torch.tensor(REFERENCES[name], dtype=F64)
    return ((end - reference) / (atol + rtol * reference.abs())).square().mean().sqrt().item()


@every_problem
def test_radau_does_no_more_work_than_scipys(problem):
    """Evaluations and Jacobians, at an error that is no larger than 3 times SciPy's or the tolerance.

    10 % are left for a luckier step here or there."""
    tolerance = 1e-4
    sol, error = _solved(problem, "RadauIIA5", tolerance)
    made, atol = STIFF[problem].build(), PROBLEMS[problem] * tolerance
    f = made.field
    peer = scipy_integrate.solve_ivp(
        lambda t, y: f(t, torch.from_numpy(y)).detach().numpy(),
        made.t[[0, -1]].tolist(),
        made.y0.numpy(),
        method="Radau",
        rtol=tolerance,
        atol=atol,
        jac=lambda t, y: torch.autograd.functional.jacobian(lambda x: f(t, x), torch.from_numpy(y)).numpy(),
    )
    own = _error(torch.from_numpy(peer.y[:, -1]), problem, tolerance, atol)
    assert error <= max(3.0 * own, 1.0)
    counts = sol.stats.forward
    assert counts.nfe + counts.njac <= 1.1 * (peer.nfev + peer.njev)


@pytest.mark.parametrize("name", ["TRBDF2", "KenCarp4", "Kvaerno5"])
@pytest.mark.parametrize("which", ["vdpol", "hires"])
def test_diagonally_implicit_methods_on_stiff_problems(name, which):
    """Errors of all steps at the end, each of the tolerance: less than their number; and in steps of slow phases."""
    sol, error = _solved(which, name, 1e-4)
    assert error < sol.stats.forward.accepted
    assert sol.stats.forward.accepted < 1000
    assert sol.stats.forward.njac < sol.stats.forward.accepted


@pytest.mark.slow
@pytest.mark.parametrize("name", ["TRBDF2", "KenCarp4", "Kvaerno5", "RadauIIA5", "RadauIIA9", "FBDF"])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-8])
@every_problem
def test_the_stiff_set_at_many_tolerances(problem, name, tolerance):
    if name == "TRBDF2" and tolerance < 1e-6:
        pytest.skip("of order 2")
    sol, error = _solved(problem, name, tolerance)
    assert error < 10.0 * sol.stats.forward.accepted


def test_the_gradient_of_a_stiff_problem():
    """Of Robertson's problem at t = 10 with respect to its first rate, against central differences of tight solves."""
    problem = STIFF["rober"].build()

    def end(k, **options):
        f = lambda t, y: problem.field(t, y) + (k - 0.04) * torch.stack([-y[0], y[0], 0.0 * y[0]])  # noqa: E731
        return pynode.solve(f, problem.y0, [0.0, 10.0], algorithm="RadauIIA5", **options).ys[-1, 0]

    k = torch.tensor(0.04, dtype=F64, requires_grad=True)
    (found,) = torch.autograd.grad(end(k, rtol=1e-5, atol=1e-10), [k])
    h = 1e-4
    with torch.no_grad():
        above, below = (end(k + s, rtol=1e-8, atol=1e-12) for s in (h, -h))
    assert abs(found.item() / ((above - below).item() / (2 * h)) - 1.0) < 1e-3


# Failures


def test_an_explicit_method_names_the_stiffness():
    problem = STIFF["vdpol"].build()
    with pytest.raises(pynode.SolveError, match=r"stiff there.*-3e\+03.*KenCarp4\(\) or RadauIIA5\(\)") as error:
        pynode.solve(problem.field, problem.y0, problem.t, max_steps=500)
    assert error.value.retcode is ReturnCode.MaxIters


@pytest.mark.parametrize(
    ("f", "t"),
    [
        (lambda t, y: 5.0 * y, 100.0),  # grows
        (lambda t, y: torch.stack([y[1], -100.0 * y[0]]), 200.0),  # turns
        (lambda t, y: -0.01 * y, 1e3),  # is merely long
    ],
)
def test_and_does_not_where_there_is_none(f, t):
    y0 = torch.tensor([1.0, 2.0], dtype=F64)
    sol = pynode.solve(f, y0, [0.0, t], max_steps=3, dt0=0.01, throw=False)
    assert sol.retcode is ReturnCode.MaxIters
    assert "stiff there" not in sol.message


@pytest.mark.parametrize("name", ["ImplicitEuler", "TRBDF2", "RadauIIA5"])
def test_a_fixed_step_without_a_solution(name):
    """``y' = y^2`` has no implicit step across its pole."""
    sol = pynode.solve(
        lambda t, y: 1.0 + y**2,
        torch.zeros(1, dtype=F64),
        [0.0, 1.5, 3.0, 4.5],
        algorithm=getattr(pynode, name)(steps=3),
        throw=False,
    )
    assert sol.retcode is ReturnCode.ConvergenceFailure
    assert "smaller fixed steps" in sol.message
    assert len(sol.ts) == len(sol.ys) < 4


@pytest.mark.parametrize("name", ["KenCarp4", "RadauIIA5"])
def test_a_wrong_jacobian_is_a_failure_to_converge(name):
    y0 = torch.ones(1, dtype=F64)
    with pytest.raises(pynode.SolveError, match=r"did not converge.*jac= of your own") as error:
        pynode.solve(
            lambda t, y: -1e3 * y, y0, [0.0, 1.0], algorithm=name, jac=lambda t, y: torch.full((1, 1), 1e9, dtype=F64),
            dtmin=1e-6,
        )  # fmt: skip
    assert error.value.retcode is ReturnCode.ConvergenceFailure


@pytest.mark.parametrize("name", ["ImplicitEuler", "KenCarp4", "RadauIIA5"])
@pytest.mark.parametrize("fixed", [False, True])
def test_a_field_that_leaves_its_domain(name, fixed):
    algorithm = getattr(pynode, name)(**({"steps": 20} if fixed else {}))
    sol = pynode.solve(
        lambda t, y: -torch.sqrt(1.0 - t) * y, torch.ones(1, dtype=F64), [0.0, 2.0], algorithm=algorithm, throw=False
    )
    assert sol.retcode is ReturnCode.Unstable
    assert sol.ys.isfinite().all()


def test_blow_up_is_an_error():
    with pytest.raises(pynode.SolveError) as error:
        pynode.solve(lambda t, y: y**2, torch.ones(1, dtype=F64), [0.0, 2.0], algorithm="KenCarp4", max_steps=2000)
    assert abs(error.value.t - 1.0) < 1e-2


@pytest.mark.parametrize("name", ["ImplicitEuler", "ImplicitMidpoint", "KenCarp4", "RadauIIA5"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_fixed_steps_from_zero(name, dtype):
    """Where the state says nothing about sizes."""
    y0 = torch.zeros(2, dtype=dtype)
    sol = pynode.solve(lambda t, y: torch.cos(t) - 0.0 * y, y0, [0.0, 1.0], algorithm=getattr(pynode, name)(steps=50))
    assert abs(sol.ys[-1, 0].item() - math.sin(1.0)) < 1e-2


# Newton


def test_newton_stops_by_its_rate():
    norm = NewtonNorm(1e-6, 1e-6, False)
    norm.start(torch.ones(1, dtype=F64))
    assert norm.kappa == 1e-3
    contract = lambda rate: lambda z: (1.0 - rate) * (1.0 - z)  # noqa: E731  (towards 1)
    start = torch.zeros(1, dtype=F64)
    found = newton(contract(0.01), start, norm, 1.0, 10, 1.0)
    assert found.converged
    assert math.isclose(found.rate, 0.01, rel_tol=1e-6)
    assert abs(found.z.item() - 1.0) <= norm.kappa * 2e-6
    slow = newton(contract(0.9), start, norm, 1.0, 10, 1.0)
    assert not slow.converged
    assert slow.iterations == 2  # 0.9 will not get there in ten
    assert not newton(lambda z: 2.0 * z + 1.0, start, norm, 1.0, 10, 2.5).converged
    assert not newton(lambda z: z / 0.0, start, norm, 1.0, 10, 1.0).finite


# The Julia backend


@pytest.mark.parametrize(
    ("algorithm", "expression"),
    [
        *((getattr(pynode, name)(), f"{name}()") for name in ("ImplicitEuler", "Trapezoid", "TRBDF2", "RadauIIA5")),
        (pynode.KenCarp4(linsolve="gmres"), "KenCarp4(linsolve = KrylovJL_GMRES())"),
        (pynode.ImplicitMidpoint(dt=0.1), "ImplicitMidpoint()"),
    ],
    ids=str,
)
def test_names_for_scimls(algorithm, expression):
    class Engine:
        def named(self, text):
            return text

    assert known(algorithm)
    assert number_of(Engine(), algorithm) == expression
