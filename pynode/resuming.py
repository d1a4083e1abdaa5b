"""Going on from the end of a solve: ``sol.resume(t_more)``."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pynode.errors import InputError, explain
from pynode.events import Resumed, Watch
from pynode.problem import check_times
from pynode.saveat import as_saveat
from pynode.solution import ReturnCode, Solution


def resumable(solution: Solution, solve: Callable[..., Solution], options: dict[str, Any]) -> Solution:
    """``solution``, which ``solve(y0=..., t=..., **options)`` gave, with a :meth:`Solution.resume`."""
    solution._continue = functools.partial(_resumed, solve, options)
    return solution


def _resumed(solve: Callable[..., Solution], options: dict[str, Any], solution: Solution, t_more: Any) -> Solution:
    if not solution.retcode.successful and solution.retcode is not ReturnCode.MaxIters:
        raise InputError(
            explain(
                f"resume() on a solve that ended with {solution.retcode.name}",
                "one that reached its end, a terminal event or its limit of steps",
                "see sol.message for what to change, and solve again",
            )
        )
    if isinstance(t_more, int | float) or (isinstance(t_more, Tensor) and t_more.ndim == 0):
        t_more = t_more.reshape(1) if isinstance(t_more, Tensor) else [float(t_more)]
    more, times = check_times("t_more", t_more)
    start, reached = solution.span
    sign = 1.0 if _forward(solution, start, reached, times) else -1.0
    if (times[0] - reached) * sign <= 0 or (len(times) > 1 and (times[1] - times[0]) * sign < 0):
        raise InputError(
            explain(
                f"resume(t_more) goes from {times[0]:.9g} to {times[-1]:.9g}",
                f"times behind the end of the solve, {reached:.9g}, in its direction",
                "give later ones, or solve again from there in the other direction",
            )
        )
    end = solution.end()
    t = torch.cat([end.t.to(torch.float64).reshape(1), more.to(device=end.t.device, dtype=torch.float64)])
    save = dataclasses.replace(as_saveat(options["saveat"]), ts=None, t0=False, t1=False)
    size = options["dt0"] if end.size is None else end.size
    events = options["events"]
    if events is not None and not isinstance(events, Watch):
        events = Resumed(events.events if isinstance(events, Resumed) else events, end.fired)
    return solve(y0=end.y, t=t, **{**options, "saveat": save, "dt0": size, "events": events})


def _forward(solution: Solution, start: float, reached: float, times: list[float]) -> bool:
    """Whether the solve ran forward in time; one that took no step goes where it is sent."""
    return reached > start if reached != start else times[-1] > reached
