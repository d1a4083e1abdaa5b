"""Every algorithm by its name, and the names of other libraries."""

from __future__ import annotations

import difflib
from typing import Any

from pynode.algorithms.base import Algorithm
from pynode.algorithms.bdf import FBDF
from pynode.algorithms.exponential import ETDRK4
from pynode.algorithms.expressions import algorithm_from_expression
from pynode.algorithms.implicit import (
    TRBDF2,
    ImplicitEuler,
    ImplicitMidpoint,
    KenCarp4,
    Kvaerno5,
    RadauIIA5,
    RadauIIA9,
    Trapezoid,
)
from pynode.algorithms.julia import JuliaAlgorithm
from pynode.algorithms.multistep import AB3, AB4, AB5, ABM32, ABM43, ABM54, VCABM, ExplicitAdams, ImplicitAdams
from pynode.algorithms.reversible import AsynchronousLeapfrog, ReversibleHeun
from pynode.algorithms.rosenbrock import Rodas4, Rodas5P, Rosenbrock23
from pynode.algorithms.runge_kutta import (
    BS3,
    DP5,
    DP8,
    RK4,
    RK38,
    SSPRK33,
    AdaptiveHeun,
    Euler,
    Fehlberg2,
    Heun,
    Heun3,
    Midpoint,
    Ralston,
    Tsit5,
    Vern7,
    Vern9,
)
from pynode.algorithms.stabilized import RKC, ROCK2, ROCK4
from pynode.algorithms.symplectic import KahanLi8, McAte4, SymplecticEuler, VelocityVerlet, Yoshida6
from pynode.errors import InputError, explain

ALGORITHMS: dict[str, type[Algorithm]] = {
    cls.__name__: cls
    for cls in (
        *(Euler, Midpoint, Heun, Ralston, RK4, RK38, SSPRK33, Heun3),
        *(ReversibleHeun, AsynchronousLeapfrog),
        *(AB3, AB4, AB5, ABM32, ABM43, ABM54, ExplicitAdams, ImplicitAdams),
        *(FBDF, VCABM, ETDRK4),
        *(SymplecticEuler, VelocityVerlet, McAte4, Yoshida6, KahanLi8),
        *(RKC, ROCK2, ROCK4),
        *(Rosenbrock23, Rodas4, Rodas5P),
        *(BS3, DP5, Tsit5, Vern7, Vern9, DP8, Fehlberg2, AdaptiveHeun),
        *(ImplicitEuler, ImplicitMidpoint, Trapezoid, TRBDF2, KenCarp4, Kvaerno5, RadauIIA5, RadauIIA9),
    )
}

#: Names of other libraries that do not equal a class name in lower case.
ALIASES: dict[str, str] = {
    "dopri5": "DP5",
    "dopri8": "DP8",
    "bosh3": "BS3",
    "adaptive_heun": "AdaptiveHeun",
    "heun2": "Heun",
    "rk3/8": "RK38",
    "reversible_heun": "ReversibleHeun",
    "explicit_adams": "ExplicitAdams",
    "implicit_adams": "ImplicitAdams",
    "fixed_adams": "ImplicitAdams",
    "alf": "AsynchronousLeapfrog",
}


def algorithm_from_name(name: str, foreign: bool = False) -> Algorithm:
    """The algorithm called ``name`` (case-insensitive class name or alias), with default options; or that which it
    writes as SciML does, ``"AutoTsit5(Rosenbrock23())"``.

    ``foreign``: a name that is not pynode's own is one of OrdinaryDiffEq.jl's.

    Raises
    ------
    InputError
        For an unknown name, of which the message lists the nearest known ones, and for a call that cannot be read.
    """
    table = {key.lower(): cls for key, cls in ALGORITHMS.items()}
    table.update({alias: ALGORITHMS[key] for alias, key in ALIASES.items()})
    found = table.get(name.lower())
    if found is not None:
        return found()
    if foreign:
        return JuliaAlgorithm(name)
    if "(" in name:
        return algorithm_from_expression(name, ALGORITHMS)
    near = difflib.get_close_matches(name.lower(), table, n=3, cutoff=0.4)
    names = [table[key].__name__ for key in near] or sorted(ALGORITHMS)
    hint = "did you mean " if near else "known algorithms are "
    raise InputError(
        explain(
            f"unknown algorithm {name!r}",
            f"one of {', '.join(sorted(ALGORITHMS))} or the aliases {', '.join(ALIASES)}",
            hint + ", ".join(dict.fromkeys(names)) + "; all of OrdinaryDiffEq.jl's are there with backend='julia'",
        )
    )


def as_algorithm(algorithm: Any, backend: str = "torch") -> Algorithm:
    """An algorithm object from itself or from its name; for the Julia backend also from what SciML calls it, and from
    an object of diffeqpy's."""
    if isinstance(algorithm, str):
        return algorithm_from_name(algorithm, foreign=backend == "julia")
    if type(algorithm).__module__.partition(".")[0] == "juliacall":
        return JuliaAlgorithm(object=algorithm)
    if isinstance(algorithm, type) and issubclass(algorithm, Algorithm):
        raise InputError(
            explain(
                f"algorithm is the class {algorithm.__name__}", "an algorithm object", f"write {algorithm.__name__}()"
            )
        )
    if not isinstance(algorithm, Algorithm):
        raise InputError(
            explain(f"algorithm is {algorithm!r}", "an algorithm object or its name", "write algorithm=Tsit5()")
        )
    return algorithm
