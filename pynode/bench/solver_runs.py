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
    """A solve. ``work``: evaluations, and as many for a Jacobian as it has columns. ``error`` is that at the end,
    ``largest`` the largest at the ends of all steps; None where the solve failed, or no such reference is known."""

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
    largest: float | None = None


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
    """The state at the end (n,): published, or solved at a tolerance of 1e-13."""
    if name in REFERENCES:
        return np.array(REFERENCES[name])
    instance = built(name)
    scale = SCALES.get(name, 1.0)
    if name in STIFF:
        return _by_scipy(instance, "Radau", _TIGHT, 1e-2 * scale * _TIGHT)[1][-1]
    return _trajectory(name).ys[-1].reshape(-1).numpy()


@functools.cache
def _trajectory(name: str) -> pynode.Solution:
    """A non-stiff problem solved at a tolerance of 1e-13, with dense output of order 8."""
    instance = built(name)
    options: dict[str, Any] = {"algorithm": pynode.Vern9(), "rtol": _TIGHT, "atol": _TIGHT}
    with torch.no_grad():
        return pynode.solve(
            instance.field, instance.y0, instance.t[[0, -1]], saveat=pynode.SaveAt(dense=True), **options
        )


def _error(states: Any, exact: Any, scale: float) -> float:
    return float(np.max(np.abs(states - exact) / (scale + np.abs(exact))))


def run(name: str, method: str, library: str, rtol: float, max_steps: int = 200_000) -> Run:
    """Solve problem ``name`` once by ``method`` of ``library`` (``"pynode"`` or ``"scipy"``)."""
    instance, scale = built(name), SCALES.get(name, 1.0)
    exact = reference(name)  # before the clock runs
    size = instance.y0.numel()
    start = time.perf_counter()
    accepted, failure = 0, ""
    counted = Counted(instance.field)
    times: Any = ()
    states: Any = None
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
                    saveat=pynode.SaveAt(steps=True),
                )
            times, states, accepted = sol.ts.numpy(), sol.ys.flatten(1).numpy(), sol.stats.forward.accepted
        else:
            times, states, accepted = _by_scipy(instance, method, rtol, scale * rtol, counted)
    except (PynodeError, RuntimeError, ValueError) as raised:
        failure = f"{type(raised).__name__}: {raised}"
    seconds = time.perf_counter() - start
    error: float | None = None
    largest: float | None = None
    if states is not None:
        error = _error(states[-1], exact, scale)
        if not np.isfinite(error):
            error, failure = None, "the end is not finite"
        elif name in DETEST:
            with torch.no_grad():
                path = _trajectory(name)(torch.from_numpy(times)).flatten(1).numpy()
            largest = _error(states, path, scale)
    work = counted.plain + size * counted.jacobians
    jacobians = counted.jacobians
    return Run(name, method, library, rtol, error, counted.plain, jacobians, work, accepted, seconds, failure, largest)


def _by_scipy(
    instance: Instance, method: str, rtol: float, atol: float, field: nn.Module | None = None
) -> tuple[Any, Any, int]:
    """Times, states at them and the number of steps, by ``solve_ivp``; the Jacobian of implicit methods by autograd.

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
    return found.t, found.y.T, len(found.t) - 1
