"""Training that stays an ODE: whether a model is one, and how to keep it one at the least cost."""

from pynode.training.cost_curve import CostCurve, accuracy_against_evaluations
from pynode.training.decision import Decision
from pynode.training.defect import defect
from pynode.training.history import History
from pynode.training.initial_step import initial_step
from pynode.training.measure import Measurement, measure
from pynode.training.metrics import accuracy, squared_error
from pynode.training.solving_with import solving_with
from pynode.training.state_space import StateSpace
from pynode.training.step_adapter import StepAdapter
from pynode.training.validity import validity
from pynode.training.validity_report import ValidityReport

__all__ = [
    "CostCurve",
    "Decision",
    "History",
    "Measurement",
    "StateSpace",
    "StepAdapter",
    "ValidityReport",
    "accuracy",
    "accuracy_against_evaluations",
    "defect",
    "initial_step",
    "measure",
    "solving_with",
    "squared_error",
    "validity",
]
