"""Pictures of solutions, fields, decisions and densities.

Every function draws one picture into ``ax=`` (new axes of their own figure if there are none), returns the axes, and
leaves models, random numbers and gradients as it found them: tensors may require gradients and live on any device, and
grids are made where the model's parameters are. Needs matplotlib (``pip install 'pynode[plot]'``), imported when
something is drawn.
"""

from pynode.plotting.decision_boundary import plot_boundary_over_depth, plot_decision_boundary
from pynode.plotting.density import plot_density
from pynode.plotting.plane import principal_plane
from pynode.plotting.steps import StepLog, plot_evaluations, plot_steps, record_steps
from pynode.plotting.trajectories import plot_flow, plot_space_depth, plot_trajectories
from pynode.plotting.vector_field import plot_field_over_time, plot_vector_field

__all__ = [
    "StepLog",
    "plot_boundary_over_depth",
    "plot_decision_boundary",
    "plot_density",
    "plot_evaluations",
    "plot_field_over_time",
    "plot_flow",
    "plot_space_depth",
    "plot_steps",
    "plot_trajectories",
    "plot_vector_field",
    "principal_plane",
    "record_steps",
]
