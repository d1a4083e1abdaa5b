"""Integration algorithms: names and options only, no arithmetic.

An algorithm is an immutable object; the backends know how to run it. Names are those of OrdinaryDiffEq.jl;
the lower-case names of torchdiffeq are accepted as strings (:func:`algorithm_from_name`).
"""

from pynode.algorithms.auto_switch import AutoSwitch, AutoTsit5, AutoVern7, AutoVern9
from pynode.algorithms.base import Algorithm, FixedStep
from pynode.algorithms.bdf import FBDF
from pynode.algorithms.exponential import ETDRK4, Exponential
from pynode.algorithms.fixed_implicit import FixedImplicit
from pynode.algorithms.implicit import (
    TRBDF2,
    Implicit,
    ImplicitEuler,
    ImplicitMidpoint,
    KenCarp4,
    Kvaerno5,
    RadauIIA,
    RadauIIA5,
    RadauIIA9,
    Trapezoid,
)
from pynode.algorithms.julia import JuliaAlgorithm
from pynode.algorithms.multistep import (
    AB3,
    AB4,
    AB5,
    ABM32,
    ABM43,
    ABM54,
    VCABM,
    ExplicitAdams,
    FixedAdams,
    ImplicitAdams,
    Multistep,
)
from pynode.algorithms.names import ALGORITHMS, ALIASES, algorithm_from_name, as_algorithm
from pynode.algorithms.reversible import AsynchronousLeapfrog, Reversible, ReversibleHeun
from pynode.algorithms.rosenbrock import Rodas4, Rodas5P, Rosenbrock, Rosenbrock23
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
from pynode.algorithms.stabilized import RKC, ROCK2, ROCK4, Stabilized
from pynode.algorithms.symplectic import KahanLi8, McAte4, Symplectic, SymplecticEuler, VelocityVerlet, Yoshida6

__all__ = [
    "AB3",
    "AB4",
    "AB5",
    "ABM32",
    "ABM43",
    "ABM54",
    "ALGORITHMS",
    "ALIASES",
    "BS3",
    "DP5",
    "DP8",
    "ETDRK4",
    "FBDF",
    "RK4",
    "RK38",
    "RKC",
    "ROCK2",
    "ROCK4",
    "SSPRK33",
    "TRBDF2",
    "VCABM",
    "AdaptiveHeun",
    "Algorithm",
    "AsynchronousLeapfrog",
    "AutoSwitch",
    "AutoTsit5",
    "AutoVern7",
    "AutoVern9",
    "Euler",
    "ExplicitAdams",
    "Exponential",
    "Fehlberg2",
    "FixedAdams",
    "FixedImplicit",
    "FixedStep",
    "Heun",
    "Heun3",
    "Implicit",
    "ImplicitAdams",
    "ImplicitEuler",
    "ImplicitMidpoint",
    "JuliaAlgorithm",
    "KahanLi8",
    "KenCarp4",
    "Kvaerno5",
    "McAte4",
    "Midpoint",
    "Multistep",
    "RadauIIA",
    "RadauIIA5",
    "RadauIIA9",
    "Ralston",
    "Reversible",
    "ReversibleHeun",
    "Rodas4",
    "Rodas5P",
    "Rosenbrock",
    "Rosenbrock23",
    "Stabilized",
    "Symplectic",
    "SymplecticEuler",
    "Trapezoid",
    "Tsit5",
    "VelocityVerlet",
    "Vern7",
    "Vern9",
    "Yoshida6",
    "algorithm_from_name",
    "as_algorithm",
]
