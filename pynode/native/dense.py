"""Dense output that is kept: what the continuous adjoints read the forward solution from, and their own."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from pynode.native.stepper import Stepper
from pynode.problem import Field

if TYPE_CHECKING:
    from pynode.native.loop import Recorder
    from pynode.native.trajectory import Trajectory


class Piece(Protocol):
    """The dense output of one step, which outlives the stepper's next one."""

    def __call__(self, times: Sequence[float], field: Field) -> Tensor:
        """States (m, n) at times within the step. ``field`` evaluates stages that only dense output needs."""
        ...


class Dense(Protocol):
    """A solution that can be looked at at any time."""

    def at(self, t: float, field: Field) -> Tensor:
        """State (n,) at ``t``."""
        ...

    def at_all(self, times: Sequence[float], field: Field) -> Tensor:
        """States (m, n) at ``times``, neighbours of which may share a step."""
        ...


class Pieces:
    """A recorder that keeps the dense output of every step, and passes the step on to another one."""

    def __init__(self, inner: Recorder | None = None) -> None:
        self.pieces: list[Piece] = []
        self.mesh: list[float] = []
        self._inner = inner

    def accept(self, stepper: Stepper, t: float, t1: float, y: Tensor, y1: Tensor) -> None:
        """See :class:`pynode.native.loop.Recorder`."""
        if not self.mesh:
            self.mesh.append(t)
        self.mesh.append(t1)
        self.pieces.append(stepper.piece())
        if self._inner is not None:
            self._inner.accept(stepper, t, t1, y, y1)

    def at(self, t: float, field: Field) -> Tensor:
        """State (n,) at ``t``."""
        return self.pieces[step_at(self.mesh, t)]((t,), field)[0]

    def at_all(self, times: Sequence[float], field: Field) -> Tensor:
        """States (m, n) at ``times``."""
        steps = [step_at(self.mesh, t) for t in times]
        found = []
        for n, places in itertools.groupby(range(len(times)), key=steps.__getitem__):
            found.append(self.pieces[n]([times[i] for i in places], field))
        return found[0] if len(found) == 1 else torch.cat(found)


class Resolved:
    """Dense output of a trajectory that kept some states only: stretches are solved again when they are looked at,
    and the last two looked at are kept."""

    def __init__(self, trajectory: Trajectory, stepper: Stepper) -> None:
        self._trajectory, self._stepper = trajectory, stepper
        self._stretches: list[tuple[int, int, Pieces]] = []

    def at(self, t: float, field: Field) -> Tensor:
        """State (n,) at ``t``."""
        n = step_at(self._trajectory.mesh, t)
        for first, last, pieces in self._stretches:
            if first <= n < last:
                return pieces.at(t, field)
        first, last = self._trajectory.stretch(n)
        pieces = Pieces()
        self._trajectory.replay(first, last, self._stepper, pieces)
        self._stretches = [*self._stretches[-1:], (first, last, pieces)]
        return pieces.at(t, field)

    def at_all(self, times: Sequence[float], field: Field) -> Tensor:
        """States (m, n) at ``times``."""
        return torch.stack([self.at(t, field) for t in times])


def step_at(mesh: Sequence[float], t: float) -> int:
    """Index of the step of a monotone mesh that holds ``t``; a boundary belongs to the step that ends there."""
    sign = 1.0 if mesh[-1] > mesh[0] else -1.0
    n = bisect.bisect_left(mesh, sign * t, key=lambda x: sign * x)
    return min(max(n - 1, 0), len(mesh) - 2)


class StagePiece:
    """Dense output of a Runge-Kutta step from its stages.

    Parameters
    ----------
    t, h : float
    y : Tensor (n,)
    stages : Tensor (s, n)
        The main stages.
    weights : callable
        ``weights(thetas)``: the weights of the stages at m fractions of the step, a tensor (m, s).
    complete : callable, optional
        ``complete(stages, field)``: all stages, where dense output needs more than the main ones.
    """

    def __init__(
        self,
        t: float,
        h: float,
        y: Tensor,
        stages: Tensor,
        weights: Callable[[Sequence[float]], Tensor],
        complete: Callable[[Tensor, Field], Tensor] | None = None,
    ) -> None:
        self._t, self._h, self._y = t, h, y
        self._stages = stages
        self._weights, self._complete = weights, complete

    def __call__(self, times: Sequence[float], field: Field) -> Tensor:
        if self._complete is not None:
            self._stages, self._complete = self._complete(self._stages, field), None
        # Times in the state's dtype may be rounded out of the step.
        thetas = [min(max((t - self._t) / self._h, 0.0), 1.0) for t in times]
        return torch.addmm(self._y, self._weights(thetas), self._stages, alpha=self._h)
