"""What a StepAdapter decided, and why."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pynode.errors import InputError, explain
from pynode.training.strict_json import strict_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

START, SHRINK, GROW, KEEP, UNSURE, BOUND = "start", "shrink", "grow", "keep", "unsure", "bound"


@dataclasses.dataclass(frozen=True)
class Decision:
    """One look at the step size or tolerance.

    Attributes
    ----------
    iteration : int
    before, after : float
        The step as a fraction of the time span, or the tolerance.
    action : str
        ``start`` (the first step), ``shrink``, ``grow``, ``keep`` (a coarser one would change the metric, or nothing),
        ``unsure`` (the threshold lies within the confidence interval), ``bound`` (it should shrink and must not).
    train, test : float
        The metric with the training's solver and with the test solver; NaN where the gap is of outputs.
    gap, margin : float
        Their difference (relative where asked for), and half the width of its confidence interval (0 without one).
    tested_with : str
    nfe : float
        Evaluations of the training's solver for a batch.
    extra : float
        Evaluations that this decision cost.

    Examples
    --------
    >>> model = pynode.nn.NeuralODE(lambda t, y: -y, algorithm=pynode.Euler(dt=0.5))
    >>> adapter = pynode.training.StepAdapter(model, "mse", interval=1, start=0.5)
    >>> decision = adapter.step(torch.ones(4, 1), torch.full((4, 1), math.exp(-1)))
    >>> decision.action, decision.before, decision.after
    ('shrink', 0.5, 0.25)
    """

    iteration: int
    before: float
    after: float
    action: str
    train: float = math.nan
    test: float = math.nan
    gap: float = math.nan
    margin: float = 0.0
    tested_with: str = ""
    nfe: float = math.nan
    extra: float = 0.0

    def __str__(self) -> str:
        change = f"{self.before:.4g} -> {self.after:.4g}" if self.after != self.before else f"{self.after:.4g}"
        text = f"iteration {self.iteration}: {self.action} {change}"
        if not math.isnan(self.gap):
            values = "" if math.isnan(self.train) else f" ({self.train:.4g} against {self.test:.4g})"
            text += f"; gap {self.gap:.3g}{values}" + (f" +- {self.margin:.2g}" if self.margin else "")
            text += f", {self.tested_with}; {self.nfe:.0f} evaluations a batch, {self.extra:.0f} for this"
        return text


def plot_decisions(log: Sequence[Decision], fixed: bool, ax: Axes | None = None) -> Axes:
    """Draw the step or tolerance over the iterations, every look as a mark.

    Raises
    ------
    InputError
        If there was none yet.
    """
    from pynode.plotting.canvas import axes_or_new

    if not log:
        raise InputError(explain("no decision was taken yet", "at least one", "train longer than the interval"))
    ax = axes_or_new(ax)
    iterations, after = [d.iteration for d in log], [d.after for d in log]
    ax.plot(iterations, after, drawstyle="steps-post", color="#4477aa", linewidth=1.2)
    styles = {SHRINK: ("v", "#ee6677"), GROW: ("^", "#228833"), UNSURE: ("s", "#ccbb44"), BOUND: ("X", "#000000")}
    for action, (marker, color) in styles.items():
        at = [(d.iteration, d.after) for d in log if d.action == action]
        if at:
            xs, ys = zip(*at, strict=True)
            ax.plot(xs, ys, marker=marker, color=color, linestyle="", markersize=5, label=action)
    ax.set_yscale("log", base=2 if fixed else 10)
    ax.set_xlabel("iteration")
    ax.set_ylabel("step (fraction of the span)" if fixed else "tolerance")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize="x-small", frameon=False)
    return ax


def decisions_to_json(log: Sequence[Decision], path: str | Path) -> None:
    """Write a list of decisions; numbers that JSON does not have are null."""
    content: list[dict[str, Any]] = [strict_json(dataclasses.asdict(d)) for d in log]
    Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
