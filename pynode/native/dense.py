"""Dense output that is kept: what the continuous adjoints read the forward solution from, and their own."""

from __future__ import annotations

import bisect
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

    def __call__(self, t: float, field: Field) -> Tensor:
        """State (n,) at a time within the step. ``field`` evaluates stages that only dense output needs."""
        ...


class Dense(Protocol):
    """A solution that can be looked at at any time."""

    def at(self, t: float, field: Field) -> Tensor:
        """State (n,) at ``t``."""
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
        return self.pieces[step_at(self.mesh, t)](t, field)


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
        ``weights(theta)``: the weight of each stage, a tensor.
    complete : callable, optional
        ``complete(stages, field)``: all stages, where dense output needs more than the main ones.
    """

    def __init__(
        self,
        t: float,
        h: float,
        y: Tensor,
        stages: Tensor,
        weights: Callable[[float], Tensor],
        complete: Callable[[Tensor, Field], Tensor] | None = None,
    ) -> None:
        self._t, self._h, self._y = t, h, y
        self._stages = stages
        self._weights, self._complete = weights, complete

    def __call__(self, t: float, field: Field) -> Tensor:
        if self._complete is not None:
            self._stages, self._complete = self._complete(self._stages, field), None
        # Times in the state's dtype may be rounded out of the step.
        theta = min(max((t - self._t) / self._h, 0.0), 1.0)
        return torch.addmv(self._y, self._stages.t(), self._weights(theta), alpha=self._h)
