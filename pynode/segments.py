"""A solve over its events: from one to the next, each stretch an ordinary solve, joined by autograd.

A stretch ends at the first root of a condition. Its time ``t*`` and state ``y*`` are differentiable functions of all
that came before (:mod:`pynode.event_time`), the effect is applied to them by plain autograd, and the next stretch
starts from ``t*`` and ``effect(t*, y*)``, whose gradients it has like those of any initial time and state. So every
sensitivity algorithm works between events as it does without them.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pynode.errors import InputError, SolveError, UnsupportedError, explain
from pynode.event_time import moved
from pynode.events import Crossing, Event, Firing, Resumed, Watch, as_events, check_limit
from pynode.layout import Layout, leaves_of, rebuild
from pynode.native.root_finding import checked
from pynode.problem import check_times
from pynode.resuming import resumable
from pynode.saveat import SaveAt, as_saveat, save_points, saved
from pynode.solution import End, ReturnCode, Solution, Stats, failure_message
from pynode.transforms import numbers, transformed

#: Two firings of one root function that are closer than this many spacings of float64 times are without end.
ACCUMULATED = 100.0


def in_segments(solve: Callable[..., Solution], y0: Any, t: Any, options: dict[str, Any]) -> Solution:
    """What ``solve(y0=y0, t=t, **options)`` means, whose options hold events."""
    given: Any = options["events"]
    fired: tuple[Crossing, ...] = given.fired if isinstance(given, Resumed) else ()
    events = as_events(given.events if isinstance(given, Resumed) else given)
    options = {**options, "events": events}
    check_limit(options["max_events"])
    if transformed():
        raise UnsupportedError(
            explain(
                "events inside a torch.func transform or a dual_level",
                "a solve whose events are the same numbers for all samples and derivatives",
                "call backward() outside the transform, or solve sample by sample",
            )
        )
    run = _Run(solve, events, y0, t, options)
    run.go(fired)
    solution = resumable(run.solution(), solve, options)
    solution.ys = saved(run.save.fn, solution.ts, solution.ys, options["args"])
    if options["throw"] and not solution.retcode.successful:
        raise SolveError(solution.message, solution.retcode, solution.span[1], solution)
    return solution


class _Run:
    """The course of one solve over its events."""

    def __init__(
        self, solve: Callable[..., Solution], events: tuple[Event, ...], y0: Any, t: Any, options: dict[str, Any]
    ) -> None:
        self.solve, self.events, self.options = solve, events, options
        self.layout = Layout(y0)
        self.t, self.times = check_times("t", t)
        if len(self.times) < 2:
            raise InputError(explain(f"t has {len(self.times)} element(s)", "a start and an end time", "give both"))
        self.sign = math.copysign(1.0, self.times[-1] - self.times[0])
        self.save = as_saveat(options["saveat"])
        points = save_points(self.save, self.t, self.times)
        self.last = points.last  # the last save point is the end, wherever that is
        self.due, self.due_times = points.tensor, points.times
        self.stats = Stats()
        self.parts: list[Solution] = []
        self.starts: list[float] = []
        self.rows: list[tuple[Tensor, Any]] = []  # times (m,) and states with a leading dimension m
        self.firings: list[Firing] = []
        self.costs: list[Any] = []
        self.retcode, self.message = ReturnCode.Success, ""
        self.now = End(self.t[0].double(), y0, options["dt0"])
        if not points.own and not self.save.steps:
            self._save(1, y0)  # the start, as it is

    def go(self, fired: tuple[Crossing, ...]) -> None:
        while True:
            part, watch = self._stretch(fired)
            if not part.retcode.successful:
                return self._fail(part.retcode, part.message)
            if part.retcode is ReturnCode.Success:
                self.now = part.end()
                return None
            fired = tuple(watch.found)
            ends, before = self._fire(part, watch)
            reached, end = part.span[1], self.times[-1]
            self._check_accumulation(before)
            if ends or abs(end - reached) <= watch.tolerance:
                self._close(ends, reached, watch.tolerance)
                return None
            if not self.retcode.successful:
                return None
            if len(self.firings) >= self.options["max_events"]:
                detail = f"max_events = {self.options['max_events']} events"
                return self._fail(ReturnCode.TooManyEvents, failure_message(ReturnCode.TooManyEvents, reached, detail))
            if self._steps() >= self.options["max_steps"]:
                return self._fail(ReturnCode.MaxIters, self._too_many_steps())

    def _stretch(self, fired: tuple[Crossing, ...]) -> tuple[Solution, Watch]:
        """Solve on to the next event, and keep what is to be saved on the way."""
        watch = Watch(self.events, self.options["args"], fired, self.stats)
        start = self.now.t.item()
        t = [self.now.t[None], self._boundaries(start)]
        save = SaveAt(steps=True, dense=self.save.dense)
        if not self.save.steps:
            ts = self._due(start)
            save = SaveAt(ts=ts if len(ts) else self.t[-1:].double(), dense=self.save.dense)
        part = self.solve(
            y0=self.now.y,
            t=torch.cat(t),
            **{
                **self.options,
                "events": watch,
                "saveat": save,
                "throw": False,
                "max_steps": self.options["max_steps"] - self._steps(),
                "dt0": self.now.size,
            },
        )
        self.parts.append(part)
        self.starts.append(start)
        self.costs.append(part.running_cost)
        if self.save.steps:
            # The event's own row comes with its time.
            count = len(part.ts) - (part.retcode is ReturnCode.Terminated)
            self.rows.append((part.ts[:count], _rows(part.ys, slice(0, count))))
        else:
            count = min(len(part.ts) - (part.retcode is ReturnCode.Terminated), len(self.due_times))
            self._save(count, _rows(part.ys, slice(0, count)), stacked=True)
        return part, watch

    def _boundaries(self, start: float) -> Tensor:
        """The entries of ``t`` that are still ahead: its end, and what fixed steps may stand on."""
        ahead = [i for i, x in enumerate(self.times) if (x - start) * self.sign > 0]
        return self.t[ahead].double()

    def _due(self, start: float) -> Tensor:
        """The save times that are still ahead, none of which is before ``start`` by rounding."""
        late = [x if (x - start) * self.sign >= 0 else start for x in self.due_times]
        ts = self.due.double()
        return ts + (torch.tensor(late, dtype=torch.float64, device=ts.device) - ts.detach())

    def _save(self, count: int, ys: Any, stacked: bool = False) -> None:
        """Give the next ``count`` save times the states ``ys``."""
        if count:
            if not stacked:
                ys = rebuild(ys, iter([x[None].expand(count, *x.shape) for _, x in leaves_of(ys)]))
            self.rows.append((self.due[:count], ys))
            self.due, self.due_times = self.due[count:], self.due_times[count:]

    def _fire(self, part: Solution, watch: Watch) -> tuple[bool, int]:
        """Apply the effects of the events that ``watch`` found; whether the solve ends, and how many fired before."""
        assert watch.state is not None
        assert watch.rate is not None
        at, size, before = part.span[1], self.layout.size, len(self.firings)
        whole, state, terminal = watch.state, None, False
        for crossing in watch.found:
            event = self.events[crossing.event]
            flat = whole if state is None else self.layout.pack(state)
            if state is not None and abs(self._value(crossing, self._time(at), flat).item()) > crossing.noise:
                continue  # an effect at the same time has led away from this root
            t, found = moved(
                functools.partial(self._value, crossing),
                self._time,
                at,
                flat,
                watch.rate[: len(flat)],
                (watch.h, crossing.scale),
                f"events[{crossing.event}]",
            )
            if state is None:
                self.now = End(t, None, watch.size)
                self._pay(part, found[size:])
            y = self.layout.unpack(found[:size] if state is None else flat)
            state = self._effect(event, crossing.event, t, y)
            self.firings.append(Firing(t, crossing.event, crossing.component, y, state))
            terminal = terminal or event.terminal
        if self.save.steps:
            first = self.firings[before]
            self.rows.append((first.t[None].to(self.t), _lead(first.before)))
        self.now = End(self.now.t, state, watch.size, tuple(watch.found))
        # The solve's node in autograd's graph holds the watch, and this state the node: nobody would collect that.
        watch.state = None
        return terminal, before

    def _pay(self, part: Solution, cost: Tensor) -> None:
        """The running cost (flat) of a stretch up to its event, which moves."""
        if part.running_cost is None:
            return
        leaves, at = [], 0
        for _, leaf in leaves_of(part.running_cost):
            leaves.append(cost[at : at + leaf.numel()].reshape(leaf.shape))
            at += leaf.numel()
        self.costs[-1] = rebuild(part.running_cost, iter(leaves))

    def _effect(self, event: Event, index: int, t: Tensor, y: Any) -> Any:
        if event.effect is None:
            return y
        own = self.layout.unpack(self.layout.pack(y).clone())  # the effect may write into it
        time = t.to(device=self.layout.device, dtype=self.layout.dtype)
        return self.layout.check_like(event.effect(time, own, *self.options["args"]), f"the effect of events[{index}]")

    def _value(self, crossing: Crossing, time: Tensor, y: Tensor) -> Tensor:
        """One root function at a flat state, which a cost may follow."""
        state = self.layout.unpack(y[: self.layout.size])
        value = self.events[crossing.event].condition(time, state, *self.options["args"])
        return checked(value, crossing.event).reshape(-1)[crossing.component]

    def _time(self, t: float) -> Tensor:
        return torch.scalar_tensor(t, dtype=self.layout.dtype, device=self.layout.device)

    def _close(self, terminal: bool, reached: float, tolerance: float) -> None:
        """Give the save times at the end of the solve their states."""
        if self.save.steps:
            self.rows.append((self.now.t[None].to(self.t), _lead(self.now.y)))
        else:
            here = sum(abs(x - reached) <= tolerance for x in self.due_times)
            if terminal and self.last:
                here = min(here, len(self.due_times) - 1)
            self._save(here, self.now.y)
            if terminal and self.last:
                self.rows.append((self.now.t[None].to(self.due), _lead(self.now.y)))
        if terminal:
            self.retcode, self.message = ReturnCode.Terminated, ""

    def _check_accumulation(self, before: int) -> None:
        """Fail where a root function fires again at once."""
        for firing in self.firings[before:]:
            which = firing.event, firing.component
            earlier = [x for x in self.firings[:before] if (x.event, x.component) == which][-1:]
            for other in earlier:
                gap, now = abs(firing.t.item() - other.t.item()), firing.t.item()
                if gap <= ACCUMULATED * math.ulp(now) and self.retcode.successful:
                    detail = f"events[{firing.event}] fired {gap:.3g} after it had fired"
                    self._fail(ReturnCode.TooManyEvents, failure_message(ReturnCode.TooManyEvents, now, detail))

    def _fail(self, retcode: ReturnCode, message: str) -> None:
        self.retcode = retcode
        self.message = self._too_many_steps() if retcode is ReturnCode.MaxIters and self.firings else message
        if self.parts and not self.parts[-1].retcode.successful:
            self.now = self.parts[-1].end()

    def _steps(self) -> int:
        return self.stats.forward.accepted + self.stats.forward.rejected

    def _too_many_steps(self) -> str:
        detail = f"max_steps = {self.options['max_steps']} attempted steps, {len(self.firings)} events"
        return failure_message(ReturnCode.MaxIters, self.parts[-1].span[1], detail)

    def solution(self) -> Solution:
        last = self.parts[-1]
        ts = torch.cat([t.to(self.rows[0][0]) for t, _ in self.rows]) if self.rows else self.t[:0]
        cost = None
        if self.costs[0] is not None:
            columns = zip(*([leaf for _, leaf in leaves_of(cost)] for cost in self.costs), strict=True)
            cost = rebuild(self.costs[0], iter([torch.stack(column).sum(0) for column in columns]))
        return Solution(
            ts=ts,
            ys=self._states(),
            retcode=self.retcode,
            stats=self.stats,
            algorithm=last.algorithm,
            sensealg=next((part.sensealg for part in self.parts if part.sensealg is not None), None),
            evaluate=self._evaluate,
            span=(self.times[0], last.span[1]),
            message=self.message,
            running_cost=cost,
            at_steps=self.save.steps,
            events=tuple(self.firings),
            end=self._end,
        )

    def _end(self) -> End:
        return self.now

    def _states(self) -> Any:
        if not self.rows:
            return _rows(rebuild(self.now.y, iter([x[None] for _, x in leaves_of(self.now.y)])), slice(0, 0))
        columns = zip(*([leaf for _, leaf in leaves_of(ys)] for _, ys in self.rows), strict=True)
        return rebuild(self.layout.template, iter([torch.cat(column) for column in columns]))

    def _evaluate(self, at: Tensor, derivative: bool) -> Any:
        """Dense output: that of the stretch each time lies in, at an event of the one that starts there."""
        flat = at.reshape(-1)
        starts = [self.sign * x for x in self.starts]
        which = [max(bisect.bisect_right(starts, self.sign * x) - 1, 0) for x in numbers("sol(t)'s t", flat)]
        found: dict[int, list[Tensor]] = {}
        for n in sorted(set(which)):
            places = [i for i, k in enumerate(which) if k == n]
            part = self.parts[n]
            values = part.derivative(flat[places]) if derivative else part(flat[places])
            leaves = [leaf for _, leaf in leaves_of(values)]
            for row, place in enumerate(places):
                found[place] = [leaf[row] for leaf in leaves]
        columns = zip(*(found[i] for i in range(len(which))), strict=True)
        stacked = [torch.stack(column) if at.ndim else column[0] for column in columns]
        return rebuild(self.layout.template, iter(stacked))


def _rows(ys: Any, which: slice) -> Any:
    """Some rows of every leaf."""
    return rebuild(ys, iter([leaf[which] for _, leaf in leaves_of(ys)]))


def _lead(y: Any) -> Any:
    """A state as one row."""
    return rebuild(y, iter([leaf[None] for _, leaf in leaves_of(y)]))
