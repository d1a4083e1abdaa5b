"""Quantities of the discrete solve, one a step, summed over the accepted steps.

A running cost with an attribute ``of_steps`` (a tuple of :class:`StepQuantity`) ends in as many scalar channels whose
rate is zero and to which each accepted step adds what the quantities are worth there. Being channels of the state they
are part of the discrete solve: ``DirectAdjoint`` and ``CheckpointedAdjoint`` differentiate them exactly for the steps
that were taken, as they do states. For continuous adjoints they do not exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pynode.errors import UnsupportedError, explain
from pynode.sensealg import CheckpointedAdjoint, DirectAdjoint, SensitivityAlgorithm

if TYPE_CHECKING:
    from pynode.native.tableaus import Tableau


@dataclass(frozen=True)
class Step:
    """One Runge-Kutta step of the flat real state, without the channels of costs.

    Attributes
    ----------
    h : float, or 0-dim Tensor where times have a gradient
        Its signed length.
    y, y1 : Tensor (n,)
        The states that it goes from and to.
    stages : Tensor (S, n)
        Its stage derivatives ``k_i``.
    tableau : Tableau
        The method's coefficients.
    rtol, atol : float or Tensor
        The solver's tolerances.
    """

    h: Any
    y: Tensor
    y1: Tensor
    stages: Tensor
    tableau: Tableau
    rtol: Any
    atol: Any

    def combined(self, weights: tuple[float, ...]) -> Tensor:
        """``sum_i weights_i k_i`` (n,), over the first stages where there are fewer weights."""
        row = torch.tensor(weights, dtype=self.stages.dtype, device=self.stages.device)
        return torch.mv(self.stages[: len(weights)].t(), row)

    def state(self, i: int) -> Tensor:
        """What stage ``i`` was evaluated at, ``y + h sum_j a_ij k_j``."""
        state: Tensor = self.y + self.h * self.combined(self.tableau.a[i])
        return state


class StepQuantity:
    """Base class: a number for each accepted step, as a running cost.

    Its running cost (alone, or within :class:`pynode.training.RunningCosts`) is the sum over all accepted steps. With
    the torch backend and explicit Runge-Kutta algorithms; differentiable under ``DirectAdjoint`` and
    ``CheckpointedAdjoint``. UnsupportedError elsewhere.
    """

    weight: float = 1.0

    @property
    def of_steps(self) -> tuple[StepQuantity, ...]:
        """The quantity itself."""
        return (self,)

    def of_step(self, step: Step) -> Tensor:
        """Its value for one step, 0-dim."""
        raise NotImplementedError

    def missing(self, tableau: Tableau) -> str | None:
        """None, or what the quantity needs of a method that this one has not."""
        return None

    def __call__(self, t: Tensor, y: Any, *args: Any) -> Tensor:
        """Its rate, zero: between steps nothing is added. In the real dtype of the state, which is that of ``t``."""
        return torch.zeros_like(t)

    def flow_rate(self, t: Tensor, z: Tensor, probes: Tensor, *context: Tensor) -> Tensor:
        """The same within a :class:`pynode.nn.CNF`."""
        return torch.zeros_like(t)


def refuse_step_quantities(backend: str, sensealg: SensitivityAlgorithm, compiled: bool, differentiable: bool) -> None:
    """Raise UnsupportedError where the steps of a solve cannot be looked into, or not be differentiated."""
    asked = "a running cost of the solver's steps (LocalError, StiffnessEstimate)"
    if backend != "torch":
        came, remedy = f"{asked} with backend={backend!r}", "drop backend=, or take TaylorDerivative, a rate"
    elif compiled:
        came, remedy = f"{asked} with compile='step'", "drop compile="
    elif differentiable and not isinstance(sensealg, DirectAdjoint | CheckpointedAdjoint):
        came = f"{asked} with {sensealg.name}, which differentiates the equation instead of its discretisation"
        remedy = "use sensealg=CheckpointedAdjoint() or DirectAdjoint()"
    else:
        return
    raise UnsupportedError(
        explain(came, "the steps of the torch backend, differentiated by DirectAdjoint or CheckpointedAdjoint", remedy)
    )
