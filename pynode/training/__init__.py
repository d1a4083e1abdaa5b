"""Training flows that stay flows: regularisers that make them easy to integrate.

Running costs (rates along the solution, or quantities of the solver's steps; add them up with :class:`RunningCosts`):
:class:`KineticEnergy`, :class:`JacobianFrobenius`, :class:`TaylorDerivative`, :class:`LocalError`,
:class:`StiffnessEstimate`. Beside them: :class:`RandomEnd`, a module of times, and :class:`SteadyState`, a penalty of
the flow behind the end.
"""

from pynode.nn.field_costs import JacobianFrobenius, KineticEnergy
from pynode.training.random_end import RandomEnd
from pynode.training.running_costs import RunningCosts
from pynode.training.solver_estimates import LocalError, StiffnessEstimate
from pynode.training.steady_state import SteadyState
from pynode.training.taylor_derivative import TaylorDerivative

__all__ = [
    "JacobianFrobenius",
    "KineticEnergy",
    "LocalError",
    "RandomEnd",
    "RunningCosts",
    "SteadyState",
    "StiffnessEstimate",
    "TaylorDerivative",
]
