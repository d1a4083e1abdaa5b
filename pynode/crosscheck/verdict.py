"""When two numbers that should be equal are too far apart.

For each quantity ``q`` (the solution, the gradient of each tensor), with distances in the Euclidean norm:

    allowed = SAFETY * (promised + change) + rounding

``promised`` is what the tolerances ask for, ``condition * (rtol + atol / rms(y)) * |q|``, for continuous adjoints plus
``atol * sqrt(n)``, because they integrate the gradient itself to that absolute tolerance; nothing for fixed steps.
``condition`` is measured on the reference: how much ``q`` moves, relative to itself, when all inputs are displaced by
a relative amount, over that amount; at least 1.

``change`` is how far the same combination's result moves when its tolerances are divided by ten, or its steps halved.
A method that converges to the truth is no farther from it than a few times this; one that converges to something else
is. Change above 10 % of the quantity excuses nothing, unless the exact discrete gradient of the same algorithm moves
as much: the gradient is then not resolved at these tolerances, by whichever method.

Where the *solution* changes by more than 10 %, its steps are too coarse for anything to be said about the truth, and
the combination is "not resolved": neither in agreement nor in disagreement with the reference.

``rounding`` is ``SAFETY * condition * (eps * (steps + 1) + tolerance of the reference * (its steps + 1)) * |q|``.

Discrete adjoints take the same steps as ``DirectAdjoint``. They are compared with it as well, and may differ by
``rounding`` alone. ``ReversibleAdjoint``, which regains its states by running backward to half their digits, may by
``sqrt(eps)``, and is compared only where the solution is resolved: steps too coarse for it amplify what is lost beyond
any bound known here.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pynode.algorithms import Algorithm, FixedStep
from pynode.crosscheck.case import Quantities, group
from pynode.sensealg import CheckpointedAdjoint, DirectAdjoint, ReversibleAdjoint, SensitivityAlgorithm

SAFETY = 10.0
_CAP = 0.1


@dataclass(frozen=True)
class Reference:
    """The truth: quantities in float64, how sensitive each is, and how it was obtained."""

    quantities: Quantities
    condition: dict[str, float]
    steps: int
    method: str
    tolerance: float

    def common(self, found: Quantities) -> list[tuple[str, Tensor]]:
        """What can be compared, in order."""
        return [(name, q) for name, q in found.items() if name in self.quantities]

    def promised(self, name: str, rtol: float, atol: float, continuous: bool) -> float:
        """What tolerances promise of a quantity."""
        q, y = self.quantities[name], self.quantities["solution"]
        scale = _size(y) / math.sqrt(y.numel())
        relative = rtol + (atol / scale if scale else 0.0)
        integrated = atol * math.sqrt(q.numel()) if continuous and name != "solution" else 0.0
        return self.condition[name] * relative * _size(q) + integrated

    def rounding(self, name: str, dtype: torch.dtype, steps: int, size: float = 0.0) -> float:
        """What rounding may leave of a quantity (of that ``size``, if larger than the reference's) after so many steps
        in ``dtype``."""
        unit = torch.finfo(dtype).eps * (steps + 1) + self.tolerance * (self.steps + 1)
        return SAFETY * self.condition[name] * unit * max(size, _size(self.quantities[name]))


@dataclass(frozen=True)
class Excess:
    """The first quantity of a combination that is too far from where it should be."""

    quantity: str
    error: float
    allowed: float
    against: str

    def __str__(self) -> str:
        what = "the solution" if self.quantity == "solution" else f"the gradient of {self.quantity}"
        return f"{what} is {self.error:.2g} away from {self.against}, allowed {self.allowed:.2g} (relative)"


def is_discrete(sensealg: SensitivityAlgorithm) -> bool:
    """Whether the gradient is that of the steps taken."""
    return isinstance(sensealg, DirectAdjoint | CheckpointedAdjoint | ReversibleAdjoint)


def first_excess(
    found: Quantities,
    refined: Quantities | None,
    reference: Reference,
    *,
    rtol: float,
    atol: float,
    continuous: bool,
    dtype: torch.dtype,
    steps: int,
    direct: tuple[Quantities, Quantities | None] | None = None,
) -> tuple[dict[str, float], Excess | None]:
    """Allowed relative errors by quantity, and the first quantity that exceeds its own.

    ``refined``: the same with tighter tolerances; ``direct``: the same two by ``DirectAdjoint``, where it ran.
    """
    allowed: dict[str, float] = {}
    excess = None
    for name, q in reference.common(found):
        size = _size(reference.quantities[name])
        promised = reference.promised(name, rtol, atol, continuous)
        change = _moved(name, found, refined)
        ceiling = _CAP * size
        if direct is not None:
            ceiling = max(ceiling, _moved(name, *direct))
        limit = SAFETY * (promised + min(change, ceiling)) + reference.rounding(name, dtype, steps)
        error = _size(q - reference.quantities[name])
        allowed[name] = _relative(limit, size)
        if excess is None and not error <= limit:
            excess = Excess(name, _relative(error, size), allowed[name], f"the reference ({reference.method})")
    return allowed, excess


def unresolved(found: Quantities, refined: Quantities | None, reference: Reference) -> float | None:
    """How far the solution moves when refined, relative to it, where that is too far to compare it with anything."""
    moved = _relative(_moved("solution", found, refined), _size(reference.quantities["solution"]))
    return None if moved <= _CAP else moved


def first_difference(
    found: Quantities,
    direct: Quantities,
    reference: Reference,
    sensealg: SensitivityAlgorithm,
    *,
    dtype: torch.dtype,
    steps: int,
) -> Excess | None:
    """The first quantity in which a discrete adjoint differs from ``DirectAdjoint`` on the same steps."""
    for name, q in reference.common(found):
        size = _size(direct[name])
        limit = reference.rounding(name, dtype, steps, size)
        if isinstance(sensealg, ReversibleAdjoint):
            limit = max(limit, math.sqrt(torch.finfo(dtype).eps) * size)
        error = _size(q - direct[name])
        if not error <= limit:
            return Excess(name, _relative(error, size), _relative(limit, size), "DirectAdjoint on the same steps")
    return None


def refined(algorithm: Algorithm, rtol: float, atol: float, dtype: torch.dtype) -> tuple[Algorithm, float, float]:
    """Algorithm and tolerances whose result is compared to tell how converged one is: ten times tighter, half the
    step. Tolerances that the dtype cannot hold are made ten times looser instead."""
    if isinstance(algorithm, FixedStep):
        plain = dataclasses.replace(algorithm, mesh=None) if algorithm.mesh is not None else algorithm
        if algorithm.dt is not None:
            return dataclasses.replace(plain, dt=algorithm.dt / 2), rtol, atol
        if algorithm.steps is not None:
            return dataclasses.replace(plain, steps=algorithm.steps * 2), rtol, atol
        return dataclasses.replace(plain, mesh=functools.partial(_halved, algorithm.mesh)), rtol, atol
    factor = 0.1 if rtol * 0.1 >= 4 * torch.finfo(dtype).eps else 10.0
    return algorithm, rtol * factor, atol * factor


def _halved(mesh: Callable[[Any], Any] | None, t: Tensor) -> Tensor:
    whole = t if mesh is None else mesh(t)
    middle = (whole[1:] + whole[:-1]) / 2
    return torch.cat([torch.stack([whole[:-1], middle], dim=1).flatten(), whole[-1:]])


def relative_errors(found: Quantities, reference: Quantities) -> dict[str, float]:
    """Relative error of each group of quantities (all parameters are one)."""
    squares: dict[str, list[float]] = {}
    for name, q in found.items():
        if name not in reference:
            continue
        into = squares.setdefault(group(name), [0.0, 0.0])
        into[0] += _size(q - reference[name]) ** 2
        into[1] += _size(reference[name]) ** 2
    return {name: _relative(math.sqrt(a), math.sqrt(b)) for name, (a, b) in squares.items()}


def _moved(name: str, found: Quantities, other: Quantities | None) -> float:
    return 0.0 if other is None else _size(found[name] - other[name])


def _size(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x))


def _relative(error: float, size: float) -> float:
    return error / size if size else (math.inf if error else 0.0)
