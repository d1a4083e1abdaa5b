"""The options of a solve, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.controllers import PIDController
from pynode.errors import InputError, UnsupportedError, explain
from pynode.problem import ODEProblem
from pynode.sensealg import (
    CheckpointedAdjoint,
    DirectAdjoint,
    GaussAdjoint,
    QuadratureAdjoint,
    ReversibleAdjoint,
    SensitivityAlgorithm,
)
from pynode.transforms import any_true, check_common, number, numbers, smallest, transformed


def floats(name: str, values: Sequence[float] | Tensor) -> tuple[float, ...]:
    """``values`` as floats; raises InputError unless all are finite."""
    listed = numbers(name, values.reshape(-1)) if isinstance(values, Tensor) else [float(x) for x in values]
    if not all(math.isfinite(x) for x in listed):
        raise InputError(explain(f"{name} holds a non-finite time", "finite times", f"remove it from {name}"))
    return tuple(listed)


def check_tolerances(problem: ODEProblem, rtol: float | Tensor, atol: float | Tensor) -> None:
    """Raise InputError unless the tolerances are ones that the state's precision can hold."""
    for name, value in (("rtol", rtol), ("atol", atol)):
        if isinstance(value, Tensor):
            if value.ndim > 1 or value.numel() not in (1, problem.state_layout.size):
                raise InputError(
                    explain(
                        f"{name} has shape {tuple(value.shape)}",
                        f"a float or a 1-D tensor with one entry per element of the flattened state, "
                        f"{problem.state_layout.size}",
                        "give one number",
                    )
                )
            check_common(name, value)
            low, high = -number(-value.min()), number(value.max())
        else:
            low = high = value
            if not isinstance(value, int | float):
                raise InputError(
                    explain(f"{name} = {value!r}", "a number or a 1-D tensor", f"give a positive {name} such as 1e-6")
                )
        if not (low >= 0 and high < math.inf):
            raise InputError(explain(f"{name} = {low}", "a finite number >= 0", f"give a positive {name} such as 1e-6"))
    # Scalars pay nothing for this check unless rtol is below the unit roundoff.
    least = smallest(rtol)
    unit = torch.finfo(problem.layout.dtype).eps / 2
    if least >= unit:
        return
    size = problem.y0.detach()[..., : problem.state_layout.size].abs()
    tolerance = size * rtol + atol
    if any_true(tolerance < unit * size) or any_true(tolerance == 0):
        wider = "" if problem.layout.dtype == torch.float64 else ", or solve in float64"
        raise InputError(
            explain(
                f"rtol = {least:.3g} with this atol asks for less than {problem.layout.dtype} can hold "
                f"at the size of y0",
                f"atol + rtol * |y0| of at least {unit:.3g} * |y0|",
                f"raise rtol to {4 * unit:.0e} or more{wider}",
            )
        )


def check_steps(max_steps: int, dt0: float | None, dtmin: float, dtmax: float) -> None:
    """Raise InputError for a bound on the steps that is none."""
    if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
        raise InputError(explain(f"max_steps = {max_steps!r}", "an integer >= 1", "give the largest number of steps"))
    if dt0 is not None and not 0 < dt0 < math.inf:
        raise InputError(explain(f"dt0 = {dt0}", "a positive magnitude", "drop the sign: the direction follows t"))
    if not 0 <= dtmin <= dtmax or dtmax == 0:
        raise InputError(
            explain(f"dtmin = {dtmin}, dtmax = {dtmax}", "0 <= dtmin <= dtmax and dtmax > 0", "give magnitudes")
        )


def check_controller(controller: Any) -> None:
    """Raise InputError unless ``controller`` is None or one."""
    if controller is not None and not isinstance(controller, PIDController):
        raise InputError(explain(f"controller is {controller!r}", "a controller object", "write PIController()"))


def graphed(sensealg: SensitivityAlgorithm) -> bool:
    """Whether gradients by ``sensealg`` are taken in compiled steps."""
    return isinstance(
        sensealg, CheckpointedAdjoint | ReversibleAdjoint | DirectAdjoint | GaussAdjoint | QuadratureAdjoint
    )


def check_compile(compile: Any, sensealg: SensitivityAlgorithm, differentiable: bool, autocast: bool) -> None:
    """Raise where there is no such tier of compilation, or none for this solve."""
    if compile not in (False, "step", "solve"):
        raise InputError(explain(f"compile = {compile!r}", "False, 'step' or 'solve'", "use compile='solve'"))
    if compile == "step" and autocast:
        raise UnsupportedError(
            explain(
                "compile='step' under torch.autocast",
                "a solve outside of it: the solver's own arithmetic is in the graph, too",
                "move `with torch.autocast(...)` inside f, and let f return its result .float()",
            )
        )
    if compile == "step" and transformed():
        raise UnsupportedError(
            explain(
                f"compile='step' with {sensealg.name} inside a torch.func transform",
                "a solve that is not transformed: the graphs of its steps cannot be",
                "drop compile=, or use loss.backward() or torch.autograd.grad",
            )
        )
    if compile == "step" and differentiable and not graphed(sensealg):
        raise UnsupportedError(
            explain(
                f"compile='step' with {sensealg.name}",
                "CheckpointedAdjoint, ReversibleAdjoint, DirectAdjoint, GaussAdjoint, QuadratureAdjoint or a solve "
                "under no_grad",
                "drop compile=, or take one of them",
            )
        )
