"""Every combination, side by side."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.algorithms import ALGORITHMS, DP5, Algorithm, FixedStep, Tsit5, Vern7, as_algorithm
from pynode.backends import backend_from_name, backend_names
from pynode.crosscheck.case import Case, Gradient, Quantities, Solver, differentiate, make_case, named, precise
from pynode.crosscheck.oracles import ORACLES, Contestant, contestants
from pynode.crosscheck.reference import PynodeSolver, make_reference
from pynode.crosscheck.report import (
    DISAGREES,
    FAILED,
    NOT_OFFERED,
    NOT_REACHED,
    NOT_RESOLVED,
    REFUSED,
    CrosscheckReport,
    Row,
)
from pynode.crosscheck.verdict import (
    Reference,
    first_difference,
    first_excess,
    is_discrete,
    refined,
    relative_errors,
    unresolved,
)
from pynode.errors import InputError, PynodeError, UnsupportedError, explain
from pynode.live_bytes import peak_during
from pynode.problems import Instance, Problem, WeightedLoss
from pynode.sensealg import (
    DirectAdjoint,
    ForwardSensitivity,
    ReversibleAdjoint,
    SensitivityAlgorithm,
)
from pynode.sensealg_names import SENSEALGS, as_sensealg, sensealg_from_name

Tolerances = Sequence[float]

#: Seconds spent on a row's timed gradients after which none is repeated: what is slow has no need of a median.
_TIMED = 0.25


def crosscheck(
    f: Callable[..., Any] | Problem | Instance,
    y0: Any = None,
    t: Any = None,
    loss: Callable[[Any], Tensor] | None = None,
    *,
    args: tuple[Any, ...] = (),
    backends: Sequence[str] | None = None,
    algorithms: Sequence[Algorithm | str] | None = None,
    sensealgs: Sequence[SensitivityAlgorithm | str] | None = None,
    oracles: Sequence[str] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    tolerances: Tolerances = (),
    params: Iterable[Tensor] | None = None,
    directions: int = 3,
    repeats: int = 3,
    seed: int = 0,
    reference: str = "Vern9",
    forward_limit: int = 200,
    budget: float | None = None,
    progress: Callable[[Row, int, int], None] | None = None,
    **options: Any,
) -> CrosscheckReport:
    """Solve and differentiate a problem in every way there is, and compare with a reference.

    The reference is a float64 copy of the problem solved by ``Vern9`` at 1e-12 and differentiated on torch's tape,
    itself held against central finite differences of the loss. Each (backend, algorithm, sensealg) and each oracle that
    is installed is one row of the report; :mod:`pynode.crosscheck.verdict` says when it disagrees.

    Parameters
    ----------
    f, y0, t, args, params
        As for :func:`pynode.solve`; or a built-in problem (:mod:`pynode.problems`) alone, which brings ``y0``, ``t``,
        ``loss`` and tolerances. ``y0`` is always differentiated; of ``args`` the tensors that require a gradient; ``t``
        if it requires one.
    loss : callable, optional
        ``loss(ys)``, a scalar of the saved states; by default a smooth one in which each counts
        (:class:`pynode.problems.WeightedLoss`).
    backends, sensealgs, oracles : sequence, optional
        By default all; ``"julia"`` where it is installed. Oracles are ``"scipy"`` (``"scipy:LSODA"``),
        ``"torchdiffeq"`` and ``"diffrax"`` (built-in problems only); one that is not installed is listed as absent.
    algorithms : sequence, optional
        By default Tsit5, DP5 and Vern7; and for a sensealg that supports none of them the first that it does, with
        ``DirectAdjoint`` beside it.
    rtol, atol : float, optional
        By default 1e-6 and 1e-8, or the problem's.
    tolerances : sequence of float
        Relative tolerances to sweep, for ``report.plot``; ``atol`` keeps its ratio to ``rtol``.
    directions : int
        Random directions in which the reference's gradient is verified, at least 1.
    repeats : int
        Timed gradients for each row, at most; their median is shown. None is begun after a quarter of a second of them.
    seed : int
        Of the directions and the default loss.
    reference : str
        ``"Vern9"``, or ``"scipy"`` with an optional method, for what an explicit method cannot solve.
    forward_limit : int
        ``ForwardSensitivity`` takes part up to so many differentiated numbers.
    budget : float, optional
        Seconds after which no further row is begun; half of them are the rows', however long the reference takes.
    progress : callable, optional
        Called as ``progress(row, number, count)`` before each row is measured.
    **options
        Further keyword arguments of :func:`pynode.solve`, for every solve.

    Returns
    -------
    CrosscheckReport

    Raises
    ------
    InputError
        For arguments that cannot be used, and where the reference cannot be computed.

    Examples
    --------
    >>> f, y0 = lambda t, y: torch.sin(y), torch.ones(2, dtype=torch.float64)
    >>> only = {"algorithms": ["tsit5"], "sensealgs": ["Checkpointed"], "backends": ["torch"]}
    >>> report = pynode.crosscheck(f, y0, [0.0, 1.0], oracles=(), repeats=1, **only)
    >>> report.ok, [row.verdict for row in report.rows]
    (True, ['agrees'])
    """
    begun = time.perf_counter()
    if isinstance(f, Problem):
        f = f.build(seed=seed)
    problem = None
    if isinstance(f, Instance):
        problem, instance = f.problem, f
        f, y0, t = instance.field, instance.y0 if y0 is None else y0, instance.t if t is None else t
        loss = loss or instance.loss
        rtol, atol = problem.rtol if rtol is None else rtol, problem.atol if atol is None else atol
    rtol, atol = 1e-6 if rtol is None else rtol, 1e-8 if atol is None else atol
    if directions < 1 or repeats < 1:
        raise InputError(
            explain(f"directions = {directions}, repeats = {repeats}", "integers >= 1", "use the defaults, 3 and 3")
        )
    case = make_case(f, y0, t, args, loss or WeightedLoss(seed), params, problem)
    # Names are looked up before anything long is begun.
    absent: dict[str, str] = {}
    external: list[Contestant] = []
    for oracle in ORACLES if oracles is None else oracles:
        found = contestants(oracle, case)
        if isinstance(found, str):
            absent[oracle] = found
        else:
            external += found
    if backends is None:
        missing = {name: backend_from_name(name).absent() for name in backend_names()}
        absent |= {name: why for name, why in missing.items() if why is not None}
        backends = [name for name, why in missing.items() if why is None]
    names_of = "julia" if "julia" in backends else "torch"
    plans: list[list[Row]] = []
    guests: list[tuple[Row, Contestant]] = []
    for rtol_, atol_ in [(x, x * atol / rtol) for x in tolerances] or [(rtol, atol)]:
        plans += [
            _plan(backend, algorithms, sensealgs, case, forward_limit, rtol_, atol_, names_of) for backend in backends
        ]
        guests += [(_guest(contestant, rtol_, atol_), contestant) for contestant in external]
    planned = [row for plan in plans for row in plan if row.verdict != NOT_OFFERED]
    count = len(planned) + len(guests)

    numbers = itertools.count(1)

    def begin(row: Row) -> None:
        if progress is not None:
            progress(row, next(numbers), count)

    best, note = precise(case)
    truth, differences = make_reference(best, reference, directions, seed, options)
    deadline = None if budget is None else max(begun + budget, time.perf_counter() + budget / 2)
    check = _Check(case, truth, repeats, options, deadline, begin)
    rows = [row for plan in plans for row in check.backend(plan)]
    rows += [check.oracle(row, contestant) for row, contestant in guests]
    label = problem.title if problem is not None else f"{type(f).__name__ if isinstance(f, torch.nn.Module) else 'f'}"
    dtype = str(case.dtype).removeprefix("torch.")
    title = f"{label} ({dtype}, {case.count} differentiated numbers)"
    return CrosscheckReport(title, truth.method, differences, rows, absent, [note] if note else [])


def _plan(
    backend: str,
    algorithms: Sequence[Algorithm | str] | None,
    sensealgs: Sequence[SensitivityAlgorithm | str] | None,
    case: Case,
    forward_limit: int,
    rtol: float,
    atol: float,
    names_of: str,
) -> list[Row]:
    """The rows of a backend, still empty; DirectAdjoint first, as others are compared with it.

    ``names_of``: the backend whose names of algorithms are understood.
    """
    engine = backend_from_name(backend)
    methods = [sensealg_from_name(s) if isinstance(s, str) else as_sensealg(s) for s in sensealgs or ()]
    methods = methods or [cls() for cls in SENSEALGS]
    methods.sort(key=lambda s: not isinstance(s, DirectAdjoint))
    chosen: list[Algorithm] = [as_algorithm(a, names_of) for a in algorithms or (Tsit5(), DP5(), Vern7())]
    rows = []

    def add(algorithm: Algorithm | None, sensealg: SensitivityAlgorithm, missing: str | None) -> None:
        row = Row(backend, "-" if algorithm is None else _label(algorithm), sensealg.name, rtol, atol)
        row.objects = (algorithm, sensealg)
        if missing is not None:
            row.verdict, row.message = NOT_OFFERED, missing
        rows.append(row)

    extra: dict[Algorithm, list[SensitivityAlgorithm]] = {}
    for sensealg in methods:
        if algorithms is None and all(engine.supports(a, sensealg) for a in chosen):
            other = next((cls() for cls in ALGORITHMS.values() if engine.supports(cls(), sensealg) is None), None)
            if isinstance(other, FixedStep):
                # Fine enough for a method of order two to be compared at all; halved once more for the verdict.
                other = dataclasses.replace(other, steps=200)
            if other is not None:
                extra.setdefault(other, []).append(sensealg)
    for algorithm in [*chosen, *extra]:
        for sensealg in methods:
            missing = engine.supports(algorithm, sensealg)
            if missing is None and isinstance(sensealg, ForwardSensitivity) and case.count > forward_limit:
                missing = f"{case.count} differentiated numbers, more than forward_limit = {forward_limit}"
            # What one algorithm was added for does not have to be repeated for all that do without it.
            needed = extra.get(algorithm)
            if needed is None or sensealg in needed or (missing is None and isinstance(sensealg, DirectAdjoint)):
                add(algorithm, sensealg, missing)
    return rows


def _guest(contestant: Contestant, rtol: float, atol: float) -> Row:
    """The row of an oracle, still empty."""
    own = contestant.tolerance
    if own is not None:
        rtol, atol = own, 0.0
    return Row(contestant.oracle, contestant.algorithm, contestant.sensealg, rtol, atol)


def _label(algorithm: Algorithm) -> str:
    if not isinstance(algorithm, FixedStep):
        return algorithm.name
    given = [(key, getattr(algorithm, key)) for key in ("dt", "steps") if getattr(algorithm, key) is not None]
    return algorithm.name + "".join(f"({key}={value:g})" for key, value in given)


class _Check:
    """Fills rows."""

    def __init__(
        self,
        case: Case,
        reference: Reference,
        repeats: int,
        options: dict[str, Any],
        deadline: float | None,
        begin: Callable[[Row], None],
    ) -> None:
        self.case, self.reference, self.repeats = case, reference, repeats
        self.options, self.deadline, self.begin = options, deadline, begin

    def backend(self, rows: list[Row]) -> list[Row]:
        direct: dict[Algorithm, tuple[Quantities, Quantities | None]] = {}
        for row in rows:
            if row.verdict == NOT_OFFERED:
                continue
            algorithm, sensealg = row.objects

            def make(a: Algorithm, r: float, at: float, row: Row = row, s: SensitivityAlgorithm = sensealg) -> Solver:
                return PynodeSolver(row.backend, a, s, r, at, self.options)

            continuous = not is_discrete(sensealg)
            found = self._fill(row, algorithm, make, continuous, direct.get(algorithm))
            if found is None:
                continue
            if isinstance(sensealg, DirectAdjoint):
                direct[algorithm] = found
            elif row.verdict == NOT_RESOLVED and isinstance(sensealg, ReversibleAdjoint):
                # Its states, run backward, are good to half their digits. What such steps make of that is unknown.
                continue
            elif row.excess is None and not continuous and algorithm in direct:
                steps = row.forward.accepted + row.backward.accepted
                row.excess = first_difference(
                    found[0], direct[algorithm][0], self.reference, sensealg, dtype=self.case.dtype, steps=steps
                )
                if row.excess is not None:
                    row.verdict = DISAGREES
        return rows

    def oracle(self, row: Row, contestant: Contestant) -> Row:
        # Oracles are not asked for gradients of times.
        check = _Check(
            dataclasses.replace(self.case, t=self.case.t.detach()),
            *(self.reference, self.repeats, self.options, self.deadline, self.begin),
        )
        check._fill(
            row,
            Tsit5() if contestant.tolerance is None else None,
            lambda algorithm, r, a: contestant.solver(r, a),
            contestant.continuous,
            None,
        )
        return row

    def _fill(
        self,
        row: Row,
        algorithm: Algorithm | None,
        make: Callable[[Any, float, float], Solver],
        continuous: bool,
        direct: tuple[Quantities, Quantities | None] | None,
    ) -> tuple[Quantities, Quantities | None] | None:
        """Measure and judge; the results at the tolerances and at the refined ones. ``algorithm`` is None where the
        tolerances are the solver's own business."""
        if self.deadline is not None and time.perf_counter() > self.deadline:
            row.verdict, row.message = NOT_REACHED, "the time budget was spent"
            return None
        self.begin(row)
        case = self.case
        solver = make(algorithm, row.rtol, row.atol)
        try:
            # The first run is the warm-up, and the one whose memory is counted.
            first: list[Gradient] = []
            if row.backend in ("scipy", "diffrax"):  # their memory is not torch's
                first.append(differentiate(case, solver))
            else:
                row.memory = peak_during(lambda: first.append(differentiate(case, solver)))
            found = named(case, first.pop())
            if isinstance(solver, PynodeSolver) and solver.solution is not None:
                row.forward = dataclasses.replace(solver.solution.stats.forward)
                row.backward = dataclasses.replace(solver.solution.stats.backward)
            samples: list[float] = []
            while len(samples) < self.repeats and sum(samples) < _TIMED:
                start = time.perf_counter()
                if differentiate(case, solver).loss.is_cuda:
                    torch.cuda.synchronize()
                samples.append(time.perf_counter() - start)
            row.seconds = statistics.median(samples)
        except UnsupportedError as error:
            row.verdict, row.message = NOT_OFFERED, _first_line(error)
            return None
        except PynodeError as error:
            row.verdict, row.message = REFUSED, _first_line(error)
            return None
        except Exception as error:  # a row of the report: whatever it is, the others are still worth seeing
            # An oracle that gives up (torchdiffeq asserts) says nothing about pynode.
            row.verdict = REFUSED if row.backend in ORACLES else FAILED
            row.message = f"{type(error).__name__}: {_first_line(error)}"
            return None
        finer = None
        if algorithm is not None:
            try:
                finer = named(case, differentiate(case, make(*refined(algorithm, row.rtol, row.atol, case.dtype))))
            except PynodeError as error:
                row.message = f"without the refined solve: {_first_line(error)}"
        steps = row.forward.accepted + row.backward.accepted
        row.errors = relative_errors(found, self.reference.quantities)
        fixed = isinstance(algorithm, FixedStep)
        row.allowed, row.excess = first_excess(
            *(found, finer, self.reference),
            rtol=0.0 if fixed else row.rtol,
            atol=0.0 if fixed else row.atol,
            continuous=continuous,
            dtype=case.dtype,
            steps=steps,
            direct=direct,
        )
        moved = unresolved(found, finer, self.reference)
        if moved is not None:
            # Neither agreement nor disagreement with the truth would say anything about the gradient.
            row.verdict, row.excess = NOT_RESOLVED, None
            how = "its steps are halved" if fixed else "its tolerances change tenfold"
            row.message = f"the solution itself moves by {moved:.2g} of its norm when {how}"
        elif row.excess is not None:
            row.verdict = DISAGREES
        return found, finer


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
