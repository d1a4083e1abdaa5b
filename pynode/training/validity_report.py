"""What :func:`pynode.training.validity` found: a table for people, JSON for programs, a picture."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pynode.errors import InputError, explain
from pynode.training.gap import gap_between
from pynode.training.state_space import StateSpace
from pynode.training.strict_json import strict_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FLOW, DISCRETISATION = "flow", "discretisation"


@dataclass(frozen=True)
class Row:
    """The model evaluated with one solver.

    Attributes
    ----------
    solver : str
        Name of the algorithm, with its backend where that is not torch.
    resolution : float
        The fixed step as a fraction of the time span, or the relative tolerance.
    factor : float
        Steps (or tolerance) relative to the training's: 2 is twice as many steps (or twice the tolerance). NaN for
        the reference.
    nfe : float
        Evaluations of the field for a batch.
    metric, gap, margin : float
        The metric, how far it is from that of the solver of the training, and twice the standard error of that
        difference over samples (NaN where the metric gives one number a batch and there is one batch).
    exact : bool
        Whether it solves the differential equation at least as exactly as the solver of the training, so that the
        verdict rests on it.
    failure : str
        Why there is no metric.
    """

    solver: str
    resolution: float
    factor: float
    nfe: float
    metric: float
    gap: float
    margin: float
    exact: bool
    failure: str = ""
    kind: str = "solver"


@dataclass
class ValidityReport:
    """Outcome of :func:`pynode.training.validity`.

    Attributes
    ----------
    own : Row
        As the model is trained.
    reference : Row
        Solved to a tight tolerance: the flow of the field.
    rows : list of Row
        All others.
    states : dict of str to StateSpace
        Of each NeuralODE in the model, by its name in it.
    threshold : float
    relative : bool
        Whether gaps are relative to the metric.
    fixed : bool
        Whether the resolution is a step; else it is a tolerance.

    Examples
    --------
    >>> model = pynode.nn.NeuralODE(lambda t, y: -y, algorithm=pynode.RK4(steps=8))
    >>> data = [(torch.ones(4, 1), torch.full((4, 1), math.exp(-1)))]
    >>> report = pynode.training.validity(model, data, "mse", relative=False)
    >>> report.verdict, report.samples
    ('flow', 4)
    """

    own: Row
    reference: Row
    rows: list[Row]
    states: dict[str, StateSpace]
    threshold: float
    relative: bool
    fixed: bool
    samples: int
    notes: list[str] = field(default_factory=list)

    @property
    def decisive(self) -> Row:
        """The more exact solver whose metric is farthest from the training's."""
        exact = [row for row in [*self.rows, self.reference] if row.exact and not math.isnan(row.gap)]
        return max(exact, key=lambda row: row.gap)

    @property
    def verdict(self) -> str:
        """``"discretisation"`` if a solver that is more exact than the training's changes the metric by more than
        ``threshold``: the model is its solver. Else ``"flow"``."""
        return DISCRETISATION if self.decisive.gap > self.threshold else FLOW

    @property
    def critical_resolution(self) -> float:
        """The coarsest step (fraction of the span) or tolerance of the training's solver from which on, at every finer
        one that was tried, the metric is within ``threshold`` of the reference's: the estimate of the critical step of
        this field. NaN where even the finest is not."""
        found = math.nan
        for row in sorted(self._scan(), key=lambda row: row.resolution):
            if not gap_between(self.reference.metric, row.metric, self.relative) <= self.threshold:
                break
            found = row.resolution
        return found

    @property
    def critical_bracket(self) -> tuple[float, float]:
        """The critical resolution and the next coarser one that was tried, infinite if there is none."""
        low = self.critical_resolution
        above = [row.resolution for row in self._scan() if math.isnan(low) or row.resolution > low * (1 + 1e-9)]
        return low, min(above, default=math.inf)

    def _scan(self) -> list[Row]:
        return [row for row in [self.own, *self.rows] if row.solver == self.own.solver and not math.isnan(row.metric)]

    def summary(self) -> str:
        """The verdict and its reason, as a sentence or two."""
        row, unit = self.decisive, "step" if self.fixed else "tolerance"
        kind = "relative gap" if self.relative else "gap"
        why = f"{row.solver} ({_resolution(row, self.fixed)}) gives {row.metric:.4g} where {self.own.solver} "
        why += f"({_resolution(self.own, self.fixed)}) of the training gives {self.own.metric:.4g}"
        sign = ">" if self.verdict == DISCRETISATION else "<="
        text = f"{self.verdict}: {why}: {kind} {row.gap:.3g} {sign} {self.threshold:g}"
        low, high = self.critical_bracket
        if math.isnan(low):
            return f"{text}. Critical {unit}: below all that were tried (finest {high:.3g})"
        end = "no coarser one was tried" if math.isinf(high) else f"not at {_shown(high, self.fixed)}"
        return f"{text}. Critical {unit} of this field for {self.own.solver}: {_shown(low, self.fixed)} ({end})"

    def plain(self) -> str:
        """The table in characters, from coarse to fine."""
        head = ("solver", "step" if self.fixed else "rtol", "factor", "NFE", "metric", "gap", "+-", "")
        lines = [head]
        ordered = sorted(
            [*self.rows, self.own], key=lambda row: (row.solver != self.own.solver, row.solver, row.factor)
        )
        for row in [*ordered, self.reference]:
            mark = "as trained" if row is self.own else "reference" if row is self.reference else ""
            mark = mark or ("" if row.exact else "coarser")
            if row.exact and row.gap > self.threshold:
                mark = f"{mark} CHANGES".strip()
            numbers = (f"{row.metric:.4g}", f"{row.gap:.3g}", "-" if math.isnan(row.margin) else f"{row.margin:.1g}")
            factor = "" if math.isnan(row.factor) else f"{row.factor:g}"
            resolution = _shown(row.resolution, row.kind == "step")
            lines.append((row.solver, resolution, factor, f"{row.nfe:.0f}", *numbers, row.failure[:60] or mark))
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        return "\n".join("  ".join(x.ljust(w) for x, w in zip(line, widths, strict=True)).rstrip() for line in lines)

    def details(self) -> list[str]:
        """What stands below the table."""
        lines = []
        for name, state in self.states.items():
            turned, expected = 100 * state.crossings, 100 * state.reference_crossings
            lines.append(
                f"state space of {name or 'the NeuralODE'}: end states differ from the flow's by "
                f"{state.discrepancy:.3g} of the way it moves them; neighbours' separation turns round in "
                f"{turned:.2g} % of steps (in the flow at these times: {expected:.2g} %); {state.samples} samples"
            )
        return [*lines, *self.notes, self.summary()]

    def print(self) -> None:
        """Print everything."""
        print(self)

    def __str__(self) -> str:
        return "\n".join([self.plain(), *self.details()])

    def as_json(self) -> dict[str, Any]:
        """In plain types."""
        low, high = self.critical_bracket
        return {
            "verdict": self.verdict,
            "summary": self.summary(),
            "threshold": self.threshold,
            "relative": self.relative,
            "resolution": "step" if self.fixed else "tolerance",
            "critical_resolution": low,
            "critical_not_at": high,
            "samples": self.samples,
            "own": dataclasses.asdict(self.own),
            "reference": dataclasses.asdict(self.reference),
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "states": {name: dataclasses.asdict(state) for name, state in self.states.items()},
            "notes": self.notes,
        }

    def to_json(self, path: str | Path) -> None:
        """Write everything to a file; numbers that JSON does not have are null."""
        Path(path).write_text(json.dumps(strict_json(self.as_json()), indent=1) + "\n", encoding="utf-8")

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the metric over the step (or tolerance), a line a solver, the reference as a level.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Those of a new figure by default.

        Returns
        -------
        matplotlib Axes
        """
        from pynode.plotting.canvas import CLASS_COLORS, axes_or_new

        ax = axes_or_new(ax)
        drawn = [row for row in [self.own, *self.rows] if not math.isnan(row.metric)]
        drawn = [row for row in drawn if row.kind == self.own.kind]
        names = list(dict.fromkeys(row.solver for row in drawn))
        for color, name in zip(CLASS_COLORS, names, strict=False):
            own = sorted((row for row in drawn if row.solver == name), key=lambda row: row.resolution)
            at, values = [row.resolution for row in own], [row.metric for row in own]
            ax.plot(at, values, color=color, marker="o", markersize=4, linewidth=1.2, label=name)
        ax.axhline(self.reference.metric, color="black", linewidth=1, linestyle=":", label="flow (reference)")
        ax.plot(
            [self.own.resolution], [self.own.metric], color="black", marker="*", markersize=13, linestyle="",
            label="as trained",
        )  # fmt: skip
        if not self.relative:
            level = self.own.metric
            ax.axhspan(level - self.threshold, level + self.threshold, color="black", alpha=0.06)
        low = self.critical_resolution
        if not math.isnan(low):
            ax.axvline(low, color="#777777", linewidth=1, linestyle="--", label="critical")
        ax.set_xscale("log", base=2 if self.fixed else 10)
        ax.invert_xaxis()
        ax.set_xlabel("step (fraction of the span)" if self.fixed else "tolerance")
        ax.set_ylabel("metric")
        ax.set_title(self.verdict)
        ax.legend(fontsize="x-small", frameon=False)
        return ax

    def save_plot(self, path: str | Path) -> None:
        """Draw into a file.

        Raises
        ------
        InputError
            If it cannot be written.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.0, 4.0), layout="constrained")
        self.plot(figure.add_subplot())
        try:
            figure.savefig(path, dpi=150)
        except (OSError, ValueError) as error:
            what = f"cannot write {path} ({error})"
            raise InputError(explain(what, "a file in an existing folder", "end it in .png")) from error


def _shown(resolution: float, step: bool) -> str:
    return f"1/{1 / resolution:.4g}" if step and resolution < 1 else f"{resolution:.3g}"


def _resolution(row: Row, fixed: bool) -> str:
    return f"{row.kind} {_shown(row.resolution, row.kind == 'step')}"
