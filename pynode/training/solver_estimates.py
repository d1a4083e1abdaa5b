"""What a solver estimates of its own steps, as regularisers (Pal, Ma, Shah and Rackauckas 2021, "Opening the blackbox:
accelerating neural differential equations by regularizing internal solver heuristics")."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pynode.errors import InputError, explain
from pynode.native.tableaus import Tableau
from pynode.step_quantity import Step, StepQuantity


class LocalError(StepQuantity):
    """``sum_j E_j |h_j|`` over the accepted steps: their local error estimates (ERNODE, Pal et al. 2021).

    ``E_j`` is the root mean square over the state of ``h_j sum_i b_error_i k_i / (atol + rtol max(|y_j|, |y_j+1|))``,
    what the solver compares with one, or without that scale. All of it is differentiated, the scale included; the step
    sizes are not. The algorithm needs an error estimate (no fixed-step one has); the larger of DP8's two counts alone.

    Parameters
    ----------
    weight : float
        100 by default, where Pal et al. begin; they let it decay exponentially to 10 during training (assign to
        ``weight``).
    scaled : bool
        Divide by the solver's tolerances. Steps of an adaptive solver are chosen for scaled errors of nearly one, so
        that the value says little then; its gradient points to larger steps.

    Examples
    --------
    >>> f = lambda t, y: torch.sin(5 * t) * y
    >>> error = pynode.training.LocalError()
    >>> sol = pynode.solve(f, torch.ones(1), [0.0, 1.0], running_cost=error)
    >>> sol.running_cost.item() > 0
    True
    """

    def __init__(self, weight: float = 100.0, scaled: bool = True) -> None:
        self.weight = weight
        self.scaled = scaled

    def of_step(self, step: Step) -> Tensor:
        """``E_j |h_j|``."""
        assert step.tableau.b_error is not None
        error = step.h * step.combined(step.tableau.b_error)
        if self.scaled:
            rtol, atol = (_per_element(x, error) for x in (step.rtol, step.atol))
            error = error / (atol + rtol * torch.maximum(step.y.abs(), step.y1.abs()))
        size: Tensor = torch.linalg.vector_norm(error) / error.numel() ** 0.5 * abs(step.h)
        return size

    def missing(self, tableau: Tableau) -> str | None:
        return "an embedded error estimate" if tableau.b_error is None else None


class StiffnessEstimate(StepQuantity):
    """``sum_j S_j`` over the accepted steps: how stiff the solver finds them (SRNODE, Pal et al. 2021).

    ``S_j = |k_a - k_b| / |g_a - g_b|`` for the last two stages of one abscissa, evaluated at ``g_a`` and ``g_b``: an
    estimate of the norm of the Jacobian (Hairer and Wanner 1996, "Solving Ordinary Differential Equations II", section
    IV.2; zero where the two states are equal). Norms are Euclidean, over the whole batch. Nothing more is evaluated
    than in any solve.

    Parameters
    ----------
    weight : float
        0.1 by default, that of Pal et al.
    scaled : bool
        Multiply by ``|h_j|``: a measure against the method's region of stability, and, with equal steps, one that does
        not grow with their number. Not so in the paper.

    Examples
    --------
    >>> cost = pynode.training.StiffnessEstimate()
    >>> sols = [pynode.solve(lambda t, y: -k * y, torch.ones(1), [0.0, 1.0], running_cost=cost) for k in (1.0, 20.0)]
    >>> bool(sols[1].running_cost > sols[0].running_cost)
    True
    """

    def __init__(self, weight: float = 0.1, scaled: bool = False) -> None:
        self.weight = weight
        self.scaled = scaled

    def of_step(self, step: Step) -> Tensor:
        """``S_j``, or ``S_j |h_j|``."""
        pair = _last_pair(step.tableau)
        assert pair is not None
        a, b = pair
        slopes = torch.linalg.vector_norm(step.stages[b] - step.stages[a])
        apart = torch.linalg.vector_norm(step.state(b) - step.state(a))
        different = apart > 0
        estimate = torch.where(different, slopes / torch.where(different, apart, torch.ones_like(apart)), 0.0)
        return estimate * abs(step.h) if self.scaled else estimate

    def missing(self, tableau: Tableau) -> str | None:
        return "two stages at one abscissa" if _last_pair(tableau) is None else None


def _last_pair(tableau: Tableau) -> tuple[int, int] | None:
    """The last two consecutive stages of one abscissa."""
    pairs = [(i, i + 1) for i, (c, d) in enumerate(pairwise(tableau.c)) if c == d]
    return pairs[-1] if pairs else None


def _per_element(tolerance: Any, like: Tensor) -> Any:
    """A tolerance for ``like`` (n,), of which there may be more, for what counts in the norm beside the state."""
    if not isinstance(tolerance, Tensor) or tolerance.numel() == 1:
        return tolerance
    if tolerance.numel() < like.numel():
        raise InputError(explain(f"a tolerance of {tolerance.numel()} entries", f"{like.numel()}", "give one number"))
    return tolerance[: like.numel()].to(like)
