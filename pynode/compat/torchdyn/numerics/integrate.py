"""odeint and its relatives."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor

from pynode.compat.torchdyn.numerics.solvers import AsynchronousLeapfrog, SolverTemplate, as_solver
from pynode.compat.torchdyn.unsupported import refuse
from pynode.errors import InputError, explain
from pynode.nn.trees import map_leaves
from pynode.saveat import SaveAt
from pynode.sensealg import DirectAdjoint, SensitivityAlgorithm
from pynode.solution import Solution
from pynode.solve import solve


def odeint(
    f: Callable[..., Any],
    x: Any,
    t_span: Any,
    solver: Any,
    atol: float = 1e-3,
    rtol: float = 1e-3,
    t_stops: Any = None,
    verbose: bool = False,
    interpolator: Any = None,
    return_all_eval: bool = False,
    save_at: Iterable[float] | Tensor = (),
    args: Any = None,
    seminorm: tuple[bool, int | None] = (False, None),
) -> tuple[Tensor, Any]:
    """Solve ``dx/dt = f(t, x)``, ``x(t_span[0]) = x``, differentiable by backpropagation.

    Parameters
    ----------
    f : callable
        ``f(t, x)``.
    x : tensor or tree of tensors
    t_span : Tensor (T,), or list of tensors
        Fixed-step solvers take one step an interval.
    solver : str or solver object
    atol, rtol : float
    t_stops : sequence of float, optional
        Times that adaptive steps meet.
    verbose, interpolator
        Accepted; every solver interpolates.
    return_all_eval : bool
        Return all accepted steps.
    save_at : sequence of float
        Times to return, ``t_span`` by default.
    args
        Accepted as in torchdyn, whose ``f`` does not see them; a solver's own ``step`` does.
    seminorm : (bool, int)
        ``(True, n)``: only the first ``n`` rows of ``x`` count in the error norm.

    Returns
    -------
    (t_eval, solution)
        Leaves of the solution (T, *leaf shape).
    """
    solver = as_solver(solver)
    if solver.steps_itself:
        return stepped(solver, f, x, t_span, save_at, (), args)
    solution = solved(
        *(f, x, t_span, solver, atol, rtol),
        save_at=save_at,
        sensealg=DirectAdjoint(),
        tstops=() if t_stops is None else t_stops,
        all_steps=return_all_eval,
        norm_rows=seminorm[1] if seminorm[0] else None,
    )
    return solution.ts, solution.ys


def odeint_symplectic(
    f: Callable[..., Any],
    x: Tensor,
    t_span: Any,
    solver: Any,
    atol: float = 1e-3,
    rtol: float = 1e-3,
    verbose: bool = False,
    return_all_eval: bool = False,
    save_at: Iterable[float] | Tensor = (),
) -> tuple[Tensor, Tensor]:
    """Solve with states ``(x, v)`` side by side and ``f(t, x)`` by the asynchronous leapfrog.

    pynode's own symplectic methods are ``SymplecticEuler``, ``VelocityVerlet`` and ``Yoshida6``.
    """
    solver = as_solver(solver)
    if not isinstance(solver, AsynchronousLeapfrog):
        raise InputError(
            explain(f"solver is {type(solver).__name__}", "'alf' or AsynchronousLeapfrog()", "use odeint for others")
        )
    times, path = stepped(solver, f, x, t_span, save_at, ())
    return times, path


def odeint_mshooting(*args: Any, **kwargs: Any) -> NoReturn:
    """Parallel in time: raises UnsupportedError."""
    refuse("odeint_mshooting", "use odeint, which solves the same equation in sequence")


def odeint_hybrid(*args: Any, **kwargs: Any) -> NoReturn:
    """Events: raises UnsupportedError."""
    refuse("odeint_hybrid", "solve between known event times, or use torchdyn itself")


def sdeint(*args: Any, **kwargs: Any) -> NoReturn:
    """Stochastic: raises UnsupportedError."""
    refuse("sdeint", "use torchsde, or torchdyn itself")


def solved(
    f: Callable[..., Any],
    x: Any,
    t_span: Any,
    solver: SolverTemplate,
    atol: float,
    rtol: float,
    *,
    save_at: Any = (),
    args: tuple[Any, ...] = (),
    sensealg: SensitivityAlgorithm,
    running_cost: Any = None,
    tstops: Any = (),
    all_steps: bool = False,
    norm_rows: int | None = None,
    backend: str = "torch",
) -> Solution:
    """The solution by the solver's algorithm."""
    times = _times(t_span)
    wanted = SaveAt(steps=True) if all_steps else (save_at if len(save_at) else None)
    assert solver.algorithm is not None
    return solve(
        f,
        x,
        times,
        args=args,
        algorithm=solver.algorithm,
        rtol=rtol,
        atol=atol,
        sensealg=sensealg,
        saveat=wanted,
        allow_unused=True,
        running_cost=running_cost,
        tstops=tstops,
        norm=None if norm_rows is None else (lambda error: error[:norm_rows].square().mean().sqrt()),
        backend=backend,
    )


def stepped(
    solver: SolverTemplate,
    f: Callable[..., Any],
    x: Any,
    t_span: Any,
    save_at: Any,
    field_args: tuple[Any, ...],
    args: Any = None,
) -> tuple[Tensor, Any]:
    """The solution by the solver's own steps, one an interval of ``t_span``.

    Raises
    ------
    InputError
        If a time of ``save_at`` is not in ``t_span``.
    """
    times = _times(t_span)
    wanted = torch.as_tensor(save_at).to(times) if len(save_at) else times
    near = torch.isclose(times[:, None], wanted[None, :])
    if not bool((near.sum(dim=0) == 1).all()):
        raise InputError(
            explain(f"save_at = {wanted.tolist()}", "times of t_span, each once", "add them to t_span, or drop them")
        )

    def field(t: Tensor, y: Any, *more: Any) -> Any:
        return f(t, y, *field_args)

    given = field_args[0] if field_args else args
    keep = near.any(dim=1).tolist()
    saved = [x] if keep[0] else []
    for index in range(len(times) - 1):
        _, x, *_ = solver.step(field, x, times[index], times[index + 1] - times[index], k1=None, args=given)
        if keep[index + 1]:
            saved.append(x)
    return wanted, map_leaves(lambda *leaves: torch.stack(leaves), *saved)


def _times(t_span: Any) -> Tensor:
    if isinstance(t_span, Tensor):
        return t_span
    parts = [torch.as_tensor(part).reshape(-1) for part in t_span]
    return torch.cat(parts)
