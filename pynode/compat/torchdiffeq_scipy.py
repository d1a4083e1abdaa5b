"""torchdiffeq's ``method="scipy_solver"``: SciPy's ``solve_ivp`` forward, the continuous adjoint for gradients.

``odeint`` returns states without a gradient here, as torchdiffeq's does. ``odeint_adjoint`` integrates state, adjoint
and parameter gradient backward together, from each time to the one before, by ``adjoint_method``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pynode.compat import torchdiffeq_lsoda
from pynode.compat.torchdiffeq_callbacks import CALLBACKS
from pynode.compat.torchdiffeq_options import AssertedSolveError, tolerance
from pynode.errors import InputError, MissingPackageError, explain
from pynode.layout import Layout
from pynode.native.once import last
from pynode.solution import ReturnCode
from pynode.strict import warn

NAME = "scipy_solver"
SOLVERS = ("RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA")
_OPTIONS = {"solver", "min_step", "max_step", "norm"}


def integrate(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    rtol: Any,
    atol: Any,
    options: dict[str, Any] | None,
    original: Any,
    odeint: Callable[..., Any],
) -> Any:
    """The states at ``t``, like ``y0`` with times in front, without a gradient.

    ``options``: ``solver`` (``"LSODA"`` by default), ``max_step``, and ``min_step`` for LSODA. Complex states are
    integrated as pairs of real numbers, so that every solver takes them. ``original``: the user's function, whose
    callbacks SciPy never calls. ``odeint``: the drop-in's, whose ``dopri5`` keeps ``min_step`` at the price of the
    tolerances, for where LSODA does not.

    Raises
    ------
    InputError
        For a solver that SciPy does not have.
    SolveError
        If the integration fails, or ends in something that is not finite.
    """
    options = dict(options or {})
    solver = options.get("solver", "LSODA")
    if solver not in SOLVERS:
        raise InputError(explain(f"options['solver'] = {solver!r}", f"one of {', '.join(SOLVERS)}", "use 'LSODA'"))
    _warn(original, options, solver)
    try:
        from scipy.integrate import solve_ivp
    except ImportError as error:
        raise MissingPackageError(
            explain(f"method {NAME!r} without SciPy", "SciPy", "pip install scipy, or use method='dopri5'")
        ) from error
    layout = Layout(y0)
    kind: dict[str, Any] = {"dtype": layout.dtype, "device": layout.device}

    def flat_rate(s: Tensor, flat: Tensor) -> Tensor:
        return layout.pack_derivative(func(s, layout.unpack(flat)))

    def rate(s: float, flat: Any) -> Any:
        with torch.no_grad():
            # A copy: SciPy goes on writing into its array, and f may keep what it is given.
            return flat_rate(torch.tensor(s, **kind), torch.tensor(flat, **kind)).detach().cpu().double().numpy()

    with torch.no_grad():
        start = layout.pack(y0).detach().cpu().double().numpy()
    times = t.detach().cpu().double().tolist()
    given = {"rtol": tolerance("rtol", rtol, y0, layout), "atol": tolerance("atol", atol, y0, layout)}
    tolerances = {key: _number(value) for key, value in given.items()}
    max_step, min_step = float(options.get("max_step", math.inf)), float(options.get("min_step", 0.0))
    if solver == "LSODA" and min_step:
        bounds = {"min_step": min_step, "max_step": max_step}

        def forced(flat: Any, rest: list[float]) -> Any:
            with torch.no_grad():
                span = torch.tensor(rest, dtype=torch.float64)
                ys = odeint(flat_rate, torch.tensor(flat, **kind), span, options=bounds, **given)
            return ys[1:].cpu().double().numpy()

        rows = torchdiffeq_lsoda.integrate(rate, times, start, forced, **bounds, **tolerances)
        return layout.unpack(torch.from_numpy(rows).to(**kind))
    result = solve_ivp(
        rate,
        (times[0], times[-1]),
        start,
        method=solver,
        t_eval=times,
        max_step=max_step,
        **tolerances,
    )
    states = torch.from_numpy(result.y.T.copy())
    if not result.success or not torch.isfinite(states).all():
        reached = float(result.t[-1]) if len(result.t) else times[0]
        why = result.message if not result.success else "the state is not finite"
        raise AssertedSolveError(
            explain(
                f"SciPy's {solver} stopped at or after t = {reached:.9g}: {why}",
                "to reach the final time with finite states",
                "check f for a singularity or NaN, raise rtol and atol, or use a stiff solver such as 'Radau'",
            ),
            ReturnCode.Unstable if result.success else ReturnCode.DtLessThanMin,
            reached,
        )
    return layout.unpack(states.to(**kind))


def _warn(func: Any, options: dict[str, Any], solver: str) -> None:
    unexpected = {key: value for key, value in options.items() if key not in _OPTIONS}
    if unexpected:
        warn(f"{NAME}: Unexpected arguments {unexpected}")
    if options.get("min_step") and solver != "LSODA":
        warn(f"SciPy's {solver} has no min_step: it is ignored")
    found = {name for name in CALLBACKS if getattr(func, name, None) is not None}
    if found:
        warn(f"Solver '{NAME}' does not support callbacks {found}")


def _number(value: float | Tensor) -> Any:
    return value.detach().cpu().double().numpy() if isinstance(value, Tensor) else value


@dataclass
class Plan:
    """A solve and its adjoint: ``forward(y0, t)`` and ``backward(field, start, t)``, each without a gradient."""

    func: Callable[..., Any]
    single: bool
    forward: Callable[[Any, Tensor], Any]
    backward: Callable[[Callable[..., Any], tuple[Tensor, ...], Tensor], tuple[Tensor, ...]]


def differentiable(plan: Plan, y0: Any, t: Tensor, params: Sequence[Tensor]) -> Any:
    """The states at ``t``, differentiable in ``y0``, ``t`` and ``params`` by the continuous adjoint."""
    leaves = (y0,) if plan.single else tuple(y0)
    ys: tuple[Tensor, ...] = _Adjoint.apply(plan, len(leaves), t, *leaves, *params)  # type: ignore[no-untyped-call]
    return ys[0] if plan.single else ys


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, count: int, t: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.plan, ctx.count = plan, count
        y0 = tensors[:count]
        ys = plan.forward(y0[0] if plan.single else y0, t)
        ys = (ys,) if plan.single else tuple(ys)
        ctx.save_for_backward(t, *tensors[count:], *ys)
        return ys

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        with torch.no_grad():
            found = _pulled_back(ctx, *(g.detach() for g in grads))
        if not torch.is_grad_enabled():
            return found
        ys = ctx.saved_tensors[-ctx.count :]
        return tuple(None if g is None else last(g, ys[0]) for g in found)


def _pulled_back(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    plan, count = ctx.plan, ctx.count
    t, *rest = ctx.saved_tensors
    params, ys = rest[: len(rest) - count], rest[len(rest) - count :]
    wanted = ctx.needs_input_grad[2]
    real = ys[0].dtype.to_real()
    integrals = [p.dtype.to_complex() if p.is_complex() else real for p in params]
    sums = [torch.zeros(p.shape, dtype=dtype, device=p.device) for p, dtype in zip(params, integrals, strict=True)]
    adjoint = [g[-1].clone() for g in grads]
    times = torch.zeros_like(t) if wanted else None

    def rate(s: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        y, a = state[1 : 1 + count], state[1 + count : 1 + 2 * count]
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_() for x in y]
            dy = _called(plan, s, inputs)
        pulled = torch.autograd.grad(
            [x for x in dy if x.requires_grad],
            [*inputs, *params],
            [-g for x, g in zip(dy, a, strict=True) if x.requires_grad],
            allow_unused=True,
            materialize_grads=True,
        )
        slopes = [g.to(dtype) for g, dtype in zip(pulled[count:], integrals, strict=True)]
        return (state[0].new_zeros(()), *(x.detach() for x in dy), *pulled[:count], *slopes)

    for i in range(len(t) - 1, 0, -1):
        if times is not None:
            times[i] = _along(_called(plan, t[i].to(real), [y[i] for y in ys]), [g[i] for g in grads])
        start = (ys[0].new_zeros((), dtype=real), *(y[i] for y in ys), *adjoint, *sums)
        found = plan.backward(rate, start, torch.stack([t[i], t[i - 1]]))
        adjoint, sums = list(found[1 + count : 1 + 2 * count]), list(found[1 + 2 * count :])
        if i == 1 and times is not None:
            times[0] = -_along(_called(plan, t[0].to(real), [y[0] for y in ys]), adjoint)
            # As a save point the initial time has no effect: the state there is y0.
        adjoint = [a + g[i - 1] for a, g in zip(adjoint, grads, strict=True)]
    own = [g.to(p.dtype) for g, p in zip(sums, params, strict=True)]
    return (None, None, times, *adjoint, *own)


def _called(plan: Plan, s: Tensor, y: Sequence[Tensor]) -> tuple[Tensor, ...]:
    derivative = plan.func(s, y[0] if plan.single else tuple(y))
    return (derivative,) if plan.single else tuple(derivative)


def _along(slope: Sequence[Tensor], adjoint: Sequence[Tensor]) -> Tensor:
    """``<adjoint, slope>`` as a real number."""
    return torch.stack([(a.conj() * f.detach()).sum().real for f, a in zip(slope, adjoint, strict=True)]).sum()
