"""The front door of independent stepping: what is asked for, checked."""

from __future__ import annotations

from typing import Any

from pynode import solve_options
from pynode.algorithms import Algorithm
from pynode.batch_solution import BatchSolution
from pynode.default_controller import default_controller
from pynode.errors import InputError, SolveError, UnsupportedError, explain
from pynode.events import as_events, check_limit
from pynode.native.independent.combined import combined
from pynode.native.independent.control import check_controller
from pynode.native.independent.course import Course
from pynode.native.independent.problem import RowProblem
from pynode.native.independent.stretch import RowOptions, SaveTimes
from pynode.native.independent.times import RowTimes, check_within
from pynode.native.tableaus import TABLEAUS
from pynode.precision import warn_of_precision
from pynode.saveat import SaveAt, as_saveat
from pynode.sensealg import CheckpointedAdjoint, DirectAdjoint, SensitivityAlgorithm
from pynode.sensealg_names import as_sensealg
from pynode.solve_options import check_steps, check_tolerances, floats
from pynode.transforms import transformed
from pynode.warm_start import refuse_warm_start


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
    refuse_warm_start(stepping["dt0"], "batching='independent'")
    check_steps(*(stepping[name] for name in ("max_steps", "dt0", "dtmin", "dtmax")))
    solve_options.check_controller(options["controller"])
    check_limit(options["max_events"])
    rows = RowOptions(
        algorithm=algorithm,
        sensealg=CheckpointedAdjoint() if sensealg is None else sensealg,
        controller=default_controller(algorithm) if options["controller"] is None else options["controller"],
        params=options["params"],
        allow_unused=options["allow_unused"],
        tstops=floats("tstops", options["tstops"]),
        events=() if options["events"] is None else as_events(options["events"]),
        dense=as_saveat(options["saveat"]).dense,
        stepping=stepping,
    )
    warn_of_precision(problem, (stepping["rtol"], stepping["atol"]), rows.stats.forward)
    solution = solve_rows(problem, rows, options["args"], as_saveat(options["saveat"]), options["max_events"])
    if options["throw"] and solution.message:
        first = next(i for i, code in enumerate(solution.retcodes) if not code.successful)
        reached: Any = solution.span[1]
        raise SolveError(solution.message, solution.retcode, float(reached[first]), solution)
    return solution


def solve_rows(
    problem: RowProblem, options: RowOptions, args: tuple[Any, ...], save: SaveAt, max_events: int
) -> BatchSolution:
    """Solve every row of ``problem``, whose ``args`` are as the user gave them."""
    check_controller(options.controller)
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
    times = SaveTimes(
        values=series.values if save.ts is None else check_within(series, problem.row_times),
        tensor=problem.t if save.ts is None else series.tensor.to(problem.t.device),
        own=save.ts is not None,
    )
    return combined(Course(problem, args, options, times, max_events), series)
