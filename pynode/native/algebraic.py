"""What a problem with a mass matrix must satisfy before its first step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pynode.algorithms import Algorithm
from pynode.errors import InputError, UnsupportedError, explain
from pynode.mass_matrix import MassMatrix
from pynode.problem import Field
from pynode.sensealg import CheckpointedAdjoint, DirectAdjoint

if TYPE_CHECKING:
    from pynode.backends import Request


def check_mass_matrix(request: Request, field: Field, y0: Tensor) -> None:
    """Raise unless the method takes the problem's mass matrix and, where that is singular, the problem is of index 1
    and ``y0`` consistent: it satisfies the algebraic equations.

    Raises
    ------
    UnsupportedError
        For a method or a sensitivity algorithm that does not take it.
    InputError
        For an index above 1 and for inconsistent initial values.
    """
    mass, algorithm, sensealg = request.problem.mass, request.algorithm, request.sensealg
    if mass is None:
        return
    check_method(mass, algorithm)
    if request.differentiable and not isinstance(sensealg, CheckpointedAdjoint | DirectAdjoint):
        raise UnsupportedError(
            explain(
                f"a mass matrix with {sensealg.name}",
                "a sensitivity algorithm that differentiates the steps",
                "use CheckpointedAdjoint() or DirectAdjoint()",
            )
        )
    if mass.singular:
        check_consistent(request, mass, field, y0.detach())


def check_method(mass: MassMatrix, algorithm: Algorithm) -> None:
    """Raise UnsupportedError for a method that does not take a mass matrix of this kind."""
    takes = getattr(algorithm, "masses", "none")
    if takes == "none" or (mass.singular and takes != "singular"):
        kind = "a singular mass matrix" if mass.singular else "a mass matrix"
        raise UnsupportedError(
            explain(
                f"{kind} with {algorithm.name}",
                "an implicit method that takes one" + ("" if takes == "none" else "; this one takes regular ones"),
                "use Rodas5P() or RadauIIA5()",
            )
        )


@torch.no_grad()
def check_consistent(request: Request, mass: MassMatrix, field: Field, y0: Tensor) -> None:
    """Raise InputError unless the problem is of index 1 and ``y0`` consistent.

    The algebraic equations ``g(z) = left^T f = 0`` are solved for ``z`` along ``right`` by one Newton step: how far
    that moves ``y0``, in the tolerances, is how inconsistent it is.
    """
    t0 = request.problem.times[0]
    time = field.time(t0)
    residual = mass.left.t() @ field(time, y0)
    inner = mass.left.t() @ field.jacobian(time, y0) @ mass.right
    sizes = torch.linalg.svdvals(inner)
    if not bool(torch.isfinite(sizes).all()) or not bool(torch.isfinite(residual).all()):
        return  # reported as a non-finite f by the solve
    if sizes.min() <= sizes.max() * len(sizes) * torch.finfo(sizes.dtype).eps:
        raise InputError(
            explain(
                f"the algebraic equations do not determine the algebraic variables at t = {t0:.6g}: the mass matrix is "
                "singular and so is the Jacobian of these equations",
                "a differential-algebraic problem of index 1",
                "differentiate the algebraic equations with respect to time until they determine the variables",
            )
        )
    move = mass.right @ torch.linalg.solve(inner, residual)
    norm = (move / (request.atol + request.rtol * y0.abs())).square().mean().sqrt().item()
    if not norm <= 1.0:
        at = int(move.abs().argmax())
        raise InputError(
            explain(
                f"y0 does not satisfy the algebraic equations of the singular mass matrix: their residual is "
                f"{residual.abs().max().item():.3g}, which number {at} of y0 alone would have to move by about "
                f"{-move[at].item():.3g} to remove",
                "consistent initial values: f(t0, y0) = 0 in the rows where the mass matrix is zero",
                "solve these equations for the algebraic variables first, and start there",
            )
        )
