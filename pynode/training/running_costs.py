"""Several running costs in one solve, and their weighted sum."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pynode.errors import InputError, explain
from pynode.layout import Tree, leaves_of
from pynode.nn.trees import check_callable
from pynode.step_quantity import StepQuantity


class RunningCosts:
    """Named running costs, integrated together: ``l = {name: l_name(t, y, *args)}``.

    For ``running_cost=`` of :func:`pynode.solve`, :class:`pynode.nn.NeuralODE` and :class:`pynode.nn.CNF`::

        costs = RunningCosts(energy=KineticEnergy(f), jacobian=JacobianFrobenius(f), error=LocalError())
        model = NeuralODE(f, running_cost=costs)
        out, integrals = model.output_and_cost(x)
        loss = criterion(out, target) + costs.penalty(integrals)

    Each keeps its own weight, which may be changed during training (``costs["error"].weight = 10.0``): the integrals
    are unweighted, so that nothing is captured or compiled anew for that.

    Parameters
    ----------
    **costs : callable
        ``l(t, y, *args)``, or a cost of :mod:`pynode.training`. The weight of a callable without an attribute
        ``weight`` is one. Sums over steps come last in ``sol.running_cost``.

    Raises
    ------
    InputError
        If there is none, one cannot be called, or one is a RunningCosts.

    Examples
    --------
    >>> f = lambda t, y: -y
    >>> energy = pynode.training.KineticEnergy(f, weight=0.5)
    >>> costs = pynode.training.RunningCosts(energy=energy, size=lambda t, y: y.sum(-1))
    >>> sol = pynode.solve(f, torch.ones(1, 1), [0.0, 1.0], running_cost=costs)
    >>> {name: round(value.item(), 4) for name, value in sol.running_cost.items()}
    {'energy': 0.4323, 'size': 0.6321}
    >>> round(costs.penalty(sol.running_cost).item(), 4)
    0.8483
    """

    def __init__(self, **costs: Any) -> None:
        if not costs:
            raise InputError(explain("RunningCosts()", "at least one cost by name", "write energy=KineticEnergy(f)"))
        for name, cost in costs.items():
            check_callable(name, cost, "l(t, y, *args)")
            if isinstance(cost, RunningCosts):
                raise InputError(explain(f"{name} is a RunningCosts", "a single cost", "unpack it with **costs.costs"))
        # Channels of steps are those at the end of the state.
        self.costs: dict[str, Any] = dict(sorted(costs.items(), key=lambda item: isinstance(item[1], StepQuantity)))

    @property
    def of_steps(self) -> tuple[StepQuantity, ...]:
        """The costs that are sums over steps."""
        return tuple(cost for cost in self.costs.values() if isinstance(cost, StepQuantity))

    def __getitem__(self, name: str) -> Any:
        return self.costs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.costs)

    def __call__(self, t: Tensor, y: Tree, *args: Any) -> dict[str, Tree]:
        """Rates by name."""
        return {name: cost(t, y, *args) for name, cost in self.costs.items()}

    def flow_rate(self, t: Tensor, z: Tensor, probes: Tensor, *context: Tensor) -> dict[str, Tree]:
        """Rates by name within a :class:`pynode.nn.CNF`, where a callable without ``flow_rate`` gets
        ``(t, z, *context)``."""
        return {
            name: cost.flow_rate(t, z, probes, *context) if hasattr(cost, "flow_rate") else cost(t, z, *context)
            for name, cost in self.costs.items()
        }

    def drawn(self, y0: Tree, generator: torch.Generator | None = None) -> RunningCosts:
        """The costs for one solve from ``y0``, with noise of its own where they have any."""
        drawn = {n: cost.drawn(y0, generator) if hasattr(cost, "drawn") else cost for n, cost in self.costs.items()}
        if all(drawn[name] is cost for name, cost in self.costs.items()):
            return self
        own = copy.copy(self)
        own.costs = drawn
        return own

    def penalty(self, integrals: dict[str, Tree]) -> Tensor:
        """``sum_name weight * mean(integral)``, 0-dim; the mean is over the batch.

        Parameters
        ----------
        integrals : dict
            ``sol.running_cost``, or what :meth:`NeuralODE.output_and_cost` and :meth:`CNF.log_prob_and_cost` give.
        """
        terms = []
        for name, cost in self.costs.items():
            weight = getattr(cost, "weight", 1.0)
            terms += [weight * leaf.mean() for _, leaf in leaves_of(integrals[name], name)]
        return torch.stack(terms).sum()
