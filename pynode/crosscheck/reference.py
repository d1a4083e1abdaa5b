"""The reference: a float64 copy solved at 1e-12, its gradient held against finite differences of the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from pynode.algorithms import Algorithm, Vern9
from pynode.crosscheck.case import (
    Case,
    Gradient,
    Quantities,
    Solver,
    differentiate,
    displaced,
    loss_of,
    named,
    random_direction,
)
from pynode.crosscheck.oracles import SciPySolver
from pynode.crosscheck.verdict import SAFETY, Reference
from pynode.errors import InputError, SolveError, explain
from pynode.layout import leaves_of
from pynode.sensealg import DirectAdjoint, SensitivityAlgorithm
from pynode.solution import Solution
from pynode.solve import solve

#: Tolerances of the reference's solve in float64; the absolute one is smaller, for components that start at zero.
_RTOL, _ATOL = 1e-12, 1e-14


class PynodeSolver:
    """``pynode.solve`` with everything but the problem chosen; keeps its last ``solution`` for the statistics."""

    def __init__(
        self,
        backend: str,
        algorithm: Algorithm,
        sensealg: SensitivityAlgorithm,
        rtol: float,
        atol: float,
        options: dict[str, Any],
    ) -> None:
        self.settings = {"backend": backend, "algorithm": algorithm, "sensealg": sensealg, **options}
        self.settings |= {"rtol": rtol, "atol": atol}
        self.solution: Solution | None = None

    def __call__(self, case: Case, y0: Any, t: torch.Tensor, args: tuple[Any, ...]) -> Any:
        self.solution = None
        self.solution = solve(case.f, y0, t, args=args, params=case.given, **self.settings)
        return self.solution.ys

    @property
    def steps(self) -> int:
        """Accepted steps of the last solve, in both directions."""
        assert self.solution is not None
        return self.solution.stats.forward.accepted + self.solution.stats.backward.accepted


@dataclass(frozen=True)
class Difference:
    """The derivative of the loss in a random direction: by the reference's gradient and by central differences.

    ``allowed``: how far apart they may be, which is what halving the step of the differences changed plus the noise of
    the solver over that step. ``quantity``: in the first direction in which they
    differ, the first quantity whose gradient is wrong by itself.
    """

    gradient: float
    difference: float
    allowed: float
    quantity: str = ""

    @property
    def agrees(self) -> bool:
        return abs(self.gradient - self.difference) <= self.allowed


def make_reference(
    case: Case, method: str, directions: int, seed: int, options: dict[str, Any]
) -> tuple[Reference, list[Difference]]:
    """Solve, differentiate, and verify; ``case`` in the best precision there is.

    Raises
    ------
    InputError
        For an unknown ``method``, and where the reference's method does not reach the end.
    """
    double = case.dtype == torch.float64
    tolerance = _RTOL if double else 4 * torch.finfo(case.dtype).eps
    solver: Solver
    if method == "Vern9":
        solver = PynodeSolver(
            "torch", Vern9(), DirectAdjoint(), tolerance, _ATOL if double else tolerance / 100, options
        )
    elif method == "scipy" or method.startswith("scipy:"):
        solver = SciPySolver(method.partition(":")[2] or "DOP853")
        tolerance = SciPySolver.TOLERANCE
    else:
        raise InputError(
            explain(f"reference = {method!r}", "'Vern9', 'scipy' or 'scipy:METHOD'", "use reference='Vern9'")
        )
    try:
        found = differentiate(case, solver)
    except SolveError as error:
        raise InputError(
            explain(
                f"the reference solve by {method} at {tolerance:.0e} failed: {error}",
                "a problem that can be solved accurately",
                "shorten the time span, or use reference='scipy:LSODA' for a stiff problem",
            )
        ) from error
    quantities = named(case, found)
    steps = solver.steps if isinstance(solver, PynodeSolver) else 0
    condition = dict.fromkeys(quantities, 1.0)
    differences: list[Difference] = []
    generator = torch.Generator().manual_seed(seed)
    for _ in range(directions):
        direction = random_direction(case, generator)
        step, ends, up = _ends(case, solver, direction, tolerance ** (1 / 3))
        _update(condition, quantities, up, step)
        difference = _compared(found, direction, step, ends, tolerance, steps)
        if not difference.agrees and all(earlier.agrees for earlier in differences):
            for name, indices in _positions(case).items():
                part = [v if i in indices else torch.zeros_like(v) for i, v in enumerate(direction)]
                step, ends, _ = _ends(case, solver, part, tolerance ** (1 / 3))
                if not _compared(found, part, step, ends, tolerance, steps).agrees:
                    difference = replace(difference, quantity=name)
                    break
        differences.append(difference)
    where = f"{method} at {tolerance:.0e} in {str(case.dtype).removeprefix('torch.')}"
    return Reference(quantities, condition, steps, where, tolerance), differences


def _compared(
    found: Gradient, direction: list[torch.Tensor], step: float, ends: list[float], tolerance: float, steps: int
) -> Difference:
    """The gradient in a direction against the differences of the loss at its ``ends``."""
    plus, half_plus, minus, half_minus = ends
    products = [
        torch.sum(g.conj() * v.to(g)).real.double().item() for g, v in zip(found.gradients, direction, strict=True)
    ]
    coarse, fine = (plus - minus) / (2 * step), (half_plus - half_minus) / step
    size = abs(float(found.loss)) + math.hypot(*products)
    noise = SAFETY * tolerance * math.sqrt(steps + 1) * size / step
    # Where the loss has no third derivative to speak of, only the noise is left.
    return Difference(sum(products), (4 * fine - coarse) / 3, abs(fine - coarse) + noise)


def _positions(case: Case) -> dict[str, list[int]]:
    """Where the tensors of each quantity stand among the gradients."""
    names = ["y0"] * len(list(leaves_of(case.y0)))
    names += [f"args[{i}]" for i in range(len(case.inputs))] + [f"parameters.{name}" for name in case.parameters]
    names += ["t"] * case.t.requires_grad
    return {name: [i for i, other in enumerate(names) if other == name] for name in dict.fromkeys(names)}


def _ends(
    case: Case, solver: Solver, direction: list[torch.Tensor], step: float
) -> tuple[float, list[float], Quantities]:
    """The step, the loss displaced by plus step, half of it, minus step, half of it, and all quantities at the first.

    It is shortened where the displaced problem cannot be solved: a concentration of zero may have been made negative.
    """
    for shortened in (step, step * 1e-2, step * 1e-4):
        try:
            # One gradient is enough for the condition, of which the order of magnitude matters.
            with displaced(case, direction, shortened) as other:
                there = differentiate(other, solver)
                ends, up = [float(there.loss)], named(other, there)
            for signed in (shortened / 2, -shortened, -shortened / 2):
                with displaced(case, direction, signed) as other:
                    ends.append(loss_of(other, solver))
        except SolveError as error:
            failure = error
        else:
            return shortened, ends, up
    raise InputError(
        explain(
            f"the problem displaced by {shortened:.0e} of its size in a random direction cannot be solved: {failure}",
            "a problem that can be solved beside its own y0 and parameters, to verify its gradient",
            "start from inside the field's domain, or try another seed",
        )
    ) from failure


def _update(condition: dict[str, float], center: Quantities, up: Quantities, step: float) -> None:
    norm = torch.linalg.vector_norm
    for name, q in center.items():
        size = float(norm(q))
        if size:
            condition[name] = max(condition[name], float(norm(up[name] - q)) / (step * size))
