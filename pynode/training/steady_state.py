"""The flow behind the end time is to stand still (TisODE)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pynode.errors import InputError, explain
from pynode.layout import Tree
from pynode.nn.field_costs import squared_norm
from pynode.nn.neural_ode import NeuralODE
from pynode.nn.trees import last, map_leaves
from pynode.solution import Solution
from pynode.solve import solve


class AbsoluteVelocity:
    """``|f(t, y, *args)|`` of every component, a running cost in the form of ``y``."""

    def __init__(self, f: Callable[..., Any]) -> None:
        self.f = f

    def __call__(self, t: Tensor, y: Tree, *args: Any) -> Tree:
        return map_leaves(torch.abs, self.f(t, y, *args))


class SteadyState:
    """``| integral from T to T + S of |f(y(t))| dt |^2``, averaged over the batch (TisODE: Yan et al. 2020, "On
    robustness of neural ordinary differential equations").

    The absolute value is that of each component, the norm Euclidean. It is a second solve, on from the first one's end
    state, with the model's own algorithm, tolerances and gradients; a field without explicit time is meant, as there.
    Any backend and sensitivity algorithm will do::

        steady = SteadyState()
        sol = model.solve(x)
        loss = criterion(model.output(sol.ys[-1]), target) + steady.weight * steady(model, x, sol)

    Parameters
    ----------
    span : float, optional
        ``S``, in the direction of the solve; its length by default.
    event_ndim : int
        Number of trailing dimensions of the state that are one element's.
    weight : float
        0.01 by default, that of the authors' program.

    Examples
    --------
    >>> model = pynode.nn.NeuralODE(lambda t, y: -y)
    >>> x = torch.ones(4, 1)
    >>> steady = pynode.training.SteadyState(span=1.0)
    >>> round(steady(model, x, model.solve(x)).item(), 4)  # (exp(-1) - exp(-2))^2
    0.0541
    """

    def __init__(self, span: float | None = None, event_ndim: int = 1, weight: float = 0.01) -> None:
        if span is not None and not 0 < span < float("inf"):
            raise InputError(explain(f"SteadyState(span={span!r})", "a positive number", "drop it"))
        self.span = span
        self.event_ndim = event_ndim
        self.weight = weight

    def __call__(self, model: NeuralODE, x: Any, sol: Solution, args: tuple[Any, ...] = ()) -> Tensor:
        """The penalty without its weight, 0-dim.

        Parameters
        ----------
        model : NeuralODE
        x : Any
            The input.
        sol : Solution
            ``model.solve(x, args=args)``, whose states end in the last time.
        args : tuple
            The further arguments of that solve.
        """
        start, end = sol.span
        length = end - start if self.span is None else (self.span if end > start else -self.span)
        behind = solve(
            model.f,
            last(sol.ys),
            [end, end + length],
            args=(*model.conditions(x), *args),
            algorithm=model.algorithm,
            sensealg=model.sensealg,
            rtol=model.rtol,
            atol=model.atol,
            running_cost=AbsoluteVelocity(model.f),
            **model.options,
        )
        return squared_norm(behind.running_cost, self.event_ndim).mean()
