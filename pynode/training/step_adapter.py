"""Steps just fine enough for the model to stay a flow (Ott, Katiyar, Hennig and Tiemann 2021)."""

from __future__ import annotations

import math
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pynode.algorithms import DP5, Algorithm, FixedStep
from pynode.errors import InputError, explain
from pynode.nn.neural_ode import NeuralODE
from pynode.solution import Solution
from pynode.strict import warn
from pynode.training.decision import BOUND, GROW, KEEP, SHRINK, START, UNSURE, Decision, decisions_to_json
from pynode.training.decision import plot_decisions as _plot
from pynode.training.defect import Corrected
from pynode.training.initial_step import initial_step
from pynode.training.look import Look, Unpacked, compare, look
from pynode.training.measure import Batch
from pynode.training.metrics import Metric, as_metric
from pynode.training.orders import at_step, check_fixed, finer_algorithm, finer_step, order_of
from pynode.training.solving_with import Choice, evaluating, odes_of, solving_with, span_of, step_of, steps_in

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class StepAdapter:
    """Chooses the step size (or the tolerance) of a model while it is trained: as coarse as a more exact solver allows
    without changing the metric.

    Every ``interval`` iterations the batch is solved again by a test solver, without gradients. If that changes the
    metric by more than ``threshold`` the step is halved, else one larger by 1.1 is tried and kept if it stays within
    the threshold (Ott et al. 2021). Three lines in any loop::

        from pynode.training import StepAdapter
        adapter = StepAdapter(model, "accuracy")
        for x, target in batches:
            loss(model(x), target).backward()
            adapter.step(x, target)  # between backward() and step()
            optimiser.step()

    or, without targets, as a hook of a NeuralODE: ``ode.register_solve_hook(StepAdapter(ode, None))``.

    With fixed steps the test solver is one of higher order (Euler: midpoint; orders 2 and 3: RK4; RK4: itself) with
    the step ``h_test = min(h, (h^p / 50)^(1 / q))``, so that ``h_test^q <= h^p / 50``. With an adaptive algorithm of
    order below 5 it is DP5 at a fifth of the tolerance, else the algorithm itself at a tenth, a tenth again as long as
    it takes no more evaluations than the training's; ``rtol`` and ``atol`` are equal, and a looser tolerance is kept
    only if it changes the number of evaluations, compared with those of the last five iterations.

    Parameters
    ----------
    model : torch.nn.Module
        With NeuralODEs, all of fixed steps or all adaptive. Their ``algorithm`` (or ``rtol``, ``atol``) is what the
        adapter sets; all get the same fraction of their spans.
    metric : callable, str or None
        ``metric(output, target)`` as in :func:`pynode.training.validity`. None: no targets; the gap is the distance of
        the two solvers' outputs in units of the outputs' deviation over the batch.
    interval : int
    threshold : float
    relative : bool, optional
        Gaps relative to the metric, for losses; by default for ``"mse"``. Beyond the paper.
    shrink, grow : float
    max_steps : int
        Bound of the number of steps over the span: where halving would pass it, ``1 / h`` becomes the mean of itself
        and the bound.
    factor : float
        How many times smaller the test solver's error is to be: 50.
    test : "solver" or "defect"
        ``"defect"``: no second solve; the metric of the end state with the error taken off that the dense output's
        defect estimates (:func:`pynode.training.defect`), three evaluations a step. Beyond the paper.
    batches : int
        Look at that many last batches instead of one. Beyond the paper.
    confidence : float, optional
        In (0, 1), with a metric of one number a sample or ``batches`` of at least 2: shrink only if the whole
        confidence interval of the mean gap lies above the threshold, grow only if it lies below: a small threshold
        becomes meaningful. By default the gap is taken as it is. Beyond the paper.
    start : "hairer", "own" or float
        The first step: :func:`pynode.training.initial_step` at the first batch, the algorithm's own, or a fraction of
        the span. For adaptive algorithms ``"hairer"`` means the tolerance 1e-6.
    smallest, largest : float, optional
        Bounds of the tolerance: 1e-10 (1e-6 for float32) and 0.1.

    Attributes
    ----------
    log : list of Decision
    iteration : int
    evaluations : float
        Evaluations of the field that the adapter has cost, over all batches it looked at.

    Raises
    ------
    InputError
        For an argument that cannot be used, or a model without a NeuralODE.

    Examples
    --------
    >>> model = pynode.nn.NeuralODE(lambda t, y: -5 * y, algorithm=pynode.Euler(dt=0.5))
    >>> adapter = pynode.training.StepAdapter(model, "mse", interval=1, start=0.5)
    >>> x, target = torch.ones(4, 1), torch.full((4, 1), math.exp(-5))
    >>> for _ in range(3):
    ...     decision = adapter.step(x, target)
    >>> [decision.action for decision in adapter.log]
    ['start', 'shrink', 'shrink', 'shrink']
    """

    def __init__(
        self,
        model: torch.nn.Module,
        metric: Metric | str | None = "accuracy",
        *,
        interval: int = 50,
        threshold: float = 0.1,
        relative: bool | None = None,
        shrink: float = 0.5,
        grow: float = 1.1,
        max_steps: int = 500,
        factor: float = 50.0,
        test: str = "solver",
        batches: int = 1,
        confidence: float | None = None,
        start: str | float = "hairer",
        smallest: float | None = None,
        largest: float = 0.1,
    ) -> None:
        self._odes = list(odes_of(model).values())
        adaptive = {ode.algorithm.adaptive for ode in self._odes}
        if len(adaptive) > 1:
            raise InputError(explain("the model mixes fixed and adaptive steps", "one kind", "adapt one of them"))
        _check(interval=interval >= 1, threshold=threshold > 0, shrink=0 < shrink < 1, grow=grow > 1)
        _check(max_steps=max_steps >= 1, factor=factor > 1, batches=batches >= 1, test=test in ("solver", "defect"))
        _check(confidence=confidence is None or (0 < confidence < 1 and metric is not None), largest=largest > 0)
        _check(start=start in ("hairer", "own") or (isinstance(start, float) and start > 0))
        self.fixed = not adaptive.pop()
        self.model = model
        self.metric = None if metric is None else as_metric(metric)
        self.relative = metric == "mse" if relative is None else relative
        self.interval, self.threshold, self.shrink, self.grow = interval, threshold, shrink, grow
        self.max_steps, self.factor, self.test, self.confidence = max_steps, factor, test, confidence
        single = all(p.dtype != torch.float64 for p in model.parameters())
        self.smallest = (1e-6 if single else 1e-10) if smallest is None else smallest
        self.largest = largest
        self.iteration, self.evaluations = 0, 0.0
        self.log: list[Decision] = []
        self._seen: deque[Batch] = deque(maxlen=batches)
        self._recent: deque[float] = deque(maxlen=5)
        self._nfe = 0
        self._start: str | float | None = start
        self._as_hook = False
        self._handles = [ode.register_solve_hook(self._count) for ode in self._odes]

    @property
    def resolution(self) -> float:
        """The step as a fraction of the time span, or the tolerance, in use."""
        if self.fixed:
            return max(step_of(ode) for ode in self._odes)
        return float(max(ode.rtol for ode in self._odes))

    def step(self, x: Any, target: Any = None) -> Decision | None:
        """Count an iteration; every ``interval`` of them look at the step. Call it between ``backward()`` and the
        optimiser's ``step()``.

        Returns
        -------
        Decision or None
        """
        self._recent.append(self._nfe)
        self._nfe = 0
        return self._iterate((x, target))

    def __call__(self, ode: NeuralODE, inputs: tuple[Any, ...], solution: Solution) -> None:
        """As a solve hook of a NeuralODE: iterations are the solves under training; no targets.

        Raises
        ------
        InputError
            If the adapter was made with a metric, or for another model.
        """
        if self.metric is not None or self.model is not ode:
            raise InputError(
                explain(
                    "this StepAdapter needs targets or belongs to another model", "StepAdapter(ode, None)", "use it"
                )
            )
        self._as_hook = True
        if ode.training and torch.is_grad_enabled():
            self._recent.append(solution.stats.forward.nfe)
            self._iterate((inputs, None))

    def adapt(self) -> Decision:
        """Look now, at the batches seen last.

        Raises
        ------
        InputError
            If there was none yet.
        """
        if not self._seen:
            raise InputError(explain("no batch was seen yet", "at least one", "call step(x, target)"))
        decision = self._decide()
        self.log.append(decision)
        self.evaluations += decision.extra * len(self._seen)
        return decision

    def detach(self) -> None:
        """Stop counting evaluations: the model is left with the step or tolerance it has."""
        for handle in self._handles:
            handle.remove()

    def state_dict(self) -> dict[str, float]:
        """For a checkpoint."""
        return {"iteration": self.iteration, "resolution": self.resolution}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.iteration, self._start = int(state["iteration"]), None
        self._set(state["resolution"])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the step or tolerance over the iterations."""
        return _plot(self.log, self.fixed, ax)

    def to_json(self, path: str | Path) -> None:
        """Write the log."""
        decisions_to_json(self.log, path)

    def _iterate(self, batch: Batch) -> Decision | None:
        self._seen.append(batch)
        if self._start is not None:
            self._begin()
        self.iteration += 1
        return self.adapt() if self.iteration % self.interval == 0 else None

    def _begin(self) -> None:
        start, before = self._start, self.resolution
        self._start = None
        if start == "own":
            return
        if isinstance(start, float):
            first = start
        elif self.fixed:
            first = max(self._guess(), 1.0 / self.max_steps)
        else:
            first = max(1e-6, self.smallest)
        self._set(first)
        self.log.append(Decision(self.iteration, before, self.resolution, START))

    def _guess(self) -> float:
        inputs: dict[int, tuple[Any, ...]] = {}

        def keep(ode: NeuralODE, given: tuple[Any, ...], solution: Solution) -> None:
            inputs.setdefault(id(ode), given)

        with evaluating(self.model), solving_with(self.model, hook=keep):
            self._call(self._seen[-1][0])
            return min(initial_step(ode, inputs[id(ode)]) for ode in self._odes if id(ode) in inputs)

    def _call(self, x: Any) -> Any:
        return self.model(*x) if self._as_hook else self.model(x)

    def _count(self, ode: NeuralODE, inputs: tuple[Any, ...], solution: Solution) -> None:
        if torch.is_grad_enabled():
            self._nfe += solution.stats.forward.nfe

    def _set(self, resolution: float) -> None:
        for ode in self._odes:
            if self.fixed:
                ode.algorithm = at_step(check_fixed(ode.algorithm), resolution * span_of(ode))
            else:
                ode.rtol = ode.atol = resolution

    def _decide(self) -> Decision:
        before = self.resolution
        train = self._look(*self._own(before))
        test, name, spent = self._test(before, train)
        gap, margin = self._compare(train, test)
        extra = train.nfe + spent
        action, after = KEEP, before
        if gap - margin > self.threshold or math.isinf(gap):
            after = self._finer(before)
            action = SHRINK if after < before else BOUND
        elif gap + margin > self.threshold:
            action = UNSURE
        elif self._coarser(before) > before:
            candidate = self._coarser(before)
            grown = self._look(*self._own(candidate))
            extra += grown.nfe
            distance, width = self._compare(grown, test)
            # A looser tolerance that leaves the steps as they are says nothing about the model.
            moved = self.fixed or any(nfe != grown.nfe for nfe in self._recent)
            if distance + width <= self.threshold and moved:
                action, after = GROW, candidate
        if after != before:
            self._set(after)
        values = (math.nan, math.nan) if self.metric is None else (train.value, test.value)
        return Decision(self.iteration, before, after, action, *values, gap, margin, name, train.nfe, extra)

    def _finer(self, resolution: float) -> float:
        if not self.fixed:
            return max(resolution * self.shrink, self.smallest)
        if 1.0 / (resolution * self.shrink) <= self.max_steps:
            return resolution * self.shrink
        if steps_in(resolution) < self.max_steps:
            return 2 * resolution / (self.max_steps * resolution + 1)
        warn(
            f"{self.max_steps} steps do not suffice for a flow: the step stays at 1/{1 / resolution:.4g}; raise "
            "max_steps, regularise the field, or take a method of higher order"
        )
        return resolution

    def _coarser(self, resolution: float) -> float:
        return min(resolution * self.grow, 1.0 if self.fixed else self.largest)

    def _own(self, resolution: float) -> tuple[Choice | None, dict[str, Any]]:
        """The training's solver at another step or tolerance."""
        if self.fixed:
            return (lambda ode: at_step(check_fixed(ode.algorithm), resolution * span_of(ode))), {}
        return None, {"rtol": resolution, "atol": resolution}

    def _test(self, resolution: float, train: Look) -> tuple[Look, str, float]:
        """What to compare with, how it was obtained, and the evaluations that took."""
        choice, options = self._own(resolution)
        if self.test == "defect":
            hook = Corrected()
            found = self._look(choice, {**options, "hook": hook, "saveat": hook.saveat})
            return found, "defect of the dense output", found.nfe
        if self.fixed:

            def more_exact(ode: NeuralODE) -> Algorithm:
                own = check_fixed(ode.algorithm)
                other = finer_algorithm(own)
                p, q = order_of(own) or 1, order_of(other) or 1
                return at_step(other, finer_step(resolution, p, q, self.factor) * span_of(ode))

            found = self._look(more_exact, {})
            return found, self._named(more_exact(self._odes[0])), found.nfe
        own = self._odes[0].algorithm
        low = (order_of(own) or 5) < 5
        tolerance, spent = resolution / (5 if low else 10), 0.0
        while True:
            found = self._look(DP5() if low else None, {"rtol": tolerance, "atol": tolerance})
            spent += found.nfe
            if found.nfe > train.nfe or tolerance / 10 < 0.1 * self.smallest:
                break
            tolerance /= 10
        return found, f"{'DP5' if low else own.name} at {tolerance:.2g}", spent

    def _named(self, algorithm: Algorithm) -> str:
        assert isinstance(algorithm, FixedStep)
        assert algorithm.dt is not None
        return f"{algorithm.name} at step {algorithm.dt / span_of(self._odes[0]):.4g}"

    def _look(self, choice: Choice | None, options: dict[str, Any]) -> Look:
        model: Any = Unpacked(self.model) if self._as_hook else self.model
        return look(model, self._seen, self.metric, choice, options)

    def _compare(self, train: Look, test: Look) -> tuple[float, float]:
        return compare(train, test, self.relative, self.confidence)


def _check(**fine: bool) -> None:
    for name, holds in fine.items():
        if not holds:
            raise InputError(
                explain(f"StepAdapter({name}=...) cannot be used", "a value as its documentation says", f"see {name}")
            )
