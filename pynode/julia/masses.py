"""What a mass matrix asks of a solve in Julia: juliaenv/src/masses.jl is the other side.

Forward, SciML's methods take the matrix. Gradients do not go through SciMLSensitivity's treatment of it: its adjoints
are given the products of the differential equation that ``M dy/dt = f`` implies for the differential variables, which
has no mass matrix.
"""

from __future__ import annotations

from pynode.algorithms import JuliaAlgorithm
from pynode.backends import Request
from pynode.errors import UnsupportedError, explain
from pynode.native.algebraic import check_consistent, check_method
from pynode.sensealg import BacksolveAdjoint
from pynode.solution import Counts

#: As in juliaenv/src/masses.jl.
OFFERED = ("Rodas4", "Rodas5P", "FBDF", "Rosenbrock23", "KenCarp4", "TRBDF2")


def check_mass(request: Request) -> None:
    """Raise unless Julia's method takes the problem's mass matrix and the problem is of index 1 and consistent.

    Raises
    ------
    UnsupportedError
        For a method or a sensitivity algorithm that does not take it, and on a GPU.
    InputError
        For an index above 1 and for inconsistent initial values.
    """
    problem, sensealg = request.problem, request.sensealg
    mass = problem.mass
    if mass is None:
        return
    if not isinstance(request.algorithm, JuliaAlgorithm):  # those Julia knows itself
        check_method(mass, request.algorithm)
        if request.algorithm.name not in OFFERED:
            raise UnsupportedError(
                explain(
                    f"a mass matrix with {request.algorithm.name} and backend='julia'",
                    f"one of {', '.join(OFFERED)}, whose states between steps were found right there",
                    "use Rodas5P() or FBDF(), or backend='torch'",
                )
            )
    checkpointing = getattr(sensealg, "checkpointing", False)
    if request.differentiable and (isinstance(sensealg, BacksolveAdjoint) or checkpointing):
        name = f"{sensealg.name}(checkpointing=True)" if checkpointing else sensealg.name
        raise UnsupportedError(
            explain(
                f"a mass matrix with {name} and backend='julia'",
                "an adjoint that reads the state from the dense output",
                "use GaussAdjoint() or QuadratureAdjoint()",
            )
        )
    if problem.layout.device.type != "cpu":
        raise UnsupportedError(
            explain(
                f"backend='julia' got a mass matrix on {problem.layout.device}",
                "tensors on the CPU",
                "move them, or use backend='torch'",
            )
        )
    if mass.singular:
        check_consistent(request, mass, problem.field(Counts()), problem.y0.detach())
