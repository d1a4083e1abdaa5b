"""The SciML backend: torch differentiates, Julia integrates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pynode.capture.capturing import capture
from pynode.capture.refusal import NotCapturable
from pynode.dependencies import Dependencies
from pynode.errors import CallbackWarning
from pynode.julia.emit import emit
from pynode.julia.ensemble import solve_ensemble
from pynode.julia.lux import LuxModel, LuxNeuralODE, neural_ode, to_lux
from pynode.julia.lux_convert import register_lux
from pynode.julia.lux_layers import LuxLayer
from pynode.julia.routes import callbacks
from pynode.problem import ODEProblem
from pynode.solution import Counts

__all__ = [
    "CallbackWarning",
    "LuxLayer",
    "LuxModel",
    "LuxNeuralODE",
    "NotCapturable",
    "callbacks",
    "neural_ode",
    "register_lux",
    "solve_ensemble",
    "source",
    "to_lux",
]


def source(f: Callable[..., Any], t: float, y0: Any, args: tuple[Any, ...] = ()) -> str:
    """The Julia program that the Julia backend runs for a field, as text.

    It defines ``f!(du, u, p, t)``, ``vjp!(dλ, λ, u, p, t)``, ``vjp_p!(g, λ, u, p, t)``, ``vjp_t(λ, u, p, t)`` and
    ``tgrad!(dT, u, p, t)`` on flat vectors in row-major order, needs Julia's standard library only (1.5 or newer), and
    says in comments what ``p`` holds.

    Parameters
    ----------
    f : callable
        ``f(t, y, *args)``, as for :func:`pynode.solve`.
    t : float
        A time at which ``f`` can be evaluated.
    y0 : tensor or tree of tensors
        A state at which it can be evaluated, of real dtype.
    args : tuple
        Differentiable tensors in it come first in ``p``.

    Raises
    ------
    NotCapturable
        If ``f`` cannot be turned into a graph, or has an operator without Julia form; it says which, and where.
    """
    problem = ODEProblem(f, y0, [float(t), float(t) + 1.0], args)
    with problem.autocast():
        dependencies = Dependencies(problem, Counts(), None)
    return emit(capture(problem, dependencies)).standalone()
