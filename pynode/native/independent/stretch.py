"""One stretch of rows: from their starts to their ends, or to the first event of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pynode.algorithms import Algorithm
from pynode.controllers import PIDController
from pynode.dependencies import Dependencies, without_communication
from pynode.events import Event
from pynode.native.independent.loop import integrate
from pynode.native.independent.problem import RowProblem
from pynode.native.independent.record import Floats, RowRecord
from pynode.native.independent.request import RowRequest, Start
from pynode.native.tableaus import TABLEAUS
from pynode.sensealg import DirectAdjoint, SensitivityAlgorithm
from pynode.solution import Stats
from pynode.transforms import moves


@dataclass(frozen=True)
class RowOptions:
    """What is the same for all stretches of a solve. ``stepping``: the options of the steps, as
    :class:`pynode.backends.Request` names them."""

    algorithm: Algorithm
    sensealg: SensitivityAlgorithm
    controller: PIDController
    params: Any
    allow_unused: bool
    tstops: Sequence[float]
    dense: bool | None
    events: tuple[Event, ...]
    stepping: dict[str, Any]
    stats: Stats = field(default_factory=Stats)


@dataclass(frozen=True)
class SaveTimes:
    """Save times (1 or B, M), NaN where a row has fewer, and the same connected to the user's tensor, (M,) or (B, M);
    ``own``: whether they were given apart from ``t``."""

    values: Floats
    tensor: Tensor
    own: bool


def solve_stretch(problem: RowProblem, options: RowOptions, save: SaveTimes, start: Start | None = None) -> RowRecord:
    """Solve the rows of ``problem``. ``start``: what is known of them where they go on after an event."""
    stats = options.stats
    differentiable = torch.is_grad_enabled() and problem.rows.batch > 0
    dependencies = None
    if differentiable and not isinstance(options.sensealg, DirectAdjoint):  # torch's tape finds that by itself
        with problem.autocast():
            dependencies = Dependencies(problem, stats.forward, options.params, options.allow_unused)
        inputs = (problem.y0, problem.t, save.tensor, *dependencies.arguments, *dependencies.parameters)
        differentiable = any(x.requires_grad for x in inputs)
    request = RowRequest(
        problem=problem,
        rows=problem,
        algorithm=options.algorithm,
        sensealg=options.sensealg,
        dependencies=dependencies,
        differentiable=differentiable,
        time_gradient=differentiable and (moves(problem.t) or moves(save.tensor)),
        controller=options.controller,
        tstops=options.tstops,
        jumps=frozenset(),
        times=[],
        times_tensor=save.tensor,
        own_times=save.own,
        save_steps=False,
        dense=options.dense,
        observer=None,
        compile=False,
        stats=stats,
        question=(),
        watch=None,
        save_values=save.values,
        keeps=differentiable or options.dense is not False,
        events=options.events,
        start=start,
        **options.stepping,
    )
    record = RowRecord(request, TABLEAUS[options.algorithm.name])
    with torch.no_grad(), problem.autocast(), without_communication(problem, dependencies is None):
        integrate(record, None if dependencies is None else dependencies.derivative)
    if differentiable:
        record.parameters.check_solved()
    return record
