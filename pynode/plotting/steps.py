"""What a solve did along t: its steps, the rejected ones, and its evaluations of the field."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pynode.errors import InputError, explain
from pynode.nn.neural_ode import NeuralODE
from pynode.plotting.canvas import as_array, axes_or_new
from pynode.plotting.grid import inspecting
from pynode.solution import Solution
from pynode.solve import solve

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Step:
    """One attempted step from ``t`` to ``t + dt``; ``nfe`` evaluations of the field when it ended (when the next one
    began, its first evaluation included, where steps are fixed)."""

    t: float
    dt: float
    nfe: int
    accepted: bool


class StepLog(torch.nn.Module):
    """The attempted steps of a solve, in their order: a field that counts its calls, and an observer of the solve.

    ``log = StepLog(f)``, then ``solve(log, y0, t, observer=log)``; :func:`record_steps` does both.

    Parameters
    ----------
    f : callable
        The field.

    Attributes
    ----------
    nfe : int
        Calls of the field.
    """

    def __init__(self, f: Callable[..., Any]) -> None:
        super().__init__()
        self.f = f
        self.nfe = 0
        self._begun: list[tuple[float, float]] = []
        # Of fixed steps the solve says only that they begin: they have no entry, and were accepted.
        self._ended: dict[int, tuple[int, bool]] = {}
        self._before: list[int] = []

    def forward(self, t: Tensor, y: Any, *args: Any) -> Any:
        """The field's value."""
        self.nfe += 1
        return self.f(t, y, *args)

    def step(self, t: float, y: Tensor, dt: float) -> None:
        """A step is attempted (called by the solve)."""
        self._begun.append((t, dt))
        self._before.append(self.nfe)

    def accepted(self, t: float, y: Tensor, dt: float) -> None:
        """The attempted step was accepted."""
        self._ended[len(self._begun) - 1] = (self.nfe, True)

    def rejected(self, t: float, y: Tensor, dt: float) -> None:
        """The attempted step was rejected."""
        self._ended[len(self._begun) - 1] = (self.nfe, False)

    @property
    def steps(self) -> list[Step]:
        """What was attempted so far."""
        following = [*self._before[1:], self.nfe]
        ended = [self._ended.get(i, (following[i], True)) for i in range(len(self._begun))]
        return [Step(t, dt, nfe, accepted) for (t, dt), (nfe, accepted) in zip(self._begun, ended, strict=True)]


def record_steps(f: Any, y0: Any, t: Any = None, **options: Any) -> StepLog:
    """Solve once without gradients and return what was done.

    Parameters
    ----------
    f : callable or NeuralODE
        The field; a ``NeuralODE`` brings its times, algorithm, tolerances and options.
    y0 : tensor or tree of tensors
        Initial state; the input of a ``NeuralODE``.
    t : times, optional
        As in :func:`pynode.solve`; the ``NeuralODE``'s by default.
    **options
        Of :func:`pynode.solve`, before those of a ``NeuralODE``. The Julia backend cannot be observed.

    Returns
    -------
    StepLog
    """
    if isinstance(f, NeuralODE):
        log = StepLog(f.f)
        own = {"algorithm": f.algorithm, "rtol": f.rtol, "atol": f.atol, "running_cost": f.running_cost}
        options = own | f.options | options | {"observer": log}
        watched = NeuralODE(log, f.t, input=f.input, condition=f.condition, **options)
        with inspecting(f):
            watched.solve(y0, t)
        return log
    if t is None:
        raise InputError(explain("t is missing", "times", "pass t, or a NeuralODE, which has its own"))
    log = StepLog(f)
    with inspecting(f):
        solve(log, y0, t, **(options | {"observer": log}))
    return log


def plot_steps(source: StepLog | Solution, *, ax: Axes | None = None) -> Axes:
    """Draw the step sizes along t on a logarithmic scale, with a cross where a step was rejected.

    Parameters
    ----------
    source : StepLog or Solution
        From :func:`record_steps`, or a solution saved with ``SaveAt(steps=True)``, which knows accepted steps only.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
        With one line for the accepted steps (each size at the step's start, the last one also at its end), and one
        for the rejected steps if there are any.
    """
    rejected: list[Step] = []
    if isinstance(source, Solution):
        if not source.at_steps:
            raise InputError(
                explain(
                    "the solution holds its save times, not its steps",
                    "a solution with saveat=SaveAt(steps=True), or a StepLog",
                    "use record_steps(f, y0, t, ...)",
                )
            )
        ends = as_array(source.ts).tolist()
        accepted = [Step(a, b - a, 0, True) for a, b in itertools.pairwise(ends)]
    elif isinstance(source, StepLog):
        steps = source.steps
        accepted, rejected = [s for s in steps if s.accepted], [s for s in steps if not s.accepted]
    else:
        raise InputError(
            explain(f"source is a {type(source).__name__}", "a StepLog or a Solution", "use record_steps(f, y0, t)")
        )
    if not accepted:
        raise InputError(explain("no step was accepted", "at least one", "solve first"))
    ax = axes_or_new(ax)
    starts = [s.t for s in accepted] + [accepted[-1].t + accepted[-1].dt]
    sizes = [abs(s.dt) for s in accepted] + [abs(accepted[-1].dt)]
    ax.plot(starts, sizes, drawstyle="steps-post", color="#4477aa", linewidth=1.2, label=f"{len(accepted)} accepted")
    if rejected:
        style: dict[str, Any] = {"linestyle": "", "marker": "x", "color": "#ee6677"}
        at, lengths = [s.t for s in rejected], [abs(s.dt) for s in rejected]
        ax.plot(at, lengths, **style, label=f"{len(rejected)} rejected")
    ax.set_yscale("log")
    ax.set_xlabel("t")
    ax.set_ylabel("step size")
    ax.legend(frameon=False)
    return ax


def plot_evaluations(log: StepLog, *, ax: Axes | None = None) -> Axes:
    """Draw the evaluations of the field so far along t: steep where the solve works hard.

    Parameters
    ----------
    log : StepLog
        From :func:`record_steps`.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
        With one line: the evaluations after each attempted step, at the time that was reached then (its start for a
        rejected one).
    """
    if not isinstance(log, StepLog) or not log.steps:
        raise InputError(
            explain(f"log is {type(log).__name__}", "the StepLog of a solve", "use record_steps(f, y0, t, ...)")
        )
    steps = log.steps
    ax = axes_or_new(ax)
    reached = [s.t + s.dt if s.accepted else s.t for s in steps]
    ax.plot(reached, [s.nfe for s in steps], color="#4477aa", linewidth=1.2, marker=".", markersize=4)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("t")
    ax.set_ylabel("evaluations of f so far")
    return ax
