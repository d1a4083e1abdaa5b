"""What the native solver remembers: step boundaries always, states as many as asked for, and the saved values."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.native.loop import Clock
from pynode.native.stepper import Stepper


class Trajectory:
    """Accepted steps: boundaries ``mesh`` (N + 1 floats) and the states at their starts.

    Parameters
    ----------
    t0 : float
    direction : float
        Plus or minus infinity: where time goes.
    keep : bool
        Keep states at all.
    limit : int, optional
        Keep at most this many, evenly spaced; the others are recomputed from the nearest one before them.
    jumps : frozenset of float
        Times at which the field is discontinuous.
    perturb : bool
        Every boundary is one of them.
    """

    def __init__(
        self, t0: float, direction: float, keep: bool, limit: int | None, jumps: frozenset[float], perturb: bool
    ) -> None:
        self.mesh = [t0]
        self.direction = direction
        self.kept = keep
        self._states: list[Tensor] = []
        self._limit = limit
        self._stride = 1
        self._jumps, self._perturb = jumps, perturb

    def append(self, y: Tensor, t1: float) -> None:
        """A step from state ``y`` at the last boundary to time ``t1`` was accepted."""
        if self.kept and (len(self.mesh) - 1) % self._stride == 0:
            self._states.append(y)
            if self._limit is not None and len(self._states) > self._limit:
                del self._states[1::2]
                self._stride *= 2
        self.mesh.append(t1)

    @property
    def steps(self) -> int:
        return len(self.mesh) - 1

    def jump_after(self, n: int) -> float:
        """Direction in which to nudge the time at which step ``n`` starts, 0 for none."""
        return self.direction if self._perturb or self.mesh[n] in self._jumps else 0.0

    def jump_before(self, n: int) -> float:
        """Direction in which to nudge the time at which step ``n`` ends, 0 for none."""
        return -self.direction if self._perturb or self.mesh[n + 1] in self._jumps else 0.0

    def step_at(self, t: float) -> int:
        """Index of the step that holds ``t``; a boundary belongs to the step that ends there."""
        if self.direction > 0:
            n = bisect.bisect_left(self.mesh, t)
        else:
            n = bisect.bisect_left(self.mesh, -t, key=lambda x: -x)
        return min(max(n - 1, 0), self.steps - 1)

    def states(self, wanted: Sequence[int], stepper: Stepper) -> Iterator[tuple[int, Tensor]]:
        """``(n, state at the start of step n)`` for the wanted steps (ascending), recomputing what was dropped."""
        at, y = -1, self._states[0]
        for n in wanted:
            stored = n // self._stride
            if at < stored * self._stride or at > n:
                at, y = stored * self._stride, self._states[stored]
            if at < n:
                y = self._replayed(at, n, y, stepper)[-1]
            at = n
            yield n, y

    @property
    def bounded(self) -> bool:
        """Whether states may have been dropped, so that :meth:`backward` has to recompute them."""
        return self._limit is not None

    def backward(self, stepper: Stepper | None, start: int) -> Iterator[tuple[int, Tensor]]:
        """``(n, state at the start of step n)`` from step ``start`` down to the first, one segment between two stored
        states in memory at a time. ``stepper`` recomputes what a bounded trajectory dropped."""
        for stored in range(start // self._stride, -1, -1):
            first = stored * self._stride
            last = min(first + self._stride - 1, start)
            segment = [self._states[stored]]
            if last > first:
                assert stepper is not None
                segment += self._replayed(first, last, self._states[stored], stepper)
            for n in range(last, first - 1, -1):
                yield n, segment.pop()

    def _replayed(self, first: int, last: int, y: Tensor, stepper: Stepper) -> list[Tensor]:
        """States at the starts of steps ``first + 1`` to ``last``, from ``y`` at the start of ``first``."""
        states = []
        for n in range(first, last):
            t, t1 = self.mesh[n], self.mesh[n + 1]
            if n == first or self.jump_after(n):
                stepper.begin(t, y, jump=self.jump_after(n))
            else:
                stepper.advance(t, y)
            y = stepper.attempt(t, t1 - t, y, self.jump_before(n), t1)
            states.append(y)
        return states


class SaveRecorder:
    """Saves the states at given times, interpolating within accepted steps, and feeds the trajectory.

    Parameters
    ----------
    times : list of float
        In the direction of integration, the first not before the start.
    y0 : Tensor (n,)
    trajectory : Trajectory
    every_step : bool
        Save the ends of the steps instead of ``times``.
    clock : callable, optional
        Makes step boundaries differentiable.
    tensor : Tensor (m,), optional
        Makes ``times`` differentiable.
    is_boundary : callable, optional
        ``is_boundary(n)``: whether a time of ``tensor`` that equals boundary ``n`` is that boundary, with its gradient.
    """

    def __init__(
        self,
        times: list[float],
        y0: Tensor,
        trajectory: Trajectory,
        every_step: bool,
        clock: Clock | None = None,
        tensor: Tensor | None = None,
        is_boundary: Callable[[int], bool] | None = None,
    ) -> None:
        self._posed = is_boundary
        self.trajectory = trajectory
        self.saved: list[float] = []
        self._times, self._tensor = times, tensor
        self._every_step = every_step
        self._clock = clock
        self._chunks: list[Tensor] = []
        self._next = 0
        if every_step or (times[0] == trajectory.mesh[0] and self._is_boundary(0)):
            self._chunks.append(y0[None])
            self.saved.append(trajectory.mesh[0])
            self._next = 1

    def accept(self, stepper: Stepper, t: float, t1: float, y: Tensor, y1: Tensor) -> None:
        """See :class:`pynode.native.loop.Recorder`."""
        self.trajectory.append(y, t1)
        if self._every_step:
            self._chunks.append(y1[None])
            self.saved.append(t1)
            return
        first, times = self._next, self._times
        sign = math.copysign(1.0, t1 - t)
        last = first
        while last < len(times) and (times[last] - t1) * sign <= 0:
            last += 1
        if last == first:
            return
        self._next = last
        self.saved += times[first:last]
        at_end = times[last - 1] == t1 and self._is_boundary(self.trajectory.steps)
        inner = last - 1 if at_end else last
        if inner > first:
            self._chunks.append(stepper.interpolate(self._thetas(t, t1, first, inner)))
        if at_end:
            self._chunks.append(y1[None])

    def _is_boundary(self, n: int) -> bool:
        """Whether a save time at boundary ``n`` is the state there; not so if its gradient is its own."""
        if self._tensor is None:
            return True
        return self._posed is not None and self._posed(n)

    def _thetas(self, t: float, t1: float, first: int, last: int) -> Sequence[Any]:
        if self._clock is None and self._tensor is None:
            return [(x - t) / (t1 - t) for x in self._times[first:last]]
        start: Any = t if self._clock is None else self._clock(t)
        end: Any = t1 if self._clock is None else self._clock(t1)
        points = self._times if self._tensor is None else self._tensor.double()
        return [(x - start) / (end - start) for x in points[first:last]]

    def values(self) -> Tensor:
        """Saved states, (m, n), sharing no memory with the trajectory's."""
        return torch.cat(self._chunks)
