"""torchdyn.core."""

from pynode.compat.torchdyn.core.defunc import DEFunc, DEFuncBase
from pynode.compat.torchdyn.core.neuralde import NeuralDE, NeuralODE
from pynode.compat.torchdyn.core.problems import ODEProblem
from pynode.compat.torchdyn.unsupported import (
    MultipleShootingLayer,
    MultipleShootingProblem,
    NeuralSDE,
    SDEFunc,
    SDEProblem,
)

__all__ = [
    "DEFunc",
    "DEFuncBase",
    "MultipleShootingLayer",
    "MultipleShootingProblem",
    "NeuralDE",
    "NeuralODE",
    "NeuralSDE",
    "ODEProblem",
    "SDEFunc",
    "SDEProblem",
]
