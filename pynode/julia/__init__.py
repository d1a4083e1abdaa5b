"""Julia: torch models solved by SciML, and torch models exported to Lux and DiffEqFlux."""

from pynode.julia.lux import LuxModel, LuxNeuralODE, neural_ode, to_lux
from pynode.julia.lux_convert import register_lux
from pynode.julia.lux_layers import LuxLayer

__all__ = ["LuxLayer", "LuxModel", "LuxNeuralODE", "neural_ode", "register_lux", "to_lux"]
