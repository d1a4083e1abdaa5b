"""torchdyn.models."""

from pynode.compat.torchdyn.core import MultipleShootingLayer, NeuralODE, NeuralSDE, ODEProblem
from pynode.compat.torchdyn.models.cnf import CNF, autograd_trace, hutch_trace
from pynode.compat.torchdyn.models.energy import GNF, HNN, LNN, ConservativeLinearSNF
from pynode.compat.torchdyn.models.hybrid import HybridNeuralDE, LatentNeuralSDE

__all__ = [
    "CNF",
    "GNF",
    "HNN",
    "LNN",
    "ConservativeLinearSNF",
    "HybridNeuralDE",
    "LatentNeuralSDE",
    "MultipleShootingLayer",
    "NeuralODE",
    "NeuralSDE",
    "ODEProblem",
    "autograd_trace",
    "hutch_trace",
]
