"""What the native solver remembers: step boundaries always, states as many as asked for, and the saved values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from pynode.native.checkpoints import EveryStep, State, advance
from pynode.native.dense import step_at
from pynode.native.loop import Clock, Recorder
from pynode.native.stepper import ChoosingStepper, RememberingStepper, Stepper, check_solved


class Trajectory:
    """Accepted steps: boundaries ``mesh`` (N + 1 floats) and the states at their starts, as many as ``store`` keeps.

    Parameters
    ----------
    t0 : float
    direction : float
        Plus or minus infinity: where time goes.
    store : EveryStep, optional
        Keeps states; None are kept without one.
    jumps : frozenset of float
        Times at which the field is discontinuous.
    perturb : bool
        Every boundary is one of them.
    remembers : bool
        The stepper looks back over boundaries at which it is merely perturbed.
    keep_ends : bool
        Keep the state at the end of the last step, and of every step after which the stepper begins anew.

    Attributes
    ----------
    ends : dict
        Those states by boundary.
    choices : list
        What a :class:`pynode.native.stepper.ChoosingStepper` chose, by step; empty for others.
    """

    def __init__(
        self,
        t0: float,
        direction: float,
        store: EveryStep | None,
        jumps: frozenset[float],
        perturb: bool,
        keep_ends: bool = False,
        remembers: bool = False,
    ) -> None:
        self.mesh = [t0]
        self.direction = direction
        self.store = store
        self.ends: dict[int, State] = {}
        self.choices: list[Any] = []
        self._keep_ends = keep_ends
        self._jumps, self._perturb, self._remembers = jumps, perturb, remembers

    def append(self, y: Tensor, t1: float, carried: State = (), end: State = (), choice: Any = None) -> None:
        """A step from state ``y`` at the last boundary, where the stepper carried ``carried``, to time ``t1`` was
        accepted; ``end`` is the state there with what is carried there."""
        if choice is not None:
            self.choices.append(choice)
        n = len(self.mesh) - 1
        if self.store is not None:
            self.store.offer(n, (y, *carried) if carried and not self.begins(n) else (y,))
        if self._keep_ends:
            if n and not self.begins(n):
                del self.ends[n]
            self.ends[n + 1] = end
        self.mesh.append(t1)

    @property
    def kept(self) -> bool:
        """Whether states are kept at all."""
        return self.store is not None

    @property
    def bounded(self) -> bool:
        """Whether states may have been dropped, so that :meth:`backward` has to recompute them."""
        return type(self.store) is not EveryStep

    @property
    def steps(self) -> int:
        return len(self.mesh) - 1

    def jump_after(self, n: int) -> float:
        """Direction in which to nudge the time at which step ``n`` starts, 0 for none."""
        return self.direction if self._perturb or self.mesh[n] in self._jumps else 0.0

    def jump_before(self, n: int) -> float:
        """Direction in which to nudge the time at which step ``n`` ends, 0 for none."""
        return -self.direction if self._perturb or self.mesh[n + 1] in self._jumps else 0.0

    def begins(self, n: int) -> bool:
        """Whether step ``n`` starts from its state alone: nothing is carried over a discontinuity."""
        return n == 0 or self.mesh[n] in self._jumps or (self._perturb and not self._remembers)

    def enter(self, stepper: Stepper, n: int, t: Any, y: Tensor, carried: State) -> None:
        """Put ``stepper`` at the start of step ``n``; ``t`` is the time there, or a tensor that stands for it."""
        jump = self.jump_after(n)
        if self.begins(n):
            stepper.begin(t, y, jump=jump)
        elif jump:
            cast(RememberingStepper, stepper).resume(t, y, carried, jump)
        else:
            stepper.resume(t, y, carried)
        self._choose(stepper, n)

    def _choose(self, stepper: Stepper, n: int) -> None:
        if self.choices and isinstance(stepper, ChoosingStepper):
            stepper.choose(self.choices[n])

    def step_at(self, t: float) -> int:
        """Index of the step that holds ``t``; a boundary belongs to the step that ends there."""
        return step_at(self.mesh, t)

    def states(self, wanted: Sequence[int], stepper: Stepper) -> Iterator[tuple[int, Tensor, State]]:
        """``(n, state, carried)`` at the start of step n for the wanted steps (ascending), recomputing what was
        dropped."""
        assert self.store is not None
        at, state = -1, self.store[0]
        for n in wanted:
            stored = self.store.before(n)
            if at < stored:
                at, state = stored, self.store[stored]
            if at < n:
                state = self._advanced(at, n, state, stepper)
                self.store.offer_again(n, state, self.steps)
            at = n
            yield n, state[0], state[1:]

    def backward(self, stepper: Stepper | None, start: int) -> Iterator[tuple[int, Tensor, State]]:
        """``(n, state, carried)`` at the start of step n, from step ``start`` down to the first.

        ``stepper`` recomputes what was dropped, repeating as few steps as the store's bound allows: the snapshots and
        the state at hand are never more than that bound and one.
        """
        if start < 0:
            return
        assert self.store is not None
        snapshots, slots = self.store.take(start), self.store.slots
        stop = start + 1
        while snapshots:
            n, state = snapshots[-1]
            length = stop - n
            if length == 1:
                snapshots.pop()
                stop = n
            else:
                assert stepper is not None
                free = length if slots is None else slots - len(snapshots) + 1
                last = n + advance(length, free)
                state = self._advanced(n, last, state, stepper)
                if last < stop - 1:
                    snapshots.append((last, state))
                    continue
                n = stop = last
            yield n, state[0], state[1:]

    def stretch(self, n: int) -> tuple[int, int]:
        """The steps, first and behind the last, between the two kept states around step ``n``."""
        assert self.store is not None
        after = self.store.after(n)
        return self.store.before(n), self.steps if after is None else after

    def replay(self, first: int, last: int, stepper: Stepper, recorder: Recorder) -> None:
        """Take steps ``first`` to ``last - 1`` again, from a kept state, for a recorder."""
        assert self.store is not None
        self._advanced(first, last, self.store[first], stepper, recorder)

    def _advanced(
        self, first: int, last: int, state: State, stepper: Stepper, recorder: Recorder | None = None
    ) -> State:
        """The state at the start of step ``last``, from that at the start of ``first``."""
        y, carried = state[0], state[1:]
        for n in range(first, last):
            t, t1 = self.mesh[n], self.mesh[n + 1]
            if n == first or self.begins(n):
                self.enter(stepper, n, t, y, carried)
            else:
                jump = self.jump_after(n)
                if jump:
                    cast(RememberingStepper, stepper).advance(t, y, jump)
                else:
                    stepper.advance(t, y)
                self._choose(stepper, n)
            y1 = stepper.attempt(t, t1 - t, y, self.jump_before(n), t1)
            check_solved(stepper, t, y1)
            if recorder is not None:
                recorder.accept(stepper, t, t1, y, y1)
            y = y1
        return (y,) if self.begins(last) else (y, *stepper.carried(end=True))


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
        chosen = getattr(stepper, "choice", None)  # an isinstance of a protocol would cost more than the rest
        end = (y1, *stepper.carried(end=True))
        self.trajectory.append(y, t1, stepper.carried(), end, None if chosen is None else chosen())
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

    def stop(self, stepper: Stepper, at: float, tolerance: float) -> Tensor:
        """End at time ``at`` of the step that was accepted last: forget what was saved from then on (or less than
        ``tolerance`` before it), and save the state there instead. Returns its time derivative (n,)."""
        t, t1 = self.trajectory.mesh[-2:]
        sign = math.copysign(1.0, t1 - t)
        kept = [x for x in self.saved if (at - x) * sign > tolerance]
        rows = [torch.cat(self._chunks)[: len(kept)]] if kept else []
        start: Any = t if self._clock is None else self._clock(t)
        end: Any = t1 if self._clock is None else self._clock(t1)
        theta = (at - start) / (end - start)
        self._chunks = [*rows, stepper.interpolate([theta])]
        self.saved = [*kept, at]
        with torch.no_grad():
            return stepper.interpolate([theta], True)[0].detach()

    def values(self) -> Tensor:
        """Saved states, (m, n), sharing no memory with the trajectory's."""
        return torch.cat(self._chunks)
