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
    Tsit5,
    Vern7,
    Vern9,
)
from pynode.controllers import IController, PIController, PIDController
from pynode.crosscheck import CrosscheckReport, crosscheck
from pynode.errors import FieldError, GradientError, InputError, PynodeError, SolveError, UnsupportedError
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
    "PynodeError",
    "QuadratureAdjoint",
    "Ralston",
    "Recommendation",
    "ReturnCode",
    "ReversibleAdjoint",
    "ReversibleHeun",
    "SaveAt",
    "SensitivityAlgorithm",
    "Solution",
    "SolveError",
    "Stats",
    "Tsit5",
    "UnsupportedError",
    "Vern7",
    "Vern9",
    "crosscheck",
    "nn",
    "problems",
    "recommend",
    "solve",
]
