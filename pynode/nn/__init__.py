"""Models: fields, states, depths and layers that one composes with :class:`NeuralODE`.

Examples
--------
>>> field = pynode.nn.ConcatTime(torch.nn.Linear(4, 3))
>>> model = pynode.nn.NeuralODE(field, input=pynode.nn.Augment(1), output=torch.nn.Linear(3, 1))
>>> model(torch.randn(8, 2)).shape
torch.Size([8, 1])
"""

from pynode.nn.adaptive_depth import AdaptiveDepth
from pynode.nn.augment import Augment
from pynode.nn.bases import RBF, Basis, Chebyshev, Fourier, Polynomial
from pynode.nn.cnf import CNF
from pynode.nn.concat_context import ConcatContext
from pynode.nn.concat_time import ConcatSquash, ConcatTime
from pynode.nn.data_control import DataControl
from pynode.nn.field_costs import FieldCost, JacobianFrobenius, KineticEnergy
from pynode.nn.galerkin import GalerkinConv2d, GalerkinLinear
from pynode.nn.gradient_flow import GradientFlow
from pynode.nn.gru_ode import GRUBayesCell, GRUField
from pynode.nn.hamiltonian import HamiltonianODE
from pynode.nn.higher_order import HigherOrder
from pynode.nn.hyper_network import ConditionalHyperNetwork, HyperNetwork, parameters_size
from pynode.nn.input_layer import InputLayer
from pynode.nn.lagrangian import LagrangianODE
from pynode.nn.latent_ode import ELBO, LatentODE, Recognition
from pynode.nn.lie_bracket import LieBracketField
from pynode.nn.log_density import LogDensity
from pynode.nn.mechanical import MechanicalODE
from pynode.nn.neural_cde import ControlledField, MatrixField, NeuralCDE
from pynode.nn.neural_ode import NeuralODE
from pynode.nn.ode_rnn import ODERNN, Filtered
from pynode.nn.pair import Concatenated
from pynode.nn.polynet import PolyNet
from pynode.nn.port_hamiltonian import MechanicalEnergy, PortHamiltonianODE
from pynode.nn.resnet import ResNet, ResNetBlock
from pynode.nn.revnet import RevNet
from pynode.nn.runge_kutta_net import RungeKuttaNet
from pynode.nn.stacked import Stacked
from pynode.nn.time_layer import TimeLayer, TimeSequential
from pynode.nn.times import Times
from pynode.nn.trace import ExactTrace, HutchinsonTrace
from pynode.nn.universal import UniversalODE

__all__ = [
    "CNF",
    "ELBO",
    "ODERNN",
    "RBF",
    "AdaptiveDepth",
    "Augment",
    "Basis",
    "Chebyshev",
    "ConcatContext",
    "ConcatSquash",
    "ConcatTime",
    "Concatenated",
    "ConditionalHyperNetwork",
    "ControlledField",
    "DataControl",
    "ExactTrace",
    "FieldCost",
    "Filtered",
    "Fourier",
    "GRUBayesCell",
    "GRUField",
    "GalerkinConv2d",
    "GalerkinLinear",
    "GradientFlow",
    "HamiltonianODE",
    "HigherOrder",
    "HutchinsonTrace",
    "HyperNetwork",
    "InputLayer",
    "JacobianFrobenius",
    "KineticEnergy",
    "LagrangianODE",
    "LatentODE",
    "LieBracketField",
    "LogDensity",
    "MatrixField",
    "MechanicalEnergy",
    "MechanicalODE",
    "NeuralCDE",
    "NeuralODE",
    "PolyNet",
    "Polynomial",
    "PortHamiltonianODE",
    "Recognition",
    "ResNet",
    "ResNetBlock",
    "RevNet",
    "RungeKuttaNet",
    "Stacked",
    "TimeLayer",
    "TimeSequential",
    "Times",
    "UniversalODE",
    "parameters_size",
]
