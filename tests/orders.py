"""The orders that a method states, whatever family it is of."""

from __future__ import annotations

import torch

from pynode.algorithms import ALGORITHMS
from pynode.native.methods import family_of
from pynode.native.tableaus import TABLEAUS
from pynode.problem import ODEProblem
from pynode.solution import Counts


def orders_of(name: str) -> tuple[int, int]:
    """Order of the method, and the power of the step size in its error estimate."""
    algorithm = ALGORITHMS[name]()
    family = family_of(algorithm)
    if family is None:
        return TABLEAUS[name].order, TABLEAUS[name].error_order or TABLEAUS[name].order
    field = ODEProblem(lambda t, y: -y, torch.ones(2, dtype=torch.float64), [0.0, 1.0]).field(Counts())
    stepper = family.make(algorithm, field, False, None)  # type: ignore[arg-type]
    return stepper.order, stepper.error_order
