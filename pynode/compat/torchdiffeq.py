"""torchdiffeq's functions over pynode's solvers: change one import line.

    from pynode.compat.torchdiffeq import odeint, odeint_adjoint, odeint_dense, odeint_event

Arguments, defaults, return values, options and callbacks are torchdiffeq's. What differs:

- ``dopri5`` and ``dopri8`` use the published error estimates (torchdiffeq's are scaled, its ``dopri8`` is another
  tableau) and the last step ends at the final time instead of beyond it, so adaptive solutions agree within the
  tolerance, not bitwise, and the sequences of steps differ slightly. Fixed-step methods agree to rounding.
- ``odeint_adjoint`` checks that the backward integration comes close to the stored states, and warns
  (RuntimeWarning) where it does not and the gradient cannot be trusted; torchdiffeq is silent there.
- Failed solves raise ``pynode.SolveError`` and malformed ``y0``, ``t``, ``rtol`` or ``atol`` raise
  ``pynode.InputError`` (a ValueError); both are AssertionErrors as well here, as torchdiffeq's are. Errors of a
  backward solve are plain ``SolveError``. A derivative of another shape than the state's raises
  ``pynode.FieldError``.
- ``options["max_num_steps"]`` bounds the whole forward solve to that many steps per output time on average.
- ``options["dtype"]`` is accepted and unused: time is float64 inside, always.
- Callbacks, ``grid_constructor``, ``step_t`` and ``jump_t`` see the user's time also in the adjoint solve of a problem
  that runs backward in time; torchdiffeq negates it there. ``grid_constructor`` receives the user's own ``func`` and
  ``y0``.
- Events: see :mod:`pynode.compat.torchdiffeq_events`.
- Tuple tolerances need no separate ``adjoint_rtol`` and ``adjoint_atol``.

- The implicit methods at fixed steps (``gl4``, ``radauIIA5``, ...) solve their stages to rounding by Newton's method
  with exact gradients; torchdiffeq iterates Broyden's to 1e-8 and goes on where that fails, an error here.
  ``gl4`` has Gauss's two nodes; torchdiffeq evaluates both stages at the first one.
- ``scipy_solver`` raises where SciPy fails, and takes complex states with every solver; it has no dense output and no
  events. Where LSODA would step shorter than ``min_step``, ``dopri5`` goes on with steps that do not, and a
  RuntimeWarning says so; torchdiffeq returns the states up to there, or with SciPy 1.17 disregards ``min_step``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pynode.compat import torchdiffeq_scipy as scipy
from pynode.compat.torchdiffeq_callbacks import augmented_view, callbacks
from pynode.compat.torchdiffeq_events import linked, looks, span, until
from pynode.compat.torchdiffeq_input import Field, State, checked, initial, parameters
from pynode.compat.torchdiffeq_node import behind, default_norm, user_norm
from pynode.compat.torchdiffeq_norms import adjoint_norm, largest_rms, state_norm
from pynode.compat.torchdiffeq_options import (
    Settings,
    adjoint_tolerance,
    assertions,
    settings,
    tolerance,
)
from pynode.errors import InputError, UnsupportedError, explain
from pynode.events import Watch
from pynode.layout import Layout
from pynode.problem import check_times
from pynode.saveat import SaveAt
from pynode.sensealg import BacksolveAdjoint, DirectAdjoint, SensitivityAlgorithm
from pynode.solution import Solution
from pynode.solve import solve

__all__ = ["odeint", "odeint_adjoint", "odeint_dense", "odeint_event"]

Tolerance: TypeAlias = float | Tensor | tuple[Any, ...]
Options: TypeAlias = dict[str, Any]


def odeint(
    func: Callable[..., Any],
    y0: State,
    t: Tensor,
    *,
    rtol: Tolerance = 1e-7,
    atol: Tolerance = 1e-9,
    method: str | None = None,
    options: Options | None = None,
    event_fn: Callable[..., Any] | None = None,
) -> Any:
    """Solve ``dy/dt = func(t, y)``, ``y(t[0]) = y0``, differentiable by plain backpropagation.

    Parameters
    ----------
    func : callable
        ``func(t, y)`` with a 0-dim ``t``; ``y`` and the result have the form of ``y0``.
    y0 : tensor or tuple of tensors
        Initial state.
    t : Tensor (T,)
        Strictly increasing or decreasing times, the first of them the initial time.
    rtol, atol : float, tensor that broadcasts to ``y0``, or tuple with one of these per component of ``y0``
    method : str, optional
        ``dopri5`` (default), ``dopri8``, ``bosh3``, ``tsit5``, ``fehlberg2``, ``adaptive_heun``; fixed-step ``euler``,
        ``midpoint``, ``heun2``, ``heun3``, ``rk4`` (the 3/8 rule), ``explicit_adams``, ``implicit_adams``
        (``fixed_adams``); fixed-step implicit ``implicit_euler``, ``implicit_midpoint``, ``trapezoid``, ``radauIIA3``,
        ``radauIIA5``, ``gl4``, ``gl6``, ``sdirk2``, ``trbdf2``; ``scipy_solver`` (``options={"solver": "LSODA"}``),
        whose states have no gradient here.
    options : dict, optional
        Adaptive methods: ``norm, first_step, step_t, jump_t, safety, ifactor, dfactor, min_step, max_step,
        max_num_steps, dtype``. Fixed-step methods: ``step_size, grid_constructor, interp, perturb``;
        Adams methods: ``max_order`` and, implicit, ``max_iters``.
    event_fn : callable, optional
        ``event_fn(t, y)``, a real tensor: the solve ends where the first of its elements changes its sign. ``t`` has
        two entries then, the second of which gives the direction only.

    Returns
    -------
    tensor (T, *y0.shape), or tuple of them; with ``event_fn`` the event's time and the states at ``t[0]`` and there,
    differentiable at that fixed time (see :func:`odeint_event`)

    Raises
    ------
    InputError, FieldError, SolveError, UnsupportedError
        See the module's documentation for how they relate to torchdiffeq's.

    Examples
    --------
    >>> from pynode.compat.torchdiffeq import odeint
    >>> odeint(lambda t, y: -y, torch.ones(1), torch.tensor([0.0, 1.0, 2.0])).squeeze(1)
    tensor([1.0000, 0.3679, 0.1353])
    >>> t, options = torch.tensor([0.0, 1.0]), {"step_size": 0.1}
    >>> odeint(lambda t, y: -y, torch.ones(1), t, method="rk4", options=options)[-1]
    tensor([0.3679])
    """
    t = checked(y0, t)
    if method == scipy.NAME and event_fn is None:
        return _by_scipy(func, y0, t, rtol, atol, options)
    chosen = settings(method, options, func, y0, t)
    if event_fn is not None:
        far = span(t, chosen)
        solved = functools.partial(_solved, func, y0, far, rtol, atol, chosen, DirectAdjoint())
        return until(lambda watch: solved(watch=watch), event_fn, y0, t, False, looks(chosen))
    if len(t) == 1:
        return initial(y0)
    return _solved(func, y0, t, rtol, atol, chosen, DirectAdjoint()).ys


def odeint_adjoint(
    func: Callable[..., Any],
    y0: State,
    t: Tensor,
    *,
    rtol: Tolerance = 1e-7,
    atol: Tolerance = 1e-9,
    method: str | None = None,
    options: Options | None = None,
    event_fn: Callable[..., Any] | None = None,
    adjoint_rtol: Tolerance | None = None,
    adjoint_atol: Tolerance | None = None,
    adjoint_method: str | None = None,
    adjoint_options: Options | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
) -> Any:
    """As :func:`odeint`, with the gradient of the continuous adjoint at constant memory (``BacksolveAdjoint``).

    ``pynode.solve``, whose default is an exact discrete adjoint, is usually faster and more accurate.

    Parameters
    ----------
    adjoint_rtol, adjoint_atol : optional
        Tolerances of the adjoint solve, the forward ones by default; a tuple may have an entry for each of time,
        state, adjoint and parameters.
    adjoint_method : str, optional
        The forward one by default.
    adjoint_options : dict, optional
        As ``options``, which is the default except for its norm. ``norm`` may be ``"seminorm"``, or take the tuple
        ``(t, y, adj_y, *adj_params)``; by default all of these are in the norm.
    adjoint_params : iterable of tensors, optional
        What to differentiate beside ``y0`` and ``t``: the module's parameters by default, ``()`` for nothing. One that
        ``func`` never reaches gets a zero gradient.

    Raises
    ------
    InputError
        Also if ``func`` is no module and ``adjoint_params`` is not given, or if ``adjoint_options`` cannot be inferred
        for another ``adjoint_method``.

    Examples
    --------
    >>> from pynode.compat.torchdiffeq import odeint_adjoint
    >>> class Decay(torch.nn.Linear):
    ...     def forward(self, t, y):
    ...         return super().forward(y)
    >>> f = Decay(1, 1)
    >>> odeint_adjoint(f, torch.ones(1), torch.tensor([0.0, 1.0]))[-1].sum().backward()
    >>> f.weight.grad is not None and f.bias.grad is not None
    True
    """
    if adjoint_params is None and not isinstance(func, torch.nn.Module):
        raise InputError(
            explain(
                f"func is a {type(func).__name__} and adjoint_params is not given",
                "func to be a torch.nn.Module, or its parameters in adjoint_params",
                "pass adjoint_params=(...), or adjoint_params=() if there is nothing to differentiate in func",
            )
        )
    if (adjoint_method or method) != method and options is not None and adjoint_options is None:
        raise InputError(
            explain(
                f"adjoint_method = {adjoint_method!r} differs from method = {method!r} and options were passed",
                "adjoint_options as well, which cannot be inferred from options then",
                "pass adjoint_options={} for the defaults",
            )
        )
    if adjoint_options is None:
        backward_options = {key: value for key, value in (options or {}).items() if key != "norm"}
    else:
        backward_options = dict(adjoint_options)
    params = parameters(func, adjoint_params, callable(backward_options.get("norm")))

    t = checked(y0, t)
    if scipy.NAME in (method, adjoint_method or method) and event_fn is None:
        own = (rtol if adjoint_rtol is None else adjoint_rtol, atol if adjoint_atol is None else adjoint_atol)
        return _adjoint_by_scipy(
            func, y0, t, (rtol, atol, method, options), (*own, adjoint_method or method, backward_options), params
        )
    chosen = settings(method, options, func, y0, t)
    backward = settings(adjoint_method or method, backward_options, func, y0, t, backward=True)
    if len(t) == 1 and event_fn is None:
        return initial(y0)
    with assertions():
        layout = Layout(y0)
    sensealg = BacksolveAdjoint(
        algorithm=backward.algorithm,
        rtol=adjoint_tolerance("adjoint_rtol", adjoint_rtol, y0, layout, params),
        atol=adjoint_tolerance("adjoint_atol", adjoint_atol, y0, layout, params),
        norm=adjoint_norm(backward.norm, chosen.norm, y0, layout),
        controller=backward.controller,
        max_steps=backward.max_num_steps,
        on_mismatch="warn",
        dt0=backward.dt0,
        dtmin=backward.dtmin,
        dtmax=backward.dtmax,
        tstops=backward.tstops,
        d_discontinuities=backward.jumps,
        observer=callbacks(func, backward, t, augmented_view(y0, layout, params), "_adjoint"),
    )
    if event_fn is not None:
        solved = functools.partial(_solved, func, y0, span(t, chosen), rtol, atol, chosen, sensealg, params)
        return until(lambda watch: solved(watch=watch), event_fn, y0, t, torch.is_grad_enabled(), looks(chosen))
    ys = _solved(func, y0, t, rtol, atol, chosen, sensealg, params).ys
    own = backward.norm
    shown = user_norm(own, y0) if callable(own) else default_norm(chosen.norm, y0, own == "seminorm")
    return behind(ys, y0, layout, {**backward_options, "norm": shown}, sensealg)


def odeint_dense(
    func: Callable[..., Any],
    y0: State,
    t0: Tensor | float,
    t1: Tensor | float,
    *,
    rtol: Tolerance = 1e-7,
    atol: Tolerance = 1e-9,
    method: str | None = None,
    options: Options | None = None,
) -> Callable[[Tensor | float], Any]:
    """Solve from ``t0`` to ``t1`` and return the solution as a function of time.

    Returns
    -------
    callable
        From a 0-dim time within the span to a state like ``y0``, or from (M,) times to (M, *y0.shape); differentiable
        by plain backpropagation. torchdiffeq has ``dopri5`` and tensor states only; here every method and tuples work.

    Examples
    --------
    >>> from pynode.compat.torchdiffeq import odeint_dense
    >>> at = odeint_dense(lambda t, y: -y, torch.ones(1), 0.0, 1.0)
    >>> round(at(0.5).item(), 4)
    0.6065
    """
    ends = [torch.as_tensor(x, dtype=torch.float64).detach().reshape(()) for x in (t0, t1)]
    device = (y0 if isinstance(y0, Tensor) else y0[0]).device
    t = torch.stack([end.to(device) for end in ends])
    t = checked(y0, t)
    chosen = settings(method, options, func, y0, t)
    solution = _solved(func, y0, t, rtol, atol, chosen, DirectAdjoint(), dense=True)

    def at(t_eval: Tensor | float) -> Any:
        with assertions():
            return solution(t_eval)

    return at


def odeint_event(
    func: Callable[..., Any],
    y0: State,
    t0: Tensor,
    *,
    event_fn: Callable[..., Any],
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] = odeint,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """Solve from ``t0`` to the first zero of ``event_fn``, with the gradient of the event's time.

    Parameters
    ----------
    t0 : Tensor
        Initial time, of one element; ``reverse_time`` solves towards smaller ones.
    event_fn : callable
        ``event_fn(t, y)``, a real tensor each element of which is a root function.
    odeint_interface : callable
        :func:`odeint` or :func:`odeint_adjoint`, or what calls them; receives ``kwargs``.

    Returns
    -------
    event_t : Tensor
        0-dim, of the dtype of ``t0``.
    solution : tensor (2, *y0.shape), or tuple of them
        The states at ``t0`` and at the event.

    Examples
    --------
    >>> from pynode.compat.torchdiffeq import odeint_event
    >>> y0 = torch.ones(1, requires_grad=True)
    >>> t, ys = odeint_event(lambda t, y: -y, y0, torch.tensor(0.0), event_fn=lambda t, y: y - 0.5)
    >>> round(t.item(), 4), round(torch.autograd.grad(t, y0)[0].item(), 3)  # log(2 y0)
    (0.6931, 1.0)
    """
    start = t0.reshape(-1)
    t = torch.cat([start, start.detach() + (-1.0 if reverse_time else 1.0)])
    event_t, solution = odeint_interface(func, y0, t, event_fn=event_fn, **kwargs)
    return linked(Field(func), event_fn, (start[0], y0), event_t, solution)


def _by_scipy(
    func: Callable[..., Any], y0: State, t: Tensor, rtol: Tolerance, atol: Tolerance, options: Options | None
) -> Any:
    if len(t) == 1:
        return initial(y0)
    with assertions():
        Layout(y0)  # says what is wrong with y0
        check_times("t", t)
    return scipy.integrate(Field(func), y0, t, rtol, atol, options, func, odeint)


def _adjoint_by_scipy(
    func: Callable[..., Any],
    y0: State,
    t: Tensor,
    forward: tuple[Any, Any, str | None, Options | None],
    backward: tuple[Any, Any, str | None, Options],
    params: list[Tensor],
) -> Any:
    """A solve of which one direction at least is SciPy's."""
    if len(t) == 1:
        return initial(y0)
    count = 1 if isinstance(y0, Tensor) else len(y0)
    rtol, atol, method, options = backward
    for name, value in (("adjoint_rtol", rtol), ("adjoint_atol", atol)):
        if not isinstance(value, int | float) and not (isinstance(value, Tensor) and value.ndim == 0):
            raise UnsupportedError(
                explain(f"{name} with one entry per element for {scipy.NAME!r}", "one number", f"pass {name}=1e-6")
            )
    if options.get("norm") == "seminorm":
        options = {**options, "norm": lambda parts: largest_rms(parts[: 1 + 2 * count])}

    def solved(y0: Any, t: Tensor) -> Any:
        with torch.no_grad():
            return odeint(func, y0, t, rtol=forward[0], atol=forward[1], method=forward[2], options=forward[3])

    def adjoint(field: Callable[..., Any], start: tuple[Tensor, ...], t: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            found = odeint(field, start, t, rtol=rtol, atol=atol, method=method, options=options)
        return tuple(x[-1] for x in found)

    plan = scipy.Plan(Field(func), isinstance(y0, Tensor), solved, adjoint)
    return scipy.differentiable(plan, y0, t, params)


def _solved(
    func: Callable[..., Any],
    y0: State,
    t: Tensor,
    rtol: Tolerance,
    atol: Tolerance,
    chosen: Settings,
    sensealg: SensitivityAlgorithm,
    params: Iterable[Tensor] | None = None,
    dense: bool = False,
    watch: Watch | None = None,
) -> Solution:
    with assertions():
        layout = Layout(y0)
        return solve(
            Field(func),
            y0,
            t,
            algorithm=chosen.algorithm,
            rtol=tolerance("rtol", rtol, y0, layout),
            atol=tolerance("atol", atol, y0, layout),
            sensealg=sensealg,
            saveat=SaveAt(dense=dense),
            controller=chosen.controller,
            max_steps=chosen.max_num_steps * (len(t) - 1),
            params=params,
            allow_unused=True,
            norm=state_norm(chosen.norm, y0),
            dt0=chosen.dt0,
            dtmin=chosen.dtmin,
            dtmax=chosen.dtmax,
            force_dtmin=True,
            tstops=chosen.tstops,
            d_discontinuities=chosen.jumps,
            observer=callbacks(func, chosen, t, layout.unpack),
            events=watch,
        )
