"""The front door of independent stepping: checks, solves, connects the result to autograd."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode import solve_options
from pynode.algorithms import Algorithm
from pynode.batch_solution import BatchSolution, RowCounts, rows_message
from pynode.controllers import PIDController
from pynode.default_controller import default_controller
from pynode.dependencies import Dependencies
from pynode.errors import InputError, SolveError, UnsupportedError, explain
from pynode.events import Event, RowFiring, as_events
from pynode.native.independent.control import check_controller
from pynode.native.independent.engine import ENGINE
from pynode.native.independent.firing import firing
from pynode.native.independent.loop import integrate
from pynode.native.independent.problem import RowProblem
from pynode.native.independent.record import CODES, RowRecord
from pynode.native.independent.replay import evaluate, taped
from pynode.native.independent.request import RowRequest
from pynode.native.independent.search import Fired
from pynode.native.independent.times import RowTimes, check_within
from pynode.native.tableaus import TABLEAUS
from pynode.queries import connected
from pynode.saveat import SaveAt
from pynode.sensealg import CheckpointedAdjoint, DirectAdjoint, SensitivityAlgorithm, as_sensealg
from pynode.solution import ReturnCode, Stats
from pynode.solve_options import check_steps, check_tolerances, floats
from pynode.transforms import moves, transformed
from pynode.warm_start import WarmStart


def check_options(backend: str, algorithm: Algorithm, sensealg: SensitivityAlgorithm | None, **others: Any) -> None:
    """Raise UnsupportedError for what independent stepping does not offer. ``others``: options that must be false."""

    def refuse(value: str, expectation: str, remedy: str) -> None:
        raise UnsupportedError(explain(f"batching='independent' with {value}", expectation, remedy))

    if backend != "torch":
        refuse(f"backend={backend!r}", "the torch backend", "use backend='torch', or batching='joint'")
    tableau = TABLEAUS.get(algorithm.name)
    if not algorithm.adaptive or tableau is None or tableau.b_error is None:
        refuse(
            f"the algorithm {algorithm.name}",
            "an adaptive explicit Runge-Kutta method",
            "use Tsit5(), DP5(), BS3(), Vern7(), Vern9() or DP8(), or batching='joint'",
        )
    if sensealg is not None and not isinstance(sensealg, CheckpointedAdjoint | DirectAdjoint):
        refuse(
            f"sensealg={sensealg.name}()",
            "CheckpointedAdjoint or DirectAdjoint",
            "leave sensealg out: the default is exact for the steps of every row",
        )
    if isinstance(sensealg, CheckpointedAdjoint) and (sensealg.checkpoints or sensealg.max_memory):
        refuse(
            "a bound on the stored states",
            "CheckpointedAdjoint(), which keeps one state for every step of a row",
            "drop the bound, or split the batch",
        )
    for name, given in others.items():
        if given:
            refuse(f"{name}=", "a solve without it", f"drop {name}=, or use batching='joint'")
    if transformed():
        refuse(
            "a torch.func transform or dual numbers",
            "tensors outside torch.func",
            "use batching='joint' inside the transform",
        )


def _terminal(events: Any) -> tuple[Event, ...]:
    """The events that ``events=`` means, all of which must end their row."""
    listed = as_events(events)
    for index, event in enumerate(listed):
        if not event.terminal:
            raise UnsupportedError(
                explain(
                    f"batching='independent' with events[{index}], which is not terminal",
                    "events that end their row",
                    "write terminal=True and solve the rows again from sol.events[0].t and .after, or use "
                    "batching='joint'",
                )
            )
    return listed


#: Options of :func:`pynode.solve` that say how rows step.
_STEPPING = ("rtol", "atol", "norm", "max_steps", "dt0", "dtmin", "dtmax", "force_dtmin")
#: Those that rows do not have, which must be left out.
_JOINT = ("d_discontinuities", "observer", "progress", "compile", "running_cost", "jac", "mass_matrix")


def in_rows(y0: Any, t: Any, options: dict[str, Any]) -> BatchSolution:
    """:func:`pynode.solve` under ``batching=``; ``options`` are its other arguments.

    Raises
    ------
    InputError, UnsupportedError
        For a ``batching`` that there is not, and for options that rows do not have.
    """
    batching, algorithm, sensealg = options["batching"], options["algorithm"], options["sensealg"]
    if batching != "independent":
        raise InputError(explain(f"batching = {batching!r}", "'joint' or 'independent'", "use batching='joint'"))
    sensealg = None if sensealg is None else as_sensealg(sensealg)
    given = {name: options[name] is not None and options[name] is not False for name in _JOINT}
    given["d_discontinuities"] = len(options["d_discontinuities"]) > 0
    check_options(options["backend"], algorithm, sensealg, **given)
    problem = RowProblem(options["f"], y0, t, options["args"])
    stepping = {name: options[name] for name in _STEPPING}
    check_tolerances(problem, stepping["rtol"], stepping["atol"])
    if isinstance(stepping["dt0"], WarmStart):
        raise UnsupportedError(
            explain("dt0=WarmStart() with batching='independent'", "a number for all rows, or None", "drop dt0=")
        )
    check_steps(*(stepping[name] for name in ("max_steps", "dt0", "dtmin", "dtmax")))
    solve_options.check_controller(options["controller"])
    return solve_rows(
        *(problem, algorithm, sensealg, options["saveat"], options["controller"], options["params"]),
        *(options["allow_unused"], options["throw"], floats("tstops", options["tstops"]), stepping),
        events=() if options["events"] is None else _terminal(options["events"]),
    )


def solve_rows(
    problem: RowProblem,
    algorithm: Algorithm,
    sensealg: SensitivityAlgorithm | None,
    saveat: Any,
    controller: PIDController | None,
    params: Any,
    allow_unused: bool,
    throw: bool,
    tstops: Sequence[float],
    stepping: dict[str, Any],
    events: tuple[Event, ...] = (),
) -> BatchSolution:
    """Solve every row of ``problem``. ``stepping``: the options of the steps, as :class:`Request` names them."""
    sensealg = CheckpointedAdjoint() if sensealg is None else as_sensealg(sensealg)
    controller = default_controller(algorithm) if controller is None else controller
    check_controller(controller)
    save = saveat if isinstance(saveat, SaveAt) else SaveAt(ts=saveat)
    for name in ("t0", "t1", "fn"):
        if getattr(save, name):
            raise UnsupportedError(
                explain(
                    f"SaveAt({name}=) with batching='independent'",
                    "save times for all rows or for each",
                    "give times, (M,) or (B, M), that hold the ends, and apply the function to sol.ys",
                )
            )
    if save.steps:
        raise UnsupportedError(
            explain(
                "SaveAt(steps=True) with batching='independent'",
                "save times, as every row has a number of steps of its own",
                "give times, or look between them with sol(t)",
            )
        )
    series = problem.row_times if save.ts is None else RowTimes("saveat", save.ts, problem.rows.batch)
    values = series.values if save.ts is None else check_within(series, problem.row_times)
    times_tensor = problem.t if save.ts is None else series.tensor.to(problem.t.device)
    stats = Stats()
    differentiable = torch.is_grad_enabled() and problem.rows.batch > 0
    dependencies = None
    if differentiable and not isinstance(sensealg, DirectAdjoint):  # torch's tape finds that by itself
        with problem.autocast():
            dependencies = Dependencies(problem, stats.forward, params, allow_unused)
        inputs = (problem.y0, problem.t, times_tensor, *dependencies.arguments, *dependencies.parameters)
        differentiable = any(x.requires_grad for x in inputs)
    request = RowRequest(
        problem=problem,
        rows=problem,
        algorithm=algorithm,
        sensealg=sensealg,
        dependencies=dependencies,
        differentiable=differentiable,
        time_gradient=differentiable and (moves(problem.t) or moves(times_tensor)),
        controller=controller,
        tstops=tstops,
        jumps=frozenset(),
        times=[],
        times_tensor=times_tensor,
        own_times=save.ts is not None,
        save_steps=False,
        dense=save.dense,
        observer=None,
        compile=False,
        stats=stats,
        question=(),
        watch=None,
        save_values=values,
        keeps=differentiable or save.dense is not False,
        events=events,
        **stepping,
    )
    record = RowRecord(request, TABLEAUS[algorithm.name])
    with torch.no_grad(), problem.autocast():
        integrate(record, None if dependencies is None else dependencies.derivative)
    return _solution(record, series, throw)


def _solution(record: RowRecord, series: RowTimes, throw: bool) -> BatchSolution:
    request, problem = record.request, record.problem
    values = _connected(record, request.save_values, request.times_tensor, record.values, False, request.own_times)
    if problem.rows.batch == 0 and torch.is_grad_enabled():
        values = problem.y0[None].expand(values.shape[0], -1, -1).clone()  # of no row, but on the tape
    retcodes = [CODES[code] for code in record.codes]
    message = _message(record, retcodes)
    tensor = series.tensor if request.own_times else problem.t
    solution = BatchSolution(
        ts=tensor if series.shared else tensor.t(),
        ys=problem.rows.unpack(values),
        retcode=record.outcome(),
        stats=request.stats,
        algorithm=request.algorithm,
        sensealg=request.sensealg if request.differentiable and values.requires_grad else None,
        evaluate=functools.partial(_queried, record),
        span=(torch.from_numpy(problem.row_times.starts.copy()), torch.from_numpy(record.reached.copy())),
        message=message,
        retcodes=retcodes,
        row_stats=RowCounts(*(torch.from_numpy(x) for x in (record.nfe, record.accepted, record.rejected))),
        firings=_firings(record),
    )
    if throw and message:
        first = int(record.failed.argmax())
        raise SolveError(message, record.outcome(), float(record.reached[first]), solution)
    return solution


def _firings(record: RowRecord) -> tuple[RowFiring, ...]:
    """What ended rows, if events were asked for."""
    if not record.request.events:
        return ()
    if record.fired is None:  # no row moved
        record.fired = Fired(record.problem.y0.detach())
    fired = record.fired
    states = fired.states
    if (fired.event >= 0).any():
        times = fired.t[:, None]
        states = _connected(record, times, torch.from_numpy(times), states[None], False, True)[0]
    return (firing(record, states),)


def _connected(
    record: RowRecord, times: Any, tensor: Tensor, values: Tensor, derivative: bool, own_times: bool
) -> Tensor:
    """``values`` (M, B, n) at ``times``, on torch's tape where something requires a gradient."""
    request = record.request
    if not request.differentiable or not torch.is_grad_enabled():
        return values
    if isinstance(request.sensealg, DirectAdjoint):
        with record.problem.autocast():
            return taped(record, times, tensor, derivative, own_times)
    return connected(ENGINE, record, times, tensor, values, derivative=derivative, own_times=own_times)


def _queried(record: RowRecord, at: Tensor, derivative: bool) -> Any:
    """What calling a solution gives."""
    problem = record.problem
    tensor = at if at.ndim == 2 else at.reshape(-1)
    times = tensor.detach().to("cpu", torch.float64).numpy()
    times = times if times.ndim == 2 else times[None]
    starts, ends = problem.row_times.starts[:, None], problem.row_times.ends[:, None]
    low, high = np.minimum(starts, ends), np.maximum(starts, ends)
    inside = np.clip(times, low, high)
    # The ends of the span may have been rounded to the dtype of the times.
    slack = float(torch.finfo(at.dtype).eps) * np.maximum(np.abs(low), np.abs(high))
    outside = (np.abs(inside - times) > slack).any(axis=1)
    if outside.any():
        row = int(outside.argmax())
        raise InputError(
            explain(
                f"sol(t) got times from {np.nanmin(times):.9g} to {np.nanmax(times):.9g}",
                f"times within the span of every row, in row {row} [{low[row, 0]:.9g}, {high[row, 0]:.9g}]",
                "solve over a longer span, or give each row times of its own, (B, M)",
            )
        )
    times = times if (inside == times).all() else inside
    with torch.no_grad(), problem.autocast():
        values = evaluate(record, times, derivative, record.request.stats.forward)
    values = _connected(record, times, tensor, values, derivative, True)
    return problem.rows.unpack(values if at.ndim else values[0])


def _message(record: RowRecord, retcodes: list[ReturnCode], shown: int = 3) -> str:
    failed = np.flatnonzero(record.failed)
    if not len(failed):
        return ""
    described = [(int(row), float(record.reached[row]), _detail(record, row)) for row in failed[:shown]]
    return rows_message(described, retcodes)


_DETAILS: dict[ReturnCode, Callable[[RowRecord, Any], str]] = {
    ReturnCode.InitialFailure: lambda record, row: "f(t0, y0) has a NaN or an infinity",
    ReturnCode.MaxIters: lambda record, row: (
        f"max_steps = {record.request.max_steps} attempted steps, the last of {record.size[row]:.3g}"
    ),
    ReturnCode.Unstable: lambda record, row: (
        "f is not finite there" if record.at_fault[row] else "f is finite there, but not just ahead"
    ),
    ReturnCode.DtLessThanMin: lambda record, row: (
        f"|dt| = {record.size[row]:.3g}; the error was {record.ratio[row]:.3g} times the tolerance"
    ),
}


def _detail(record: RowRecord, row: Any) -> str:
    return _DETAILS[CODES[record.codes[row]]](record, row)
