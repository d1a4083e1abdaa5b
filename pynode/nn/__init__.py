"""Models."""

from pynode.nn.latent_ode import ELBO, LatentODE, Recognition
from pynode.nn.neural_cde import ControlledField, MatrixField, NeuralCDE
from pynode.nn.neural_ode import NeuralODE
from pynode.nn.ode_rnn import ODERNN, Filtered

__all__ = [
    "ELBO",
    "ODERNN",
    "ControlledField",
    "Filtered",
    "LatentODE",
    "MatrixField",
    "NeuralCDE",
    "NeuralODE",
    "Recognition",
]
