"""What accuracy costs at test time: a trained model's metric against the evaluations it is given."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pynode.algorithms import Algorithm, FixedStep, as_algorithm
from pynode.errors import InputError, explain
from pynode.nn.neural_ode import NeuralODE
from pynode.training.measure import Batch, as_batches, measure
from pynode.training.metrics import Metric
from pynode.training.orders import at_step
from pynode.training.solving_with import odes_of, span_of
from pynode.training.strict_json import strict_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclasses.dataclass(frozen=True)
class Point:
    """The metric at one price. ``resolution``: tolerance, or step as a fraction of the span; ``nfe``: evaluations of
    the fields for a batch; ``failure``: why there is no metric."""

    solver: str
    resolution: float
    nfe: float
    metric: float
    failure: str = ""


@dataclasses.dataclass
class CostCurve:
    """Outcome of :func:`accuracy_against_evaluations`: ``points`` of each solver, from coarse to fine.

    Examples
    --------
    >>> model = pynode.nn.NeuralODE(lambda t, y: -y, algorithm=pynode.Euler(steps=1))
    >>> data = [(torch.ones(4, 1), torch.full((4, 1), math.exp(-1)))]
    >>> curve = pynode.training.accuracy_against_evaluations(model, data, "mse", steps=[1, 4, 16])
    >>> [point.nfe for point in curve.points], curve.points[0].metric > curve.points[-1].metric
    ([1.0, 4.0, 16.0], True)
    """

    points: list[Point]

    def __str__(self) -> str:
        lines = [f"{'solver':<12} {'resolution':>10} {'NFE':>8} {'metric':>10}"]
        for p in self.points:
            lines.append(
                f"{p.solver:<12} {p.resolution:>10.3g} {p.nfe:>8.1f} {p.metric:>10.4g} {p.failure[:60]}".rstrip()
            )
        return "\n".join(lines)

    def to_json(self, path: str | Path) -> None:
        """Write the points; numbers that JSON does not have are null."""
        content = [strict_json(dataclasses.asdict(point)) for point in self.points]
        Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the metric over the evaluations, a line a solver.

        Parameters
        ----------
        ax : matplotlib Axes, optional
        """
        from pynode.plotting.canvas import CLASS_COLORS, axes_or_new

        ax = axes_or_new(ax)
        for color, solver in zip(CLASS_COLORS, dict.fromkeys(p.solver for p in self.points), strict=False):
            own = [p for p in self.points if p.solver == solver and not math.isnan(p.metric)]
            ax.plot([p.nfe for p in own], [p.metric for p in own], color=color, marker="o", markersize=4, label=solver)
        ax.set_xscale("log")
        ax.set_xlabel("evaluations of f a batch")
        ax.set_ylabel("metric")
        ax.legend(fontsize="x-small", frameon=False)
        return ax


def accuracy_against_evaluations(
    model: torch.nn.Module,
    data: Iterable[Batch],
    metric: Metric | str = "accuracy",
    *,
    solvers: Sequence[Algorithm | str] | None = None,
    tolerances: Sequence[float] = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5),
    steps: Sequence[int] = (1, 2, 4, 8, 16, 32),
    backend: str | None = None,
) -> CostCurve:
    """The metric of a trained model solved to each tolerance (adaptive solvers) and in each number of equal steps
    (fixed ones), and the evaluations that took.

    Parameters
    ----------
    model, data, metric
        As in :func:`pynode.training.validity`.
    solvers : sequence of Algorithm or str, optional
        The model's own by default.
    tolerances : sequence of float
        Both ``rtol`` and ``atol``.
    steps : sequence of int
    backend : str, optional
        The model's own by default.

    Returns
    -------
    CostCurve

    Raises
    ------
    InputError
        If there is no NeuralODE or no data.

    Examples
    --------
    >>> model = pynode.nn.NeuralODE(lambda t, y: -y)
    >>> data = [(torch.ones(4, 1), torch.full((4, 1), math.exp(-1)))]
    >>> solvers = {"solvers": ["dopri5", "rk4"], "tolerances": [1e-3], "steps": [2]}
    >>> curve = pynode.training.accuracy_against_evaluations(model, data, "mse", **solvers)
    >>> [(point.solver, point.nfe) for point in curve.points if point.solver.startswith("RK4")]
    [('RK4', 8.0)]
    """
    batches = as_batches(data)
    odes = list(odes_of(model).values())
    name = odes[0].options.get("backend", "torch") if backend is None else backend
    _check("tolerances", tolerances)
    _check("steps", steps)
    chosen = [odes[0].algorithm] if solvers is None else [as_algorithm(solver, name) for solver in solvers]
    points = []
    for algorithm in chosen:
        if isinstance(algorithm, FixedStep) and not algorithm.adaptive:
            for count in sorted(steps):

                def stepped(ode: NeuralODE, own: FixedStep = algorithm, count: int = count) -> Algorithm:
                    return at_step(own, span_of(ode) / count)

                found = measure(model, batches, metric, stepped, backend=name)
                points.append(Point(algorithm.name, 1 / count, found.nfe, found.value, found.failure))
        else:
            for tolerance in sorted(tolerances, reverse=True):
                found = measure(model, batches, metric, algorithm, rtol=tolerance, atol=tolerance, backend=name)
                points.append(Point(algorithm.name, tolerance, found.nfe, found.value, found.failure))
    return CostCurve(points)


def _check(name: str, values: Sequence[float]) -> None:
    if not values or not all(value > 0 for value in values):
        raise InputError(explain(f"{name} = {values!r}", "positive numbers", "give some"))
