"""How stiff a step was: its size times the largest eigenvalue, in units of an explicit method's stability interval."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from pynode.errors import UnsupportedError, explain
from pynode.native.runge_kutta import RungeKutta, TapedRungeKutta
from pynode.native.tableaus import Tableau
from pynode.transforms import number


@lru_cache(maxsize=64)
def stability_interval(tableau: Tableau) -> float:
    """The largest ``x`` such that ``|R(-z)| <= 1`` for all ``z`` in ``[0, x]``, with the stability polynomial ``R``; to
    three digits."""
    stages = len(tableau.b)
    a = np.zeros((stages, stages))
    for i, row in enumerate(tableau.a):
        a[i, : len(row)] = row
    b = np.array(tableau.b)
    x, step = 0.0, 1e-3
    while abs(1.0 - (x + step) * b @ np.linalg.solve(np.eye(stages) + (x + step) * a, np.ones(stages))) <= 1.0 + 1e-12:
        x += step
    return x


@lru_cache(maxsize=64)
def twins(tableau: Tableau) -> tuple[int, int] | None:
    """The last two stages at one time, None where there are none: the quotient of the differences of their slopes and
    of their states is an eigenvalue where the field is stiff (Hairer and Wanner 1996, section IV.2)."""
    c = tableau.c
    return next(((i - 1, i) for i in range(len(c) - 1, 0, -1) if c[i] == c[i - 1]), None)


def check_twins(name: str, tableau: Tableau) -> None:
    """Raise UnsupportedError for a method from whose stages stiffness cannot be told."""
    if twins(tableau) is None:
        raise UnsupportedError(
            explain(
                f"AutoSwitch(nonstiff={name}())",
                "an explicit method with two stages at one time, from which stiffness is estimated",
                "use Tsit5(), Vern7(), Vern9(), DP5() or DP8()",
            )
        )


def explicit_eigenvalue(stepper: RungeKutta | TapedRungeKutta, h: float) -> float:
    """Estimate of the largest eigenvalue from the stages of the last attempt, of size ``h``; 0 where both stages are
    one."""
    tableau = stepper.coefficients.tableau
    pair = twins(tableau)
    assert pair is not None
    with torch.no_grad():
        stages = stepper.stages().detach()
        rows = [torch.tensor([*tableau.a[i], *[0.0] * (len(stages) - i)], dtype=stages.dtype) for i in pair]
        apart = h * ((rows[1] - rows[0]).to(stages.device) @ stages)
        return _quotient(stages[pair[1]] - stages[pair[0]], apart)


def _quotient(slopes: Tensor, states: Tensor) -> float:
    below = number(torch.linalg.vector_norm(states))
    return number(torch.linalg.vector_norm(slopes)) / below if below else 0.0
