"""What a training costs while it goes on: evaluations of the fields over the epochs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pynode.errors import InputError, explain
from pynode.nn.neural_ode import NeuralODE
from pynode.solution import Solution, Stats
from pynode.training.solving_with import odes_of
from pynode.training.strict_json import strict_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class History:
    """Evaluations over epochs: fields grow stiffer as they are trained, and a solve dearer.

    ::

        history = History(model)
        for epoch in range(epochs):
            ...                                    # train and evaluate
            history.epoch(loss=mean_loss, accuracy=test_accuracy)
        history.plot()

    Parameters
    ----------
    model : torch.nn.Module
        Every NeuralODE in it is watched: solves with gradients enabled as training, others as evaluation. Solves
        that :func:`pynode.training.measure`, ``validity`` and ``StepAdapter`` make are not seen.

    Attributes
    ----------
    records : list of dict of str to float
        One an epoch: ``epoch``; ``forward``, ``backward``: mean evaluations of the field in a training solve, and
        evaluations and products with its Jacobian in its gradient; ``steps``, ``rejected``: of a training solve;
        ``evaluation``: mean evaluations of other solves; ``solves``, ``evaluations``: number of training solves, and
        their evaluations since the beginning; and what :meth:`epoch` was given. NaN where there was no such solve.

    Raises
    ------
    InputError
        If the model has no NeuralODE.

    Examples
    --------
    >>> model = pynode.nn.NeuralODE(lambda t, y: -y)
    >>> history = pynode.training.History(model)
    >>> model(torch.ones(3, 2, requires_grad=True)).sum().backward()
    >>> record = history.epoch(loss=1.0)
    >>> record["solves"], record["forward"] > 0, record["loss"]
    (1.0, True, 1.0)
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.records: list[dict[str, float]] = []
        self._training: list[Stats] = []
        self._evaluation: list[Stats] = []
        self._total = 0
        self._handles = [ode.register_solve_hook(self) for ode in odes_of(model).values()]

    def __call__(self, ode: NeuralODE, inputs: tuple[Any, ...], solution: Solution) -> None:
        """See :meth:`pynode.nn.NeuralODE.register_solve_hook`."""
        # The counts only, which the backward pass goes on to fill: the solution would keep its tape alive.
        (self._training if torch.is_grad_enabled() else self._evaluation).append(solution.stats)

    def epoch(self, **values: float) -> dict[str, float]:
        """End an epoch.

        Parameters
        ----------
        **values
            What else is to be recorded: loss, accuracy, the adapter's ``resolution``.

        Returns
        -------
        dict
            The record.

        Raises
        ------
        InputError
            For a name that is one of its own.
        """
        training = self._training
        self._total += sum(stats.forward.nfe for stats in training)
        record = {
            "epoch": float(len(self.records) + 1),
            "forward": _mean([stats.forward.nfe for stats in training]),
            "backward": _mean([stats.backward.nfe + stats.backward.nvjp for stats in training]),
            "steps": _mean([stats.forward.accepted for stats in training]),
            "rejected": _mean([stats.forward.rejected for stats in training]),
            "evaluation": _mean([stats.forward.nfe for stats in self._evaluation]),
            "solves": float(len(training)),
            "evaluations": float(self._total),
        }
        taken = record.keys() & values.keys()
        if taken:
            raise InputError(explain(f"epoch({', '.join(taken)}=...)", f"names beside {[*record]}", "rename it"))
        record.update({name: float(value) for name, value in values.items()})
        self.records.append(record)
        self._training, self._evaluation = [], []
        return record

    def detach(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()

    def table(self) -> str:
        """Everything in characters, a line an epoch."""
        names = list(dict.fromkeys(name for record in self.records for name in record))
        lines = [tuple(names)]
        for record in self.records:
            values = [record.get(name, math.nan) for name in names]
            lines.append(tuple("-" if math.isnan(x) else f"{x:.6g}" for x in values))
        widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
        return "\n".join("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in lines)

    def __str__(self) -> str:
        return self.table()

    def to_json(self, path: str | Path) -> None:
        """Write the records; numbers that JSON does not have are null."""
        Path(path).write_text(json.dumps(strict_json(self.records), indent=1) + "\n", encoding="utf-8")

    def plot(self, *values: str, ax: Axes | None = None) -> Axes:
        """Draw evaluations a solve over the epochs, and recorded values on an axis of their own.

        Parameters
        ----------
        *values : str
            Names given to :meth:`epoch`.
        ax : matplotlib Axes, optional

        Returns
        -------
        matplotlib Axes

        Raises
        ------
        InputError
            Before the first epoch has ended, or for a name that was not recorded.
        """
        from pynode.plotting.canvas import CLASS_COLORS, axes_or_new

        if not self.records:
            raise InputError(explain("no epoch has ended", "at least one", "call history.epoch()"))
        unknown = [name for name in values if name not in self.records[-1]]
        if unknown:
            raise InputError(explain(f"{unknown} was not recorded", f"some of {[*self.records[-1]]}", "check the name"))
        ax = axes_or_new(ax)
        labels = {"forward": "training, forward", "backward": "training, backward", "evaluation": "evaluation"}
        epochs = [record["epoch"] for record in self.records]
        for color, (name, label) in zip(CLASS_COLORS, labels.items(), strict=False):
            column = [record[name] for record in self.records]
            if not all(math.isnan(x) for x in column):
                ax.plot(epochs, column, color=color, marker=".", linewidth=1.2, label=label)
        ax.set_ylim(bottom=0)
        ax.set_xlabel("epoch")
        ax.set_ylabel("evaluations of f a solve")
        lines = list(ax.get_lines())
        if values:
            beside = ax.twinx()
            for color, name in zip(CLASS_COLORS[3:], values, strict=False):
                column = [record.get(name, math.nan) for record in self.records]
                lines += beside.plot(epochs, column, color=color, linestyle="--", linewidth=1.2, label=name)
            beside.set_ylabel(", ".join(values))
        ax.legend(lines, [str(line.get_label()) for line in lines], fontsize="x-small", frameon=False)
        return ax


def _mean(values: list[int]) -> float:
    return sum(values) / len(values) if values else math.nan
