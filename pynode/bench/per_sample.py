"""Per-sample stepping beside torchode and beside joint stepping: Van der Pol oscillators of different stiffness.

256 rows of ``x'' = mu (1 - x^2) x' - x``, ``mu`` from 0.5 to 25 linearly over the rows, ``(x, x') = (2, 0)``, float64,
``t`` from 0 to 42, one cycle of the stiffest row, with Tsit5. Errors are root mean squares over all rows at the end,
against a solution by Vern9 at 1e-12. Times are medians over alternating slots on one thread. They are compared at equal
error: what a solver takes at an error between those it was measured at is read off the line through its two nearest
points, in logarithms. Each library is taken with the better of its controllers at that error.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import pynode
from pynode.bench import Claim, Report, Table
from pynode.bench.timing import alternate

SUMMARY = "per-sample steps beside torchode's and beside joint steps"

TOLERANCES = (1e-4, 1e-5, 1e-6, 1e-7)

PYNODE, TORCHODE, JOINT = "pynode independent", "torchode", "pynode joint"


def vanderpol(t: Tensor, y: Tensor, mu: Tensor) -> Tensor:
    """``mu`` (b,), ``y`` (b, 2)."""
    x, v = y[:, 0], y[:, 1]
    return torch.stack((v, mu * (1 - x**2) * v - x), dim=-1)


@dataclass(frozen=True)
class Case:
    """The problem: ``mu`` (B,), ``y0`` (B, 2), times (2,)."""

    mu: Tensor
    y0: Tensor
    t: Tensor


def case(batch: int, end: float) -> Case:
    """The problem with so many rows, up to a time."""
    mu = torch.linspace(0.5, 25.0, batch, dtype=torch.float64)
    y0 = torch.tensor([2.0, 0.0], dtype=torch.float64).repeat(batch, 1)
    return Case(mu, y0, torch.tensor([0.0, end], dtype=torch.float64))


@dataclass(frozen=True)
class Outcome:
    """End states (B, 2), and evaluations of ``f`` summed over the rows."""

    y: Tensor
    evaluations: int


def independent(problem: Case, rtol: float, controller: pynode.PIDController, batching: str = "independent") -> Outcome:
    """Our solve, each row or all rows in steps of their own."""
    with torch.no_grad():
        sol = pynode.solve(
            vanderpol,
            problem.y0,
            problem.t,
            args=(pynode.PerSample(problem.mu),),
            algorithm=pynode.Tsit5(),
            rtol=rtol,
            atol=rtol,
            controller=controller,
            batching=batching,
            saveat=pynode.SaveAt(dense=False),
        )
    if isinstance(sol, pynode.BatchSolution):
        return Outcome(sol.ys[-1], int(sol.row_stats.nfe.sum()))
    return Outcome(sol.ys[-1], sol.stats.forward.nfe * len(problem.mu))


def torchode(problem: Case, rtol: float, controller: tuple[float, float, float] | None) -> Outcome:
    """The peer's solve; ``controller``: coefficients P, I and D, or None for its integral controller."""
    peer: Any = importlib.import_module("torchode")
    term = peer.ODETerm(vanderpol, with_args=True)
    if controller is None:
        steps = peer.IntegralController(atol=rtol, rtol=rtol, term=term)
    else:
        steps = peer.PIDController(rtol, rtol, *controller, term=term)
    solver = peer.AutoDiffAdjoint(peer.Tsit5(term=term), steps)
    t_eval = problem.t.repeat(len(problem.mu), 1)
    with torch.no_grad():
        sol = solver.solve(peer.InitialValueProblem(y0=problem.y0, t_eval=t_eval), args=problem.mu)
    return Outcome(sol.ys[:, -1], int(sol.stats["n_f_evals"].sum()))


#: Contestants: library, its controller's name, and the solve.
SOLVERS: dict[tuple[str, str], Callable[[Case, float], Outcome]] = {
    (PYNODE, "I"): lambda problem, rtol: independent(problem, rtol, pynode.IController()),
    (PYNODE, "PI"): lambda problem, rtol: independent(problem, rtol, pynode.PIController()),
    (TORCHODE, "I"): lambda problem, rtol: torchode(problem, rtol, None),
    (TORCHODE, "PI"): lambda problem, rtol: torchode(problem, rtol, (0.4, 0.3, 0.0)),
    (JOINT, "I"): lambda problem, rtol: independent(problem, rtol, pynode.IController(), "joint"),
}


@dataclass(frozen=True)
class Point:
    """One solver at one tolerance; ``seconds`` is NaN where it was not timed."""

    error: float
    evaluations: int
    seconds: float


Points = dict[tuple[str, str], list[Point]]


def measure(problem: Case, tolerances: Sequence[float], rounds: int, with_torchode: bool = True) -> Points:
    """Every solver at every tolerance, those of one tolerance in alternating slots."""
    exact = pynode.solve(
        vanderpol,
        problem.y0,
        problem.t,
        args=(pynode.PerSample(problem.mu),),
        algorithm=pynode.Vern9(),
        rtol=1e-12,
        atol=1e-12,
        batching="independent",
    ).ys[-1]
    solvers = {key: solve for key, solve in SOLVERS.items() if with_torchode or key[0] != TORCHODE}
    found: Points = {key: [] for key in solvers}
    for rtol in tolerances:
        timed = {" ".join(key): functools.partial(solve, problem, rtol) for key, solve in solvers.items()}
        timings = alternate(timed, rounds, warmup=1)
        for key, solve in solvers.items():
            outcome = solve(problem, rtol)
            error = (outcome.y - exact).square().mean().sqrt().item()
            found[key].append(Point(error, outcome.evaluations, timings[" ".join(key)].median))
    return found


def at_error(points: Sequence[Point], error: float, what: str) -> float:
    """``what`` of a solver at an error, on the line through its two nearest points in logarithms."""
    by_error = sorted(points, key=lambda p: p.error)
    place = next((i for i, p in enumerate(by_error) if p.error >= error), len(by_error) - 1)
    low, high = by_error[max(place - 1, 0)], by_error[max(place, 1)]
    x0, x1 = math.log(low.error), math.log(high.error)
    v0, v1 = math.log(getattr(low, what)), math.log(getattr(high, what))
    return math.exp(v0 + (v1 - v0) * (math.log(error) - x0) / (x1 - x0))


def over(found: Points, library: str, what: str) -> list[float]:
    """``what`` of a library over ours, each with the better of its controllers, at the errors that the library had with
    its integral controller."""

    def best(name: str, error: float) -> float:
        return min(at_error(points, error, what) for (own, _), points in found.items() if own == name)

    return [best(library, point.error) / best(PYNODE, point.error) for point in found[library, "I"]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this experiment."""
    parser.add_argument("--batch", type=int, default=256, help="rows (%(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="rounds of slots (%(default)s)")
    parser.add_argument("--without-torchode", action="store_true", help="only joint stepping beside ours")
    parser.add_argument(
        "--quick", action="store_true", help="few rows, tolerances and rounds: a look, not a measurement"
    )


def run(options: argparse.Namespace) -> Report:
    """Measure and compare."""
    batch, end, rounds = options.batch, 42.0, options.repeats
    tolerances: Sequence[float] = TOLERANCES
    if options.quick:
        batch, end, rounds, tolerances = min(batch, 8), 3.0, 1, TOLERANCES[:2]
    found = measure(case(batch, end), tolerances, rounds, not options.without_torchode)
    cells: list[tuple[str, ...]] = [
        (
            f"{rtol:g} {library}, {controller} controller",
            f"{points[rank].error:.2e}",
            f"{points[rank].evaluations}",
            f"{1e3 * points[rank].seconds:.1f}",
        )
        for rank, rtol in enumerate(tolerances)
        for (library, controller), points in found.items()
    ]
    title = f"Van der Pol, {batch} rows, mu 0.5 to 25, t 0 to {end:g}, Tsit5, float64, rtol = atol"
    table = Table(title, ("", "error", "row evaluations", "median ms"), cells)
    claims = []
    if not options.without_torchode:
        ratios = over(found, TORCHODE, "seconds")
        least = min(ratios)
        text = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        claims.append(Claim(f"{least:.2f}x as fast as torchode at equal error (1.5); {text}", least, least >= 1.5))
    ratios = over(found, JOINT, "evaluations")
    least = min(ratios)
    text = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    claims.append(
        Claim(f"{least:.2f}x fewer row evaluations than joint stepping at equal error (3); {text}", least, least >= 3.0)
    )
    data = {" ".join(key): [asdict(point) for point in points] for key, points in found.items()}
    return Report([table], claims, data=data)
