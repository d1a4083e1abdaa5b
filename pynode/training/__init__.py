"""Training that stays an ODE: whether a model is one, how to keep it one at the least cost, and what makes it cheap.

Running costs (rates along the solution, or quantities of the solver's steps; add them up with :class:`RunningCosts`):
:class:`KineticEnergy`, :class:`JacobianFrobenius`, :class:`TaylorDerivative`, :class:`LocalError`,
:class:`StiffnessEstimate`. Beside them: :class:`RandomEnd`, a module of times, and :class:`SteadyState`, a penalty of
the flow behind the end.
"""

from pynode.nn.field_costs import JacobianFrobenius, KineticEnergy
from pynode.training.cost_curve import CostCurve, accuracy_against_evaluations
from pynode.training.decision import Decision
from pynode.training.defect import defect
from pynode.training.history import History
from pynode.training.initial_step import initial_step
from pynode.training.measure import Measurement, measure
from pynode.training.metrics import accuracy, squared_error
from pynode.training.random_end import RandomEnd
from pynode.training.running_costs import RunningCosts
from pynode.training.solver_estimates import LocalError, StiffnessEstimate
from pynode.training.solving_with import solving_with
from pynode.training.state_space import StateSpace
from pynode.training.steady_state import SteadyState
from pynode.training.step_adapter import StepAdapter
from pynode.training.taylor_derivative import TaylorDerivative
from pynode.training.validity import validity
from pynode.training.validity_report import ValidityReport

__all__ = [
    "CostCurve",
    "Decision",
    "History",
    "JacobianFrobenius",
    "KineticEnergy",
    "LocalError",
    "Measurement",
    "RandomEnd",
    "RunningCosts",
    "StateSpace",
    "SteadyState",
    "StepAdapter",
    "StiffnessEstimate",
    "TaylorDerivative",
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
