"""Neural differential equations for PyTorch: solve, differentiate, cross-check."""

from pynode import nn, problems
from pynode.algorithms import (
    BS3,
    DP5,
    DP8,
    RK4,
    RK38,
    SSPRK33,
    AdaptiveHeun,
    Algorithm,
    AsynchronousLeapfrog,
    Euler,
    Fehlberg2,
    Heun,
    JuliaAlgorithm,
    Midpoint,
    Ralston,
    ReversibleHeun,
    SymplecticEuler,
    Tsit5,
    VelocityVerlet,
    Vern7,
    Vern9,
    Yoshida6,
)
from pynode.batch_solution import BatchSolution, RowCounts
from pynode.controllers import IController, PIController, PIDController
from pynode.crosscheck import CrosscheckReport, crosscheck
from pynode.errors import FieldError, GradientError, InputError, PynodeError, SolveError, UnsupportedError
from pynode.per_sample import PerSample
from pynode.recommend import Recommendation, recommend
from pynode.saveat import SaveAt
from pynode.sensealg import (
    BacksolveAdjoint,
    CheckpointedAdjoint,
    DirectAdjoint,
    ForwardSensitivity,
    GaussAdjoint,
    GaussKronrodAdjoint,
    InterpolatingAdjoint,
    QuadratureAdjoint,
    ReversibleAdjoint,
    SensitivityAlgorithm,
)
from pynode.solution import Counts, ReturnCode, Solution, Stats
from pynode.solve import solve

__version__ = "0.1.0"

__all__ = [
    "BS3",
    "DP5",
    "DP8",
    "RK4",
    "RK38",
    "SSPRK33",
    "AdaptiveHeun",
    "Algorithm",
    "AsynchronousLeapfrog",
    "BacksolveAdjoint",
    "BatchSolution",
    "CheckpointedAdjoint",
    "Counts",
    "CrosscheckReport",
    "DirectAdjoint",
    "Euler",
    "Fehlberg2",
    "FieldError",
    "ForwardSensitivity",
    "GaussAdjoint",
    "GaussKronrodAdjoint",
    "GradientError",
    "Heun",
    "IController",
    "InputError",
    "InterpolatingAdjoint",
    "JuliaAlgorithm",
    "Midpoint",
    "PIController",
    "PIDController",
    "PerSample",
    "PynodeError",
    "QuadratureAdjoint",
    "Ralston",
    "Recommendation",
    "ReturnCode",
    "ReversibleAdjoint",
    "ReversibleHeun",
    "RowCounts",
    "SaveAt",
    "SensitivityAlgorithm",
    "Solution",
    "SolveError",
    "Stats",
    "SymplecticEuler",
    "Tsit5",
    "UnsupportedError",
    "VelocityVerlet",
    "Vern7",
    "Vern9",
    "Yoshida6",
    "crosscheck",
    "nn",
    "problems",
    "recommend",
    "solve",
]
