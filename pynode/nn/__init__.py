"""Models."""

from pynode.nn.gradient_flow import GradientFlow
from pynode.nn.hamiltonian import HamiltonianODE
from pynode.nn.lagrangian import LagrangianODE
from pynode.nn.mechanical import MechanicalODE
from pynode.nn.neural_ode import NeuralODE
from pynode.nn.pair import Concatenated
from pynode.nn.port_hamiltonian import MechanicalEnergy, PortHamiltonianODE
from pynode.nn.universal import UniversalODE

__all__ = [
    "Concatenated",
    "GradientFlow",
    "HamiltonianODE",
    "LagrangianODE",
    "MechanicalEnergy",
    "MechanicalODE",
    "NeuralODE",
    "PortHamiltonianODE",
    "UniversalODE",
]
