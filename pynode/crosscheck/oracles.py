"""Solvers that share no code with pynode's: SciPy, torchdiffeq, diffrax. Each joins where it is installed."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode.crosscheck.case import Case, Solver
from pynode.errors import InputError, SolveError, explain
from pynode.problem import ODEProblem
from pynode.solution import Counts, ReturnCode

Vector = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Contestant:
    """One way an oracle solves and differentiates.

    ``solver(rtol, atol)`` makes its solver; ``tolerance`` is its own where it does not take the user's; ``continuous``
    tells that it integrates an adjoint equation.
    """

    oracle: str
    algorithm: str
    sensealg: str
    solver: Callable[[float, float], Solver]
    continuous: bool
    tolerance: float | None = None


def contestants(name: str, case: Case) -> list[Contestant] | str:
    """What the oracle called ``name`` (with ``:METHOD`` for SciPy) can run, or why it cannot.

    Raises
    ------
    InputError
        For an unknown name.
    """
    oracle, _, method = name.partition(":")
    if oracle not in ORACLES:
        raise InputError(explain(f"unknown oracle {name!r}", f"one of {', '.join(ORACLES)}", "drop it"))
    package = "diffrax" if oracle == "diffrax" else oracle
    if importlib.util.find_spec(package) is None:
        return f"not installed (pip install {package})"
    return ORACLES[oracle](case, method)


class _External(torch.autograd.Function):
    """States (T, n) by a solver outside torch; ``engine`` also pulls cotangents back to y0 and the other tensors."""

    @staticmethod
    def forward(ctx: Any, engine: Any, y0: Tensor, *tensors: Tensor) -> Tensor:
        ctx.engine = engine
        ys: Tensor = engine.states(y0)
        return ys

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        return (None, *ctx.engine.pull_back(grad_outputs[0]))


class SciPySolver:
    """``scipy.integrate.solve_ivp`` at 1e-12; the gradient by the adjoint equation ``da/dt = -a df/dy`` integrated the
    same way against the dense forward solution. Torch contributes the products ``a df/dy`` and ``a df/dp`` only.

    ``TOLERANCE`` is what its results are trusted to: dense output is of lower order than the steps.
    """

    TOLERANCE = 1e-8

    def __init__(self, method: str = "DOP853") -> None:
        self.method = method

    def __call__(self, case: Case, y0: Any, t: Tensor, args: tuple[Any, ...]) -> Any:
        problem = ODEProblem(case.f, y0, t.detach(), args)
        tensors = [*problem.arguments.tensors, *case.parameters.values()]
        ys = _External.apply(_SciPyAdjoint(problem, tensors, self.method), problem.y0, *tensors)  # type: ignore[no-untyped-call]
        return problem.layout.unpack(ys)


class _SciPyAdjoint:
    def __init__(self, problem: ODEProblem, tensors: Sequence[Tensor], method: str) -> None:
        self.problem, self.method = problem, method
        self.field = problem.field(Counts())
        self.tensors = list(tensors)
        self.real = problem.layout.dtype

    def _tensor(self, x: Vector) -> Tensor:
        return torch.from_numpy(x.copy()).to(device=self.problem.layout.device, dtype=self.real)

    def _integrate(self, derivative: Callable[[float, Vector], Vector], span: Any, y0: Vector, **options: Any) -> Any:
        from scipy.integrate import solve_ivp

        result = solve_ivp(derivative, span, y0, method=self.method, rtol=1e-12, **options)
        if not result.success:
            raise SolveError(
                explain(
                    f"SciPy's {self.method} stopped at t = {result.t[-1]:.6g} ({result.message})",
                    "it to reach the end",
                    "try the oracle 'scipy:LSODA', or a shorter time span",
                ),
                ReturnCode.Unstable,
                float(result.t[-1]),
            )
        return result

    def states(self, y0: Tensor) -> Tensor:
        def derivative(t: float, y: Vector) -> Vector:
            with torch.no_grad():
                return _vector(self.field(self.field.time(t), self._tensor(y)))

        times = self.problem.times
        found = self._integrate(
            derivative, (times[0], times[-1]), _vector(y0), atol=1e-14, t_eval=times, dense_output=True
        )
        self.dense = found.sol
        return self._tensor(np.ascontiguousarray(found.y.T))

    def pull_back(self, cotangents: Tensor) -> list[Tensor]:
        times, size = self.problem.times, self.problem.layout.size
        sizes = [x.numel() * (2 if x.is_complex() else 1) for x in self.tensors]

        def derivative(t: float, z: Vector) -> Vector:
            with torch.enable_grad():
                y = self._tensor(self.dense(t)).requires_grad_()
                slope = self.field(self.field.time(t), y)
                pulled = torch.autograd.grad(slope, [y, *self.tensors], self._tensor(z[:size]), allow_unused=True)
            parts = [np.zeros(n) if g is None else -_vector(g) for g, n in zip(pulled, [size, *sizes], strict=True)]
            return np.concatenate(parts)

        z = np.zeros(size + sum(sizes))
        for index in range(len(times) - 1, -1, -1):
            z[:size] += _vector(cotangents[index])
            largest = float(np.abs(z).max())
            if index and largest:
                span = (times[index], times[index - 1])
                z = self._integrate(derivative, span, z, atol=1e-13 * largest).y[:, -1]
        gradients = [self._tensor(z[:size])]
        for x, part in zip(self.tensors, np.split(z[size:], np.cumsum(sizes)[:-1]) if sizes else [], strict=True):
            flat = torch.from_numpy(part.copy())
            if x.is_complex():
                flat = torch.view_as_complex(flat.reshape(-1, 2))
            gradients.append(flat.reshape(x.shape).to(x))
        return gradients


def _vector(x: Tensor) -> Vector:
    x = x.detach()
    real = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
    return np.asarray(real.reshape(-1).double().cpu().numpy())


def _scipy(case: Case, method: str) -> list[Contestant] | str:
    solver = SciPySolver(method or "DOP853")
    return [
        Contestant(
            *("scipy", solver.method, "adjoint equation", lambda rtol, atol: solver, False),
            tolerance=SciPySolver.TOLERANCE,
        )
    ]


class _TorchDiffEqSolver:
    def __init__(self, function: str, rtol: float, atol: float) -> None:
        self.function, self.rtol, self.atol = function, rtol, atol

    def __call__(self, case: Case, y0: Any, t: Tensor, args: tuple[Any, ...]) -> Any:
        import torchdiffeq

        problem = ODEProblem(case.f, y0, t, args)
        # Without a limit it would go on for ever where the adjoint's state runs away backward.
        limit = {"max_num_steps": 10_000}
        options: dict[str, Any] = {"rtol": self.rtol, "atol": self.atol, "method": "dopri5", "options": limit}
        if self.function == "odeint_adjoint":
            options["adjoint_params"] = (*problem.arguments.tensors, *case.parameters.values())
        field = problem.field(Counts())
        ys = getattr(torchdiffeq, self.function)(lambda t, y: field(t.to(y), y), problem.y0, problem.t, **options)
        return problem.layout.unpack(ys)


def _torchdiffeq(case: Case, method: str) -> list[Contestant] | str:
    return [
        Contestant(
            *("torchdiffeq", "dopri5", function, functools.partial(_TorchDiffEqSolver, function)),
            continuous=function == "odeint_adjoint",
        )
        for function in ("odeint", "odeint_adjoint")
    ]


class _DiffraxSolver:
    def __init__(self, rtol: float, atol: float) -> None:
        self.rtol, self.atol = rtol, atol

    def __call__(self, case: Case, y0: Any, t: Tensor, args: tuple[Any, ...]) -> Any:
        names, tensors = list(case.parameters), list(case.parameters.values())
        return _External.apply(_DiffraxVjp(case, t, names, self.rtol, self.atol), y0, *tensors)  # type: ignore[no-untyped-call]


class _DiffraxVjp:
    """``diffrax.diffeqsolve`` with Tsit5 and its default adjoint, differentiated by ``jax.vjp``."""

    def __init__(self, case: Case, t: Tensor, names: list[str], rtol: float, atol: float) -> None:
        self.case, self.names, self.rtol, self.atol = case, names, rtol, atol
        self.times: list[float] = t.detach().tolist()

    def states(self, y0: Tensor) -> Tensor:
        import diffrax
        import jax

        assert self.case.problem is not None
        field = self.case.problem.jax_field()
        times = np.asarray(self.times)
        p = {name: x.detach().cpu().numpy() for name, x in self.case.parameters.items()}

        def ys(y0: Any, p: Any) -> Any:
            return diffrax.diffeqsolve(
                *(diffrax.ODETerm(field), diffrax.Tsit5(), times[0], times[-1], None, y0, p),
                saveat=diffrax.SaveAt(ts=times),
                stepsize_controller=diffrax.PIDController(rtol=self.rtol, atol=self.atol),
                max_steps=16384,
            ).ys

        with _x64():
            states, self.vjp = jax.vjp(ys, y0.detach().cpu().numpy(), p)
        # Times in float64 make jax's states float64 too, whatever y0 is.
        self.kind = states.dtype
        return torch.from_numpy(np.array(states)).to(y0)

    def pull_back(self, cotangents: Tensor) -> list[Tensor]:
        with _x64():
            y0, p = self.vjp(cotangents.detach().cpu().numpy().astype(self.kind))
        return [torch.from_numpy(np.array(x)).to(cotangents) for x in (y0, *(p[name] for name in self.names))]


def _x64() -> Any:
    """The context in which jax computes in the precision of its inputs; it moved between versions."""
    import jax

    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    return jax.experimental.enable_x64()


def _diffrax(case: Case, method: str) -> list[Contestant] | str:
    if case.problem is None or case.problem.formula is None:
        return "needs the field in jax: built-in problems given by a formula have it"
    return [Contestant("diffrax", "Tsit5", "RecursiveCheckpointAdjoint", _DiffraxSolver, False)]


ORACLES: dict[str, Callable[[Case, str], list[Contestant] | str]] = {
    "scipy": _scipy,
    "torchdiffeq": _torchdiffeq,
    "diffrax": _diffrax,
}
