"""Models."""

from pynode.nn.neural_cde import ControlledField, MatrixField, NeuralCDE
from pynode.nn.neural_ode import NeuralODE

__all__ = ["ControlledField", "MatrixField", "NeuralCDE", "NeuralODE"]
