"""A model whose differential equations are solved otherwise for a while."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from pynode.algorithms import Algorithm, FixedStep, as_algorithm
from pynode.errors import InputError, explain
from pynode.nn.neural_ode import NeuralODE

#: An algorithm, its name, or a rule that gives each NeuralODE of the model its own.
Choice = Algorithm | str | Callable[[NeuralODE], Algorithm]


def odes_of(model: Any) -> dict[str, NeuralODE]:
    """Every :class:`pynode.nn.NeuralODE` in ``model``, itself included, by its name there.

    Raises
    ------
    InputError
        If it has none.
    """
    found = {}
    if isinstance(model, torch.nn.Module):
        found = {name: part for name, part in model.named_modules() if isinstance(part, NeuralODE)}
    if not found:
        raise InputError(
            explain(
                f"the model, a {type(model).__name__}, has no pynode.nn.NeuralODE in it",
                "a NeuralODE, or a module that holds one as a submodule",
                "wrap the field: NeuralODE(f, t=(0, 1), algorithm=...)",
            )
        )
    return found


def span_of(ode: NeuralODE) -> float:
    """Length of the time span."""
    times = ode.t() if isinstance(ode.t, torch.nn.Module) else ode.t
    return abs(float(times[-1]) - float(times[0]))


def step_of(ode: NeuralODE) -> float:
    """The fixed step as a fraction of the time span: ``1 / n`` for ``n`` equal steps; that of the mesh's average.

    Raises
    ------
    InputError
        For an adaptive algorithm.
    """
    algorithm = ode.algorithm
    if not isinstance(algorithm, FixedStep) or algorithm.adaptive:
        raise InputError(explain(f"{algorithm.name} chooses its own steps", "fixed steps", "give Euler(dt=...)"))
    if algorithm.dt is not None:
        return min(1.0, algorithm.dt / span_of(ode))
    if algorithm.steps is not None:
        return 1.0 / algorithm.steps
    times = ode.t() if isinstance(ode.t, torch.nn.Module) else ode.t
    if algorithm.mesh is not None:
        times = algorithm.mesh(torch.as_tensor(times, dtype=torch.float64))
    return 1.0 / (len(times) - 1)


def steps_in(step: float) -> int:
    """How many steps of this fraction of the span a solve takes, the last one perhaps shorter."""
    return max(1, math.ceil(1.0 / step - 1e-6))


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """No gradients, evaluation mode; every module's own mode is restored afterwards."""
    modules = list(model.modules())
    modes = [part.training for part in modules]
    try:
        for part in modules:
            part.training = False
        with torch.no_grad():
            yield
    finally:
        for part, mode in zip(modules, modes, strict=True):
            part.training = mode


@contextmanager
def solving_with(
    model: Any,
    algorithm: Choice | None = None,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    hook: Callable[..., Any] | None = None,
    **options: Any,
) -> Iterator[None]:
    """Every NeuralODE in ``model`` is solved otherwise inside the block.

    :meth:`pynode.nn.NeuralODE.with_solver` is the same for one NeuralODE, without changing it: better where other
    threads use the model too.

    Parameters
    ----------
    model : torch.nn.Module
    algorithm : Algorithm, str, or callable of a NeuralODE, optional
    rtol, atol : float, optional
    hook : callable, optional
        ``hook(ode, inputs, solution)`` after every solve. Hooks that were registered before are silent in the block.
    **options
        Further ones of :func:`pynode.solve`. ``compile=`` is off unless it is given: a few evaluations are not worth
        a compilation.

    Raises
    ------
    InputError
        If the model has no NeuralODE.

    Examples
    --------
    >>> model = pynode.nn.NeuralODE(lambda t, y: -y)
    >>> with pynode.training.solving_with(model, pynode.Euler(steps=1)):
    ...     model(torch.ones(1))
    tensor([0.])
    >>> round(model(torch.ones(1)).item(), 4)
    0.3679
    """
    with ExitStack() as stack:
        for ode in odes_of(model).values():
            kept = {key: ode.__dict__[key] for key in _CHANGED}
            stack.callback(ode.__dict__.update, kept)
            if algorithm is not None:
                own = algorithm(ode) if not isinstance(algorithm, Algorithm | str) else algorithm
                ode.algorithm = as_algorithm(own, options.get("backend", ode.options.get("backend", "torch")))
                ode.sensealg = None  # that of another algorithm may not go with this one
            ode.rtol = ode.rtol if rtol is None else rtol
            ode.atol = ode.atol if atol is None else atol
            ode.options = {**ode.options, "compile": False, **options}
            ode._solve_hooks = OrderedDict() if hook is None else OrderedDict({0: hook})
        yield


_CHANGED = ("algorithm", "sensealg", "rtol", "atol", "options", "_solve_hooks")
