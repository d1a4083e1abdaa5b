"""DETEST and the stiff set: their numbers against published ones, invariants and independent solvers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import pynode
from pynode.problems import DETEST, STIFF, problem_from_name
from pynode.problems.stiff import REFERENCES

#: States at t = 20 as Enright and Pryce (1987) print them, or as a formula gives them.
ENDS = {
    "A1": (math.exp(-20.0),),
    "A2": (1.0 / math.sqrt(21.0),),
    "A3": (math.exp(math.sin(20.0)),),
    "A4": (20.0 / (1.0 + 19.0 * math.exp(-5.0)),),
    "A5": (-0.7887826688964196,),
    "B1": (0.6761876008576667, 0.1860816099640036),
    "E1": (0.1456723600728308, -0.09883500195574063),
    "E2": (2.008149762174948, -0.04250887527320057),
    "E4": (33.95091444646555, 0.2767822659672869),
    "E5": (14.11797390542629, 2.4),
}


def solved(name, rtol=1e-11):
    problem = problem_from_name(name).build()
    with torch.no_grad():
        ends = problem.t[[0, -1]]
        sol = pynode.solve(problem.field, problem.y0, ends, algorithm=pynode.Vern9(), rtol=rtol, atol=rtol)
    return problem, sol


def test_there_are_25_and_6():
    names = [f"{family}{i}" for family in "ABCDE" for i in range(1, 6)]
    assert list(DETEST) == names
    assert set(STIFF) == {"vdpol", "rober", "hires", "orego", "pollu", "bruss"}
    assert all(problem.stiff for problem in STIFF.values())
    assert all(problem.span == (0.0, 20.0) and not problem.stiff for problem in DETEST.values())


@pytest.mark.parametrize("name", [*DETEST, *STIFF])
def test_a_problem_builds_and_every_parameter_of_it_counts(name):
    problem = problem_from_name(name).build()
    assert problem.y0.dtype is torch.float64
    state = problem.y0 + 0.01 * torch.linspace(1.0, 2.0, problem.y0.numel(), dtype=torch.float64).view_as(problem.y0)
    derivative = problem.field(torch.tensor(0.5, dtype=torch.float64), state)
    assert derivative.shape == problem.y0.shape
    assert torch.isfinite(derivative).all()
    parameters = list(problem.field.parameters())
    if parameters:
        for gradient in torch.autograd.grad(derivative.square().sum(), parameters):
            assert gradient.any()


@pytest.mark.parametrize("name", ENDS)
def test_the_end_of_detest_is_the_published_one(name):
    _, sol = solved(name)
    # Local errors of 1e-11 a step, at most a few hundred of them, none of these problems magnifies a thousandfold.
    assert np.abs(sol.ys[-1].numpy() - np.array(ENDS[name])).max() <= 1e-8


def test_chains_and_the_chemical_reactions_keep_their_total():
    for name in ("B2", "B3", "C1", "C2"):
        problem, sol = solved(name)
        assert sol.ys[-1].sum().item() == pytest.approx(problem.y0.sum().item(), rel=1e-12)


@pytest.mark.parametrize("name", ["D1", "D3", "D5"])
def test_orbits_keep_energy_and_angular_momentum(name):
    problem, sol = solved(name)

    def invariants(y):
        return torch.stack([0.5 * (y[2] ** 2 + y[3] ** 2) - 1 / torch.hypot(y[0], y[1]), y[0] * y[3] - y[1] * y[2]])

    torch.testing.assert_close(invariants(sol.ys[-1]), invariants(problem.y0), rtol=1e-8, atol=1e-8)


def test_the_planets_keep_their_energy():
    """Of all six bodies, about their centre of mass: the masses and forces belong together."""
    problem, sol = solved("C5")
    field = problem.field
    masses = torch.cat([field.sun.detach().reshape(1), field.mass.detach()])

    def energy(y):
        zero = torch.zeros(1, 3, dtype=torch.float64)
        place, speed = (torch.cat([zero, part.reshape(5, 3)]) for part in (y[:15], y[15:]))
        speed = speed - (masses[:, None] * speed).sum(0) / masses.sum()
        pairs = [(i, j) for i in range(6) for j in range(i)]
        potential = sum(masses[i] * masses[j] / (place[i] - place[j]).norm() for i, j in pairs)
        return (0.5 * (masses * (speed**2).sum(1)).sum() - field.gravity.detach() * potential).item()

    start = energy(problem.y0)
    assert energy(sol.ys[-1]) == pytest.approx(start, rel=1e-10)
    # The planets alone move in a field that is not conservative: leaving a force out is seen.
    with torch.no_grad():
        field.mass.mul_(1.0 + 1e-2)
        moved = pynode.solve(field, problem.y0, problem.t[[0, -1]], rtol=1e-11, atol=1e-11).ys[-1]
    assert abs(energy(moved) / start - 1.0) > 1e-6


def test_c4_is_c3_with_more_points():
    for name, n in (("C3", 10), ("C4", 51)):
        problem = DETEST[name].build()
        u = torch.arange(1.0, n + 1, dtype=torch.float64)
        wave = torch.sin(math.pi * u / (n + 1))
        eigenvalue = 2.0 * math.cos(math.pi / (n + 1)) - 2.0
        torch.testing.assert_close(problem.field(torch.tensor(0.0), wave), eigenvalue * wave, rtol=1e-12, atol=1e-14)


def by_radau(name, rtol):
    integrate = pytest.importorskip("scipy.integrate")
    problem = STIFF[name].build()
    shape = problem.y0.shape

    def rate(t, y):
        with torch.no_grad():
            return problem.field(torch.tensor(t), torch.from_numpy(y.copy()).reshape(shape)).reshape(-1).numpy()

    def jacobian(t, y):
        f = lambda x: problem.field(torch.tensor(t), x.reshape(shape)).reshape(-1)  # noqa: E731
        return torch.func.jacrev(f)(torch.from_numpy(y.copy())).detach().numpy()

    span = (problem.t[0].item(), problem.t[-1].item())
    small = 1e-2 * rtol * np.maximum(np.abs(REFERENCES[name]), 1e-20)
    start = problem.y0.reshape(-1).numpy()
    return integrate.solve_ivp(rate, span, start, method="Radau", jac=jacobian, rtol=rtol, atol=small).y[:, -1]


@pytest.mark.parametrize("name", REFERENCES)
def test_the_end_of_a_stiff_problem_is_the_published_one(name):
    # The published numbers are good to 12 digits and more; Radau's global error at 1e-7 is far below 1e-5 on all four.
    assert np.abs(by_radau(name, 1e-7) / np.array(REFERENCES[name]) - 1.0).max() <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCES)
def test_the_end_of_a_stiff_problem_is_the_published_one_to_ten_digits(name):
    assert np.abs(by_radau(name, 1e-11) / np.array(REFERENCES[name]) - 1.0).max() <= 1e-10
