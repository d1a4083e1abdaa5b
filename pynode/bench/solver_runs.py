"""One solve of a test problem by pynode or by SciPy, and what it cost and missed: see :mod:`pynode.bench.solvers`."""

from __future__ import annotations

import functools
import time
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import pynode
from pynode.errors import PynodeError
from pynode.problems import DETEST, STIFF, Instance
from pynode.problems.stiff import REFERENCES

#: Absolute tolerance over relative one: the size below which a component does not count. DETEST's is 1.
SCALES = {"rober": 1e-6, "hires": 1e-2, "orego": 1e-2, "pollu": 1e-4, "vdpol": 1.0, "bruss": 1.0}

#: Relative tolerance of the reference solves.
_TIGHT = 1e-13


@dataclass(frozen=True)
class Run:
    """A solve. ``work``: evaluations, and as many for a Jacobian as it has columns; None of all where it failed."""

    problem: str
    method: str
    library: str
    rtol: float
    error: float | None
    nfe: int
    njac: int
    work: int
    accepted: int
    seconds: float
    failure: str = ""


class Counted(nn.Module):
    """A field that counts its evaluations: plain ones, and those through which a Jacobian is taken.

    A solve without gradients evaluates f plainly; an evaluation by a transform, or of a state that asks for a
    gradient, is one whose Jacobian is being made, whatever its solver calls it.
    """

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field = field
        self.plain = self.jacobians = 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        wrapped = torch._C._functorch.is_functorch_wrapped_tensor(y)  # torch has no public name for it
        dual = not wrapped and torch.autograd.forward_ad.unpack_dual(y).tangent is not None  # type: ignore[no-untyped-call]
        if wrapped or dual or (y.requires_grad and torch.is_grad_enabled()):
            self.jacobians += 1
        else:
            self.plain += 1
        derivative: Tensor = self.field(t, y)
        return derivative


@functools.cache
def built(name: str) -> Instance:
    """The problem in float64, nothing of it asking for a gradient."""
    instance = {**DETEST, **STIFF}[name].build()
    for parameter in instance.field.parameters():
        parameter.requires_grad_(False)
    return instance


@functools.cache
def reference(name: str) -> Any:
    """The state at the end: published, or solved at a tolerance of 1e-13."""
    if name in REFERENCES:
        return np.array(REFERENCES[name])
    instance = built(name)
    scale = SCALES.get(name, 1.0)
    if name in STIFF:
        return _by_scipy(instance, "Radau", _TIGHT, 1e-2 * scale * _TIGHT)[0]
    with torch.no_grad():
        ends = instance.t[[0, -1]]
        options: dict[str, Any] = {"algorithm": pynode.Vern9(), "rtol": _TIGHT, "atol": _TIGHT}
        return pynode.solve(instance.field, instance.y0, ends, **options).ys[-1].reshape(-1).numpy()


def run(name: str, method: str, library: str, rtol: float, max_steps: int = 200_000) -> Run:
    """Solve problem ``name`` once by ``method`` of ``library`` (``"pynode"`` or ``"scipy"``)."""
    instance, scale = built(name), SCALES.get(name, 1.0)
    exact = reference(name)  # before the clock runs
    size = instance.y0.numel()
    start = time.perf_counter()
    accepted, failure = 0, ""
    counted = Counted(instance.field)
    end: Any = None
    try:
        if library == "pynode":
            with torch.no_grad():
                sol = pynode.solve(
                    counted,
                    instance.y0,
                    instance.t[[0, -1]],
                    algorithm=method,
                    rtol=rtol,
                    atol=scale * rtol,
                    max_steps=max_steps,
                )
            end, accepted = sol.ys[-1].reshape(-1).numpy(), sol.stats.forward.accepted
        else:
            end, accepted = _by_scipy(instance, method, rtol, scale * rtol, counted)
    except (PynodeError, RuntimeError, ValueError) as error:
        failure = f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - start
    error_size = None if end is None else float(np.max(np.abs(end - exact) / (scale + np.abs(exact))))
    if error_size is not None and not np.isfinite(error_size):
        error_size, failure = None, "the end is not finite"
    work = counted.plain + size * counted.jacobians
    return Run(
        name, method, library, rtol, error_size, counted.plain, counted.jacobians, work, accepted, seconds, failure
    )


def _by_scipy(
    instance: Instance, method: str, rtol: float, atol: float, field: nn.Module | None = None
) -> tuple[Any, int]:
    """The end and the number of steps, by ``solve_ivp`` with the Jacobian by autograd for implicit methods.

    Raises
    ------
    RuntimeError
        If SciPy does not reach the end.
    """
    from scipy.integrate import solve_ivp

    shape, f = instance.y0.shape, instance.field if field is None else field

    def rate(t: float, y: Any) -> Any:
        with torch.no_grad():
            state = torch.from_numpy(y.copy()).reshape(shape)
            return f(torch.tensor(t, dtype=torch.float64), state).reshape(-1).numpy()

    def jacobian(t: float, y: Any) -> Any:
        time_ = torch.tensor(t, dtype=torch.float64)
        state = torch.from_numpy(y.copy())
        return torch.func.jacrev(lambda x: f(time_, x.reshape(shape)).reshape(-1))(state).numpy()

    extra: dict[str, Any] = {"jac": jacobian} if method in ("Radau", "BDF", "LSODA") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SciPy raises an rtol below 100 eps to that
        span = (instance.t[0].item(), instance.t[-1].item())
        found = solve_ivp(rate, span, instance.y0.reshape(-1).numpy(), method=method, rtol=rtol, atol=atol, **extra)
    if not found.success:
        raise RuntimeError(found.message)
    return found.y[:, -1], len(found.t) - 1
