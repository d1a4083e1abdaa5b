"""Training that stays an ODE: whether a model is one, and how to keep it one at the least cost."""

from pynode.training.measure import Measurement, measure
from pynode.training.metrics import accuracy, squared_error
from pynode.training.solving_with import solving_with
from pynode.training.state_space import StateSpace
from pynode.training.validity import validity
from pynode.training.validity_report import ValidityReport

__all__ = [
    "Measurement",
    "StateSpace",
    "ValidityReport",
    "accuracy",
    "measure",
    "solving_with",
    "squared_error",
    "validity",
]
