"""Is it still an ODE? A trained model under other solvers (Ott, Katiyar, Hennig and Tiemann 2021)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pynode.algorithms import (
    DP5,
    RK4,
    Algorithm,
    Euler,
    Exponential,
    Fehlberg2,
    FixedStep,
    Midpoint,
    Symplectic,
    Tsit5,
    as_algorithm,
)
from pynode.errors import InputError, explain
from pynode.nn.neural_ode import NeuralODE
from pynode.solution import Solution
from pynode.training.gap import gap_between
from pynode.training.measure import Batch, Measurement, as_batches, measure
from pynode.training.metrics import Metric
from pynode.training.orders import at_step, order_of
from pynode.training.solving_with import evaluating, odes_of, span_of, step_of
from pynode.training.state_space import StateSpace, compare_flows
from pynode.training.validity_report import Row, ValidityReport

#: Factors on the number of steps, and on the tolerance.
STEP_FACTORS = (0.5, 0.75, 1.0, 1.5, 2.0)
TOLERANCE_FACTORS = (0.01, 0.1, 1.0, 10.0, 100.0)


def validity(
    model: torch.nn.Module,
    data: Iterable[Batch],
    metric: Metric | str = "accuracy",
    *,
    threshold: float = 0.1,
    relative: bool | None = None,
    solvers: Sequence[Algorithm | str] | None = None,
    factors: Sequence[float] | None = None,
    backends: Sequence[str] | None = None,
    reference: Algorithm | str = Tsit5(),  # noqa: B008  (immutable)
    reference_tolerance: float | None = None,
    max_steps: int = 512,
    progress: Callable[[str], None] | None = None,
) -> ValidityReport:
    """Whether a trained model is the flow of its field or only the discretisation it was trained with.

    The model is evaluated as it is, with a reference (the field's flow, to a tight tolerance), with other solvers at
    multiples of its number of steps (or of its tolerance), and with its own solver at 1, 2, 4, ... steps (tolerances
    ten times apart), from which the critical step is estimated. It is a *flow* if no solver that is at least as exact
    as the training's changes the metric by more than ``threshold``: the same solver with more steps, one of higher
    order with as many or more, the reference. A model whose trained accuracy is that of guessing passes, too: look at
    the metric and at ``report.states``.

    Parameters
    ----------
    model : torch.nn.Module
        A :class:`pynode.nn.NeuralODE`, or a module with some inside, all of fixed steps or all adaptive. Left as it
        was, except that random layers and buffers are those of evaluation mode meanwhile.
    data : iterable of (x, target)
        Validation or test data. A pair of tensors is one batch.
    metric : callable or str
        ``metric(output, target)``: a number for the batch or one for each sample; ``"accuracy"``, ``"mse"``.
    threshold : float
        Of the difference of metrics: 0.1 of accuracy in Ott et al. (2021).
    relative : bool, optional
        Whether the gap is relative to the metric, as for losses; by default for ``"mse"``.
    solvers : sequence of Algorithm or str, optional
        Beside the model's own; by default Euler, Midpoint and RK4, or DP5 and Fehlberg2. Of adaptive ones beside fixed
        steps, the tolerance is the reference's and factors multiply it.
    factors : sequence of float, optional
        On the number of steps: 0.5, 0.75, 1, 1.5, 2; on the tolerance: 0.01, ..., 100.
    backends : sequence of str, optional
        Who solves, ``"torch"`` or ``"julia"``: the model's own by default. The own solver is run by each.
    reference : Algorithm or str
        Adaptive.
    reference_tolerance : float, optional
        1e-8 in float64, 1e-5 in float32, and a hundredth of the model's tolerance if that is tighter.
    max_steps : int
        Bound of the search for the critical step.
    progress : callable, optional
        Called with a line before every evaluation.

    Returns
    -------
    ValidityReport
        ``.verdict`` is ``"flow"`` or ``"discretisation"``.

    Raises
    ------
    InputError
        If there is no NeuralODE, no data, or no metric that is finite as trained.

    Examples
    --------
    >>> model = pynode.nn.NeuralODE(lambda t, y: -10 * y, algorithm=pynode.Euler(steps=8))
    >>> data = [(torch.ones(4, 1), torch.full((4, 1), (1 - 10 / 8) ** 8))]  # what Euler makes of it
    >>> pynode.training.validity(model, data, "mse", threshold=1e-12, relative=False).verdict
    'discretisation'
    """
    batches = as_batches(data)
    odes = odes_of(model)
    kinds = {ode.algorithm.adaptive for ode in odes.values()}
    if len(kinds) > 1:
        raise InputError(
            explain("the model mixes fixed and adaptive steps", "one kind", "judge it with solving_with for each part")
        )
    fixed = not kinds.pop()
    if not threshold > 0:
        raise InputError(explain(f"threshold = {threshold}", "a positive number", "take 0.1 for accuracies"))
    reference = as_algorithm(reference)
    if not reference.adaptive:
        raise InputError(explain(f"reference {reference.name} has fixed steps", "an adaptive one", "take Tsit5()"))
    relative = metric == "mse" if relative is None else relative
    own_backend = next(iter(odes.values())).options.get("backend", "torch")
    double = next((p.dtype for p in model.parameters()), torch.get_default_dtype()) == torch.float64
    tight = 1e-8 if double else 1e-5
    if not fixed:
        tight = max(min(tight, 0.01 * min(ode.rtol for ode in odes.values())), 1e-13 if double else 1e-6)
    tight = tight if reference_tolerance is None else reference_tolerance
    run = _Run(model, batches, metric, relative, fixed, own_backend, progress)

    inputs: dict[str, tuple[Any, ...]] = {}
    names = {id(ode): name for name, ode in odes.items()}

    def keep(ode: NeuralODE, given: tuple[Any, ...], solution: Solution) -> None:
        inputs.setdefault(names[id(ode)], given)

    own = run(_Candidate(_first(odes).algorithm, own_backend, _resolution(odes, fixed), 1.0, {"hook": keep}, None))
    if not math.isfinite(own.metric):
        what = f"as it is trained, the model's metric is {own.metric} {run.own.failure if run.own else ''}".strip()
        raise InputError(explain(what, "a finite number", "check the model and the data"))
    exact = {"rtol": tight, "atol": tight, "backend": own_backend}
    bound = run(_Candidate(reference, own_backend, tight, math.nan, exact, reference, "rtol", exact=True))
    plan = _fixed_plan if fixed else _adaptive_plan
    candidates = plan(odes, solvers, factors, [own_backend] if backends is None else list(backends), tight)
    rows = [run(candidate) for candidate in candidates]
    if fixed:
        rows += _search(run, odes, own, bound, rows, max_steps, relative, threshold)
    else:
        rows += _loosen(run, odes, own, bound, rows, relative, threshold)
    states: dict[str, StateSpace] = {}
    with evaluating(model):
        for name, ode in odes.items():
            flow = ode.with_solver(reference, rtol=tight, atol=tight, backend=own_backend, compile=False)
            states[name] = compare_flows(ode, inputs[name], flow)
    report = ValidityReport(
        own, bound, rows, states, threshold, relative, fixed, len(run.own.values if run.own else ())
    )
    if not any(row.exact and not math.isnan(row.gap) for row in [*rows, bound]):
        raise InputError(
            explain(
                f"no more exact solver could solve the model: {bound.failure}",
                "the reference, or the solver of the training with more steps",
                "raise reference_tolerance, or max_steps in the NeuralODE's options",
            )
        )
    decisive = report.decisive
    if abs(decisive.gap - threshold) <= decisive.margin:
        report.notes.append(
            f"close: the deciding gap, {decisive.gap:.3g}, is within its sampling error {decisive.margin:.2g} of the "
            f"threshold: more data would make the verdict sure"
        )
    return report


@dataclass
class _Candidate:
    """One way to solve."""

    algorithm: Algorithm
    backend: str
    resolution: float
    factor: float
    options: dict[str, Any]
    choice: Any
    kind: str = "step"
    exact: bool = False


class _Run:
    """Evaluates candidates and compares them with the first, the model's own."""

    def __init__(
        self,
        model: torch.nn.Module,
        batches: list[Batch],
        metric: Metric | str,
        relative: bool,
        fixed: bool,
        own_backend: str,
        progress: Callable[[str], None] | None,
    ) -> None:
        self.model, self.batches, self.metric, self.relative = model, batches, metric, relative
        self.fixed, self.progress = fixed, progress
        self.own: Measurement | None = None

    def __call__(self, candidate: _Candidate) -> Row:
        name = candidate.algorithm.name + (f" ({candidate.backend})" if candidate.backend != "torch" else "")
        if self.progress is not None:
            self.progress(f"{name} at {candidate.resolution:.3g}")
        found = measure(self.model, self.batches, self.metric, candidate.choice, **candidate.options)
        first, self.own = self.own is None, found if self.own is None else self.own
        gap = 0.0 if first and not found.failure else gap_between(self.own.value, found.value, self.relative)
        if found.failure and "Unstable" not in found.failure and "non-finite" not in found.failure:
            gap = math.nan  # it was not solved: nothing is known of the metric
        kind = candidate.kind if self.fixed else "rtol"
        return Row(
            name, candidate.resolution, candidate.factor, found.nfe, found.value, gap, self._margin(found),
            candidate.exact and not first, found.failure, kind,
        )  # fmt: skip

    def _margin(self, found: Measurement) -> float:
        own = self.own
        if own is None or own is found or len(own.values) != len(found.values) or len(own.values) < 2:
            return math.nan
        spread = (found.values - own.values).std() / math.sqrt(len(own.values))
        return float(2 * spread / (max(abs(own.value), 1e-300) if self.relative else 1.0))


def _first(odes: dict[str, NeuralODE]) -> NeuralODE:
    return next(iter(odes.values()))


def _resolution(odes: dict[str, NeuralODE], fixed: bool) -> float:
    """The coarsest of the model."""
    return max(step_of(ode) if fixed else float(torch.as_tensor(ode.rtol).max()) for ode in odes.values())


def _stepped(algorithm: FixedStep | None, factor: float) -> Callable[[NeuralODE], Algorithm]:
    """``factor`` times as many steps, with ``algorithm`` or each NeuralODE's own."""

    def choose(ode: NeuralODE) -> Algorithm:
        own = ode.algorithm if algorithm is None else algorithm
        assert isinstance(own, FixedStep)
        steps = max(1, round(factor / step_of(ode)))
        return at_step(own, span_of(ode) / steps)

    return choose


def _fixed_plan(
    odes: dict[str, NeuralODE],
    solvers: Sequence[Algorithm | str] | None,
    factors: Sequence[float] | None,
    backends: list[str],
    tight: float,
) -> Iterator[_Candidate]:
    own, own_backend = _first(odes).algorithm, _first(odes).options.get("backend", "torch")
    step, order = _resolution(odes, True), order_of(own)
    given: Sequence[Algorithm | str] = (Euler(), Midpoint(), RK4()) if solvers is None else solvers
    if solvers is None and isinstance(own, Exponential | Symplectic):
        given = ()  # of pairs and of split fields: the methods above see another one there
    for backend in backends:
        others = [as_algorithm(x, backend) for x in given]
        for algorithm in [own, *(x for x in others if x.name != own.name)]:
            if algorithm.adaptive:
                for factor in TOLERANCE_FACTORS:
                    options = {"rtol": factor * tight, "atol": factor * tight, "backend": backend}
                    if factor >= 1:
                        yield _Candidate(algorithm, backend, factor * tight, factor, options, algorithm, "rtol")
                continue
            assert isinstance(algorithm, FixedStep)
            seen = {round(1 / step)} if algorithm is own and backend == own_backend else set()
            for factor in STEP_FACTORS if factors is None else factors:
                steps = max(1, round(factor / step))
                if steps in seen:
                    continue
                seen.add(steps)
                other = order_of(algorithm)
                finer = order is not None and other is not None and other >= order and steps * step >= 1 - 1e-9
                choice = _stepped(None if algorithm is own else algorithm, factor)
                yield _Candidate(
                    algorithm, backend, 1 / steps, steps * step, {"backend": backend}, choice, "step",
                    finer and (algorithm is own or (other or 0) > (order or 0)),
                )  # fmt: skip


def _adaptive_plan(
    odes: dict[str, NeuralODE],
    solvers: Sequence[Algorithm | str] | None,
    factors: Sequence[float] | None,
    backends: list[str],
    tight: float,
) -> Iterator[_Candidate]:
    own, own_backend = _first(odes).algorithm, _first(odes).options.get("backend", "torch")
    tolerance, order = _resolution(odes, False), order_of(own)
    given: Sequence[Algorithm | str] = (DP5(), Fehlberg2()) if solvers is None else solvers
    for backend in backends:
        others = [as_algorithm(x, backend) for x in given]
        for algorithm in [own, *(x for x in others if x.name != own.name)]:
            for factor in TOLERANCE_FACTORS if factors is None else factors:
                same = algorithm is own and backend == own_backend
                # Below this a step of the state's precision cannot meet the tolerance.
                if (same and factor == 1) or factor * tolerance < 0.1 * tight:
                    continue
                other = order_of(algorithm)
                finer = factor < 1 and (algorithm is own or (order is not None and (other or 0) >= order))
                yield _Candidate(
                    algorithm, backend, factor * tolerance, factor,
                    {"rtol": factor * tolerance, "atol": factor * tolerance, "backend": backend},
                    None if algorithm is own else algorithm, "rtol", finer,
                )  # fmt: skip


def _search(
    run: _Run,
    odes: dict[str, NeuralODE],
    own: Row,
    reference: Row,
    rows: list[Row],
    max_steps: int,
    relative: bool,
    threshold: float,
) -> list[Row]:
    """The own solver at 1, 2, 4, ... steps, until it gives the reference's metric twice (beyond the training's)."""
    found: list[Row] = []
    algorithm = _first(odes).algorithm
    known = {round(1 / row.resolution): row for row in [own, *rows] if row.solver == own.solver}
    steps, agreed = 1, 0
    while steps <= max_steps:
        row = known.get(steps)
        if row is None:
            factor = steps * own.resolution
            choice = _stepped(None, factor)
            backend = _first(odes).options.get("backend", "torch")
            row = run(_Candidate(algorithm, backend, 1 / steps, factor, {}, choice, "step", factor > 1))
            found.append(row)
        agreed = agreed + 1 if gap_between(reference.metric, row.metric, relative) <= threshold else 0
        if agreed >= 2 and steps * own.resolution > 1 + 1e-9:
            break
        steps *= 2
    return found


def _loosen(
    run: _Run,
    odes: dict[str, NeuralODE],
    own: Row,
    reference: Row,
    rows: list[Row],
    relative: bool,
    threshold: float,
) -> list[Row]:
    """The own solver at ten times the tolerance and so on, until the metric leaves the reference's."""
    found: list[Row] = []
    mine = [row for row in [own, *rows] if row.solver == own.solver]
    loosest = max(mine, key=lambda row: row.resolution)
    row, tolerance = loosest, loosest.resolution
    while gap_between(reference.metric, row.metric, relative) <= threshold and tolerance < 0.99:
        tolerance = min(10 * tolerance, 1.0)
        options = {"rtol": tolerance, "atol": tolerance}
        backend = _first(odes).options.get("backend", "torch")
        factor = tolerance / own.resolution
        row = run(_Candidate(_first(odes).algorithm, backend, tolerance, factor, options, None, "rtol"))
        found.append(row)
    return found
