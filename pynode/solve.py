"""The front door: checks, picks the backend, connects its result to autograd."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.algorithms import Algorithm, Tsit5, as_algorithm
from pynode.backends import Backend, Request, backend_from_name
from pynode.choosing import choose
from pynode.controllers import PIDController
from pynode.default_controller import default_controller
from pynode.dependencies import without_communication
from pynode.ending import end_of_solve, end_state
from pynode.errors import SolveError, UnsupportedError, explain
from pynode.events import Event, Resumed, Watch
from pynode.graph_break import eager
from pynode.interrupts import puts_back
from pynode.native.independent.front import in_rows
from pynode.per_sample import whole
from pynode.precision import warn_of_precision
from pynode.problem import ODEProblem
from pynode.progress import with_progress
from pynode.queries import connected, queried, taped
from pynode.read_parameters import ReadParameters
from pynode.resuming import resumable
from pynode.running_cost import StateObserver
from pynode.saveat import SaveAt, Times, as_saveat, save_points, saved
from pynode.segments import in_segments
from pynode.sensealg import DirectAdjoint, SensitivityAlgorithm
from pynode.sensealg_names import as_sensealg
from pynode.solution import ReturnCode, Solution, Stats, failure_message
from pynode.solve_options import check_compile, check_controller, check_steps, check_tolerances, floats
from pynode.step_quantity import refuse_step_quantities
from pynode.strict import is_strict
from pynode.transforms import moves, refuse_tangents, refuse_transform, transformed
from pynode.warm_start import WarmStart, likeness, refuse_warm_start


@eager
@puts_back
def solve(
    f: Callable[..., Any],
    y0: Any,
    t: Times,
    *,
    args: tuple[Any, ...] = (),
    algorithm: Algorithm | str = Tsit5(),  # noqa: B008  (immutable)
    rtol: float | Tensor = 1e-5,
    atol: float | Tensor = 1e-7,
    sensealg: SensitivityAlgorithm | None = None,
    backend: str = "torch",
    saveat: SaveAt | Times | None = None,
    events: Event | Sequence[Event] | Resumed | Watch | None = None,
    controller: PIDController | None = None,
    max_steps: int = 100_000,
    max_events: int = 1_000,
    throw: bool = True,
    params: Iterable[Tensor] | None = None,
    allow_unused: bool = False,
    norm: Callable[[Any], Any] | None = None,
    dt0: float | WarmStart | None = None,
    dtmin: float = 0.0,
    dtmax: float = math.inf,
    force_dtmin: bool = False,
    tstops: Sequence[float] | Tensor = (),
    d_discontinuities: Sequence[float] | Tensor = (),
    observer: Any = None,
    progress: bool = False,
    compile: bool | str = False,
    running_cost: Callable[..., Any] | None = None,
    cost_in_norm: bool = False,
    jac: Callable[..., Any] | None = None,
    mass_matrix: Tensor | None = None,
    batching: str = "joint",
) -> Solution:
    """Solve ``dy/dt = f(t, y, *args)``, ``y(t[0]) = y0``.

    Parameters
    ----------
    f : callable
        Module, function or closure. ``t`` is a 0-dim tensor of the state's real dtype on its device; the result has
        the tree, shapes, dtypes and device of ``y``.
    y0 : tensor or tree of tensors
        Initial state: float32, float64, complex64 or complex128, of any shape; tuples, lists and dictionaries of
        tensors of one precision and device, nested as you like.
    t : 1-D tensor or sequence of float
        Strictly monotone times, in either direction. ``t[0]`` is the initial time. Kept in float64 inside.
    args : tuple
        Further arguments of ``f``: anything; the tensors in it are differentiated.
    algorithm : Algorithm or str
        The integrator, or its name (``"tsit5"``, ``"dopri5"``, ``"rk4"``), or a call of it as SciML writes it,
        ``"AutoTsit5(Rosenbrock23())"``. With ``backend="julia"`` also any algorithm of OrdinaryDiffEq.jl as one writes
        it there (``"KenCarp47(linsolve=KrylovJL_GMRES())"``), or an algorithm object of diffeqpy.
    rtol, atol : float, or tensor with one entry per element of the flattened state (two per complex one)
        Relative and absolute tolerance of adaptive algorithms: every step's error estimate stays below
        ``atol + rtol * max(|y_n|, |y_n+1|)`` in the norm.
    sensealg : SensitivityAlgorithm, optional
        How gradients are obtained. By default ``CheckpointedAdjoint()``, exact for the steps that were taken; where
        1000 states would not fit into a quarter of the device's free memory, ``ReversibleAdjoint()`` for reversible
        algorithms and otherwise ``CheckpointedAdjoint(max_memory=...)``; ``DirectAdjoint()`` inside a ``torch.func``
        transform or a ``torch.autograd.forward_ad.dual_level``; with ``backend="julia"`` ``GaussAdjoint()`` (see
        :mod:`pynode.choosing`). ``sol.sensealg`` tells what was chosen.
    backend : str
        Who integrates: ``"torch"``, or ``"julia"``: OrdinaryDiffEq.jl and SciMLSensitivity.jl (see
        :mod:`pynode.julia`). The first solve of a process starts Julia.
    saveat : SaveAt, 1-D tensor or sequence of float, optional
        What is saved; the states at ``t`` by default. Times alone mean ``SaveAt(ts=times)``. Save points are
        interpolated and never change the steps.
    events : Event or sequence of Event, optional
        Roots of conditions at which the solve ends, or goes on from another state: see
        :class:`pynode.events.Event` and ``sol.events``. After a terminal one the last entry of ``sol.ts`` and
        ``sol.ys`` is the event in place of the end of ``t`` (with ``SaveAt(ts=...)``: where ``t1=True``), and those
        behind it are missing. A save point at the very time of an event is given the state after its effect. In
        between two events the solve is an ordinary one, under every option and sensitivity algorithm; ``observer``
        also sees the end of the step that an event cuts short. For events of rows see ``batching``.
    controller : PIDController, optional
        Step-size control; by default ``PredictiveController()`` for ``Tsit5``, ``DP5``, ``BS3``, ``Vern7``, ``DP8`` and
        implicit methods, ``IController()`` for others.
    max_steps : int
        Largest number of attempted steps.
    max_events : int
        Largest number of events: a bound on solves whose events accumulate.
    throw : bool
        Raise SolveError when the solve fails; otherwise return what was reached, with its ``retcode``.
    params : iterable of tensors, optional
        The parameters to differentiate, each of which must receive a gradient. By default they are found: the
        module's own, and all that ``f`` reaches through closures and globals. Under ``DirectAdjoint`` torch's tape
        decides instead: ``params`` and the checks that come with it do not apply.
    allow_unused : bool
        A parameter that ``f`` never reaches receives a zero gradient instead of raising GradientError.
    norm : callable, optional
        Norm of the scaled error, called with the tree of ``y``; root mean square over all elements by default.
    dt0, dtmin, dtmax : float
        First step, smallest and largest step, as magnitudes. ``dt0`` is chosen by Hairer's rule by default, and by the
        solve before where it is a :class:`pynode.WarmStart` (the torch backend only).
    force_dtmin : bool
        Go on with steps of ``dtmin`` where they miss the tolerance, instead of failing.
    tstops : sequence of float
        Times that adaptive steps must meet.
    d_discontinuities : sequence of float
        Times at which ``f`` jumps: met exactly, ``f`` being evaluated just before and just after them.
    compile : False, "solve" or "step"
        ``"solve"`` runs the whole solve by an explicit Runge-Kutta method, and its pullback under
        ``CheckpointedAdjoint``, in C++ made from the captured field (on the CPU; g++ or clang++ is needed). It takes
        the steps of the eager solve and has its values and gradients, to rounding. The first solve of a field and
        shape compiles for some seconds. What cannot be done there is done by torch, with a CompileWarning.
        ``"step"`` runs every step of an explicit Runge-Kutta method, of ``ReversibleHeun`` or
        ``AsynchronousLeapfrog``, every step's pullback under ``CheckpointedAdjoint`` and ``ReversibleAdjoint``, and
        every step run backward under the latter, as one graph of ``torch.compile``: about twice as quick as eager for
        small models, after most of a minute of compilation for each new field, shape and method (seconds where torch
        has it in its cache on disk). Under gradients only with these two, ``DirectAdjoint`` (whose gradient can then be
        differentiated no further), ``GaussAdjoint`` and ``QuadratureAdjoint``; the field must be a module or a
        function.
    observer : object, optional
        Callbacks around steps, with methods ``step`` (before each attempt), ``accepted`` and ``rejected`` (after it),
        each called with ``(t, y_flat, dt)``: time and state at the start of the step, and its signed length. For
        measuring and showing; what changes the state is an event.
    progress : bool
        Show on stderr how far the solve has come, at most five times a second (by rich where it is installed).
    running_cost : callable, optional
        ``l(t, y, *args)``, whose integral from ``t[0]`` to ``t[-1]`` (negative where ``t`` decreases and ``l`` is
        positive) becomes ``sol.running_cost``. It returns a real tensor of any shape, or a tree of such, of the
        state's real dtype and device. It is integrated with the state, evaluated wherever ``f`` is (and once at the
        start, to see its form), and differentiated like ``f``, with respect to its own parameters too. Quantities of
        the steps themselves (:class:`pynode.training.LocalError`) are running costs, too, of the torch backend.
    cost_in_norm : bool
        The cost counts in the error norm like a part of the state ``(y, cost)``, under the tightest of the tolerances
        where these are tensors. By default it does not: the steps are those of the solve without it.
    jac : callable, optional
        ``jac(t, y, *args)``: the Jacobian ``df/dy`` for implicit methods, of n x n numbers for a real tensor ``y`` of
        n (flattened in row-major order). By default torch finds it, by n pullbacks through ``f`` at once. The torch
        backend only: Julia gets the rows of the exact Jacobian from the captured products of ``f``.
    mass_matrix : Tensor (n, n), optional
        The constant matrix of ``M dy/dt = f(t, y, *args)``, of the state's real dtype, for the implicit methods that
        allow one. Where it is singular this is a differential-algebraic problem, which must be of index 1, and ``y0``
        must satisfy its algebraic equations. No gradient with respect to it. With ``backend="julia"`` the gradient is
        that of the differential variables: it is zero by the algebraic ones of ``y0``, which follow from these (but for
        what a loss takes from the saved ``y0`` itself); not with ``BacksolveAdjoint`` or ``checkpointing=True``.
    batching : "joint" or "independent"
        ``"joint"`` integrates the whole state in common steps. ``"independent"`` treats dimension 0 of every leaf of
        the state as rows, each with its own steps, error control and outcome, and with its own times where ``t`` (or
        ``saveat``) is (B, T): strictly monotone in each row, in its own direction, padded at the end by NaN or by the
        last time again; or a nested (jagged) tensor, or a list of 1-D tensors. ``f`` is called with the rows that are
        still running: ``y`` (b, ...), and ``t`` of shape (b, 1, ..., 1), which broadcasts against a state of one
        tensor, or (b,) beside a tree of tensors. What ``f`` needs of every row goes through
        ``args=(PerSample(x),)``. ``rtol`` and ``atol`` may have an entry per element of a row, ``norm`` is that of one
        row, ``max_steps`` and ``max_events`` count in each. Conditions (and effects) of ``events`` are called like
        ``f`` and return (b,) or (b, k) numbers. Every row finds its own roots, jumps alone and goes on, or ends at a
        terminal event, behind which its saved states are NaN; ``sol.events[i]``, a :class:`pynode.RowFiring`, is the
        ``i``-th event of every row. Adaptive explicit Runge-Kutta methods of the torch backend only; gradients
        by ``CheckpointedAdjoint()`` (the default) or ``DirectAdjoint()``.

    Returns
    -------
    Solution
        Under ``batching="independent"`` a :class:`pynode.BatchSolution`, with ``retcodes`` and ``row_stats``.

    Raises
    ------
    InputError
        For an argument that cannot be used.
    FieldError
        If ``f`` returns something that is not a derivative of the state.
    GradientError
        If a gradient is required that cannot be had.
    SolveError
        If the solve does not reach the final time and ``throw`` is true.
    UnsupportedError
        If the backend lacks the algorithm or the sensitivity algorithm, or if times or tolerances differ between the
        samples of a ``vmap``.

    Examples
    --------
    >>> rate = torch.tensor(0.5, requires_grad=True)
    >>> sol = pynode.solve(lambda t, y: -rate * y, torch.tensor([2.0]), [0.0, 1.0, 2.0])
    >>> sol.ys.detach().squeeze(1)  # 2 exp(-t / 2) at the three times
    tensor([2.0000, 1.2131, 0.7358])
    >>> sol.ys[-1].sum().backward()
    >>> round(rate.grad.item(), 3), sol.sensealg.name  # -4 exp(-1), by the exact discrete adjoint
    (-1.472, 'CheckpointedAdjoint')
    >>> sol = pynode.solve(lambda t, y, a: a @ y, torch.eye(2), [1.0, 0.0], args=(torch.ones(2, 2),))
    >>> sol.ys.shape, sol.retcode.name  # states of any shape, times in either direction
    (torch.Size([2, 2, 2]), 'Success')
    """
    if params is not None and not isinstance(params, list | tuple):
        params = list(params)  # asked for again by every solve between two events
    options = {name: value for name, value in locals().items() if name not in ("y0", "t")}
    if batching != "joint":
        return in_rows(y0, t, {**options, "algorithm": as_algorithm(algorithm, backend)})
    if progress:
        return with_progress(solve, y0, t, options)
    if events is not None and not isinstance(events, Watch):
        return in_segments(solve, y0, t, options)
    engine = backend_from_name(backend)
    if backend != "torch" or compile == "solve":
        refuse_warm_start(dt0, f"backend={backend!r}" if backend != "torch" else "compile='solve'")
    if compile == "solve" and backend == "torch":
        from pynode.cpp.backend import BACKEND as engine
    args = whole(args) if isinstance(args, tuple) else args
    question = (
        *(args, algorithm, rtol, atol, sensealg, saveat, controller, max_steps, params, allow_unused, norm, dt0, dtmin),
        *(dtmax, force_dtmin, tstops, d_discontinuities, observer, compile, running_cost, cost_in_norm),
        *(jac, mass_matrix, is_strict()),
    )
    repeated = None if events is not None else engine.repeated(f, y0, t, question)
    if repeated is not None:
        return resumable(repeated, solve, options)
    problem = ODEProblem(f, y0, t, args, running_cost, cost_in_norm, jac, mass_matrix)
    algorithm = as_algorithm(algorithm, backend)
    functional = transformed()
    if sensealg is None:
        sensealg = choose(problem, algorithm, transformed=functional, backend=backend)
    sensealg = as_sensealg(sensealg)
    refuse_transform(sensealg)
    missing = engine.supports(algorithm, sensealg)
    if missing is not None:
        raise UnsupportedError(
            explain(f"backend {backend!r} does not offer {missing}", "a combination it offers", "choose another")
        )
    if algorithm.adaptive:
        check_tolerances(problem, rtol, atol)
        rtol, atol = problem.tolerance(rtol), problem.tolerance(atol)
    warm, like = dt0 if isinstance(dt0, WarmStart) else None, likeness(algorithm, problem.times, rtol, atol)
    first = dt0 if not isinstance(dt0, WarmStart) else dt0.first_step(like)
    check_steps(max_steps, first, dtmin, dtmax)
    check_controller(controller)
    check_compile(compile, sensealg, torch.is_grad_enabled(), problem.autocast.enabled)

    save = as_saveat(saveat)
    points = save_points(save, problem.t, problem.times)
    times_tensor, times = points.tensor, points.times
    shown = len(times)
    own_end = times[-1] != problem.times[-1] or (points.own and problem.t.requires_grad)
    if problem.cost_layout is not None and own_end:
        # One save point more, for the cost: a gradient of states and cost is one pass. A save time that equals the
        # end of the span does not move with it.
        times_tensor, times = torch.cat([times_tensor, problem.t[-1:].to(times_tensor)]), [*times, problem.times[-1]]
    if observer is not None and problem.cost_layout is not None:
        observer = StateObserver(observer, problem.state_layout.size)
    stats = Stats() if events is None or events.stats is None else events.stats
    warn_of_precision(problem, (rtol, atol) if algorithm.adaptive else None, stats.forward)
    jumps = frozenset(floats("d_discontinuities", d_discontinuities))
    start, end = problem.times[0], problem.times[-1]
    jump = math.copysign(math.inf, end - start) if start in jumps or getattr(algorithm, "perturb", False) else 0.0
    dependencies = None
    # Transforms follow what runs under no_grad too, and need functional operations.
    differentiable = torch.is_grad_enabled() or functional
    # Torch's tape finds by itself what a direct solve depends on.
    if differentiable and not isinstance(sensealg, DirectAdjoint):
        with problem.autocast():
            dependencies = engine.dependencies(problem, stats.forward, params, allow_unused, jump)
        inputs = (problem.y0, problem.t, times_tensor, *dependencies.arguments, *dependencies.parameters)
        differentiable = any(x.requires_grad for x in inputs)
        if functional:
            field = problem.field(stats.forward)  # what it captured may be dual too
            refuse_tangents([*inputs, field(field.time(problem.times[0]), problem.y0)], sensealg)
    if problem.quantities:
        refuse_step_quantities(backend, sensealg, bool(compile), differentiable)
    request = Request(
        problem=problem,
        algorithm=algorithm,
        sensealg=sensealg,
        dependencies=dependencies,
        differentiable=differentiable,
        time_gradient=differentiable and (moves(problem.t) or moves(times_tensor)),
        rtol=rtol,
        atol=atol,
        norm=norm,
        controller=default_controller(algorithm) if controller is None else controller,
        max_steps=max_steps,
        dt0=first,
        dtmin=dtmin,
        dtmax=dtmax,
        force_dtmin=force_dtmin,
        tstops=floats("tstops", tstops),
        jumps=jumps,
        times=times,
        times_tensor=times_tensor,
        own_times=points.own,
        save_steps=save.steps,
        dense=save.dense,
        observer=observer,
        compile=compile,
        stats=stats,
        question=question,
        watch=events,
    )
    read = ReadParameters.of(request) if differentiable else None
    # Fixed steps are as many on every rank.
    with problem.autocast(), without_communication(problem, algorithm.adaptive and dependencies is None):
        record: Any = engine.solve(request)
    if read is not None:
        read.check_solved()
    if warm is not None:
        warm.remember(like, record.first)
    solution = resumable(_solution(engine, request, record, shown), solve, options)
    solution.ys = saved(save.fn, solution.ts, solution.ys, args)
    if throw and not solution.retcode.successful:
        raise SolveError(solution.message, solution.retcode, record.t, solution)
    return solution


def _solution(engine: Backend, request: Request, record: Any, shown: int) -> Solution:
    """``shown``: how many of the save times the user asked for."""
    problem = request.problem
    layout = problem.state_layout
    reached = len(record.saved)
    stopped = record.retcode is ReturnCode.Terminated
    if request.save_steps or stopped or reached < len(request.times):
        times, times_tensor = record.saved, request.times_tensor[:reached]
        if request.save_steps:
            times_tensor = torch.tensor(times, dtype=problem.t.dtype, device=problem.t.device)
            if request.time_gradient:
                moving = engine.mesh(record, problem.t).to(times_tensor)
                if not request.algorithm.adaptive:
                    times_tensor = torch.cat([moving[: reached - stopped], times_tensor[reached - stopped :]])
                elif times[-1] == problem.times[-1] and not stopped:
                    times_tensor = torch.cat([moving[:1], times_tensor[1:-1], moving[1:]])
                elif stopped:
                    times_tensor = torch.cat([moving[:1], times_tensor[1:]])
        elif stopped:  # the event was found at a fixed time, which has no gradient yet
            times_tensor = torch.cat([times_tensor[: reached - 1], times_tensor.new_tensor([record.t])])
    else:
        times, times_tensor = request.times, request.times_tensor

    message = "" if record.retcode.successful else failure_message(record.retcode, record.t, record.detail)
    values = connected(engine, record, times, times_tensor, record.values, own_times=request.own_times)
    if request.watch is not None and stopped:
        request.watch.state, request.watch.size = values[-1], record.size
    end_of = functools.partial(end_of_solve, engine, record, times, times_tensor, values)
    running_cost = None
    if problem.cost_layout is not None:
        end = end_state(engine, record, times, values)
        running_cost = problem.cost_layout.unpack(end[layout.size :])
        if not request.save_steps and not stopped:
            values, times_tensor = values[:shown], times_tensor[:shown]
    # Torch's tape was there for nothing where nothing has a gradient.
    differentiated = request.differentiable and not (taped(record) and not moves(values))
    return Solution(
        ts=times_tensor,
        ys=layout.unpack(values if problem.cost_layout is None else values[..., : layout.size]),
        retcode=record.retcode,
        stats=request.stats,
        algorithm=request.algorithm,
        sensealg=request.sensealg if differentiated else None,
        evaluate=functools.partial(queried, engine, record),
        span=(problem.times[0], record.t),
        message=message,
        running_cost=running_cost,
        at_steps=request.save_steps,
        end=end_of,
    )
