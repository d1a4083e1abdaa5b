"""Models."""

from pynode.nn.gru_ode import GRUBayesCell, GRUField
from pynode.nn.latent_ode import ELBO, LatentODE, Recognition
from pynode.nn.lie_bracket import LieBracketField
from pynode.nn.neural_cde import ControlledField, MatrixField, NeuralCDE
from pynode.nn.neural_ode import NeuralODE
from pynode.nn.ode_rnn import ODERNN, Filtered

__all__ = [
    "ELBO",
    "ODERNN",
    "ControlledField",
    "Filtered",
    "GRUBayesCell",
    "GRUField",
    "LatentODE",
    "LieBracketField",
    "MatrixField",
    "NeuralCDE",
    "NeuralODE",
    "Recognition",
]
