"""What the continuous adjoints share: the adjoint equation, and the sweep backward over the times of a loss.

With ``a = dL/dy`` between two such times: ``da/dt = -a df/dy``, ``dL/dp = -int a df/dp dt`` taken backward; at each of
them ``a`` gains the loss's own derivative (Chen et al. 2018).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from pynode.backends import Gradients, Query
from pynode.errors import GradientError, explain
from pynode.native.adjoints.products import Products

if TYPE_CHECKING:
    from pynode.native.record import NativeRecord


class Integral(Protocol):
    """What a method integrates backward, between the times at which the loss looks at the solution."""

    def begin(self, t: float, y: Tensor) -> None:
        """Start at time ``t``, where the solution is ``y``, with a zero adjoint."""

    def run(self, t: float, t1: float) -> None:
        """Integrate from ``t`` back to ``t1``."""

    def reach(self, t: float, y: Tensor, later: float) -> None:
        """Time ``t`` was reached from ``later``; the solution there is ``y``."""

    def adjoint(self) -> Tensor:
        """The adjoint (n,) here."""
        ...

    def gain(self, cotangent: Tensor) -> None:
        """Add to the adjoint here."""

    def gradients(self) -> list[Tensor | None]:
        """Gradients of all inputs, None where there is no dependence."""
        ...


def sweep(
    record: NativeRecord, query: Query, cotangents: Tensor, products: Products, integral: Integral, every: bool
) -> Gradients:
    """Gradients of ``sum_i <cotangents_i, y(times_i)>``; arguments as for the checkpointed adjoint.

    ``every``: stop at every time of the query, not only at those with a cotangent.
    """
    request, times = record.request, query.times
    name, t0 = request.sensealg.name, record.trajectory.mesh[0]
    if query.derivative:
        raise GradientError(
            explain(
                f"sol.derivative(t) was differentiated under {name}",
                "a sensitivity algorithm that differentiates the dense output",
                "use CheckpointedAdjoint, DirectAdjoint, or f(t, sol(t)) itself",
            )
        )
    order = sorted(range(len(times)), key=lambda i: times[i], reverse=record.trajectory.direction > 0)
    # Nothing happens after the last time that has a cotangent.
    wanted = cotangents.any(dim=1).tolist()
    order = order[next((k for k, i in enumerate(order) if wanted[i]), len(order)) :]
    if not every:
        order = [i for i in order if wanted[i]]
    anchors = record.anchors(times)
    if anchors._version:
        raise GradientError(
            explain(
                f"ys was changed in place after the solve, and {name} needs its values",
                "ys as the solve returned it",
                "work on ys.clone(), or use CheckpointedAdjoint",
            )
        )
    y0 = request.problem.y0.detach()
    field = products.plain
    times_gradient = torch.zeros(len(times), dtype=torch.float64) if query.time_gradient else None
    here = times[order[0]] if order else t0
    if here != t0:
        products.dependencies.check_repeated(field)
    integral.begin(here, anchors[order[0]] if order else y0)
    moved = here != t0
    for index in order:
        if times[index] != here:
            integral.run(here, times[index])
            integral.reach(times[index], anchors[index], here)
            here = times[index]
        # At t0 the state is y0 itself, whatever t0 is.
        if times_gradient is not None and (query.own_times or times[index] != t0):
            with torch.no_grad():
                slope = field(field.time(times[index]), anchors[index])
            times_gradient[index] = torch.dot(cotangents[index], slope).item()
        if times[index] == t0 and here == t0:
            continue
        integral.gain(cotangents[index])
    if here != t0:
        integral.run(here, t0)
        integral.reach(t0, y0, here)
    adjoint = integral.adjoint().clone()
    mesh_gradient = None
    if query.time_gradient:
        with torch.no_grad():
            slope = field(field.time(t0), y0)
        mesh_gradient = torch.zeros(len(record.trajectory.mesh), dtype=torch.float64)
        # A save time at t0 that was given apart does not move with it: dy(s; t0)/dt0 = -f(t0, y0) there too.
        apart = [i for i in order if query.own_times and times[i] == t0]
        mesh_gradient[0] = -torch.dot(adjoint + cotangents[apart].sum(0), slope).item()
        mesh_gradient = record.free_boundaries(mesh_gradient)
    for index in order:
        if times[index] == t0:
            adjoint += cotangents[index]
    count = len(products.aliases)
    if moved:
        gradients = integral.gradients()
    else:  # no state after the initial one has a cotangent
        gradients = [*map(torch.zeros_like, products.aliases), *products.dependencies.zeros()]
    return Gradients(adjoint, mesh_gradient, times_gradient, gradients[:count], gradients[count:])
