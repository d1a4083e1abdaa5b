"""Models."""

from pynode.nn.cnf import CNF
from pynode.nn.concat_context import ConcatContext
from pynode.nn.flow_costs import JacobianFrobenius, KineticEnergy
from pynode.nn.log_density import LogDensity
from pynode.nn.neural_ode import NeuralODE
from pynode.nn.trace import ExactTrace, HutchinsonTrace

__all__ = [
    "CNF",
    "ConcatContext",
    "ExactTrace",
    "HutchinsonTrace",
    "JacobianFrobenius",
    "KineticEnergy",
    "LogDensity",
    "NeuralODE",
]
