"""Models."""

from pynode.nn.neural_ode import NeuralODE

__all__ = ["NeuralODE"]
