"""Implicit Runge-Kutta steps over a given mesh (:class:`pynode.algorithms.FixedImplicit`).

The stages are solved to rounding by Newton's method, which leaves no trace: a step is a function of its start alone.
Where autograd records, the solved stages take one more Newton correction on the tape, with the exact Jacobian of the
stage equations, detached: its derivative is that of the implicit function theorem, whatever the iterations were.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.errors import UnsupportedError, explain
from pynode.native.adjoints.backward import Backward
from pynode.native.checkpoints import State
from pynode.native.dense import Piece
from pynode.native.error_norm import ErrorNorm
from pynode.native.fixed_implicit_tableaus import ImplicitTableau
from pynode.native.hermite import between
from pynode.native.once import once
from pynode.problem import Field, nudged
from pynode.transforms import number, transformed


class FixedImplicit:
    """See :class:`pynode.native.stepper.Stepper`.

    Parameters
    ----------
    tableau : ImplicitTableau
    field : Field
    interpolation : "hermite" or "linear"
    max_iters : int
        Of Newton's method, per step.
    taped : bool
        Autograd may record what it does.
    """

    def __init__(
        self, tableau: ImplicitTableau, field: Field, interpolation: str, max_iters: int, taped: bool = False
    ) -> None:
        self.field, self.tableau = field, tableau
        self.order = self.error_order = tableau.order
        #: Why the last attempt came to nothing.
        self.failure: str | None = None
        self._linear, self._max_iters, self._taped = interpolation == "linear", max_iters, taped
        layout = field.layout
        kind: dict[str, Any] = {"dtype": layout.dtype, "device": layout.device}
        self._a, self._b = torch.tensor(tableau.a, **kind), torch.tensor(tableau.b, **kind)
        #: Leading channels that the field depends on; integrals follow from them.
        self._coupled = field.coupled if isinstance(field, Backward) else layout.size
        self._explicit = not any(tableau.a[0])
        self._start: tuple[Any, Any, Tensor, float, Any] = (0.0, 0.0, torch.empty(0), 0.0, 0.0)

    def begin(self, t: Any, y: Tensor, derivative: Tensor | None = None, jump: float = 0.0) -> None:
        if transformed():
            raise UnsupportedError(
                explain(
                    "FixedImplicit inside a torch.func transform",
                    "an explicit algorithm there: Newton's iterations depend on values",
                    "use algorithm=Tsit5() or RK4()",
                )
            )
        time = self._at(t, jump)
        self._origin = time.detach()
        if derivative is None:
            derivative = self.field.check_pure(time, y)
        self._slope = derivative if derivative.requires_grad else derivative.clone()

    def derivative(self) -> Tensor:
        return self._slope

    def carried(self, end: bool = False) -> State:
        return ()

    def resume(self, t: Any, y: Tensor, carried: State) -> None:
        self.begin(t, y)

    def attempt(self, t: Any, h: Any, y: Tensor, jump: float = 0.0, end: Any = None) -> Tensor:
        self._start = (t, h, y, jump, t + h if end is None else end)
        plain = (number(t), number(h), y.detach(), jump, number(self._start[4]))
        with torch.no_grad():
            stages = self._solved(plain)
            corrected = self._taped and torch.isfinite(stages).all()
            if corrected:
                factors = self._factors([self._jacobian(*at) for at in self._places(stages, plain)], plain[1])
        if corrected and torch.is_grad_enabled():
            residual = stages - self._evaluated(stages, self._start)
            stages = once(stages - self._by(factors, residual))
        change = torch.mv(stages.t(), self._b)
        y1: Tensor = y + h * change
        self._end = y1
        return y1

    def error_ratio(self, measure: ErrorNorm) -> float:
        raise UnsupportedError(
            explain("FixedImplicit was asked for an error estimate", "fixed steps", "use an adaptive algorithm")
        )

    def interpolate(self, thetas: Sequence[Any], derivative: bool = False) -> Tensor:
        _, h, y, jump, end = self._start
        slopes = None if self._linear else (self._slope, self.field(self._at(end, jump), self._end))
        return between(thetas, h, y, self._end, slopes, derivative)

    def piece(self) -> Piece:
        t, h, y, jump, end = self._start
        y, y1, slope, start, length = y.detach(), self._end.detach(), self._slope.detach(), number(t), number(h)
        last: list[Tensor] = []

        def at(times: Sequence[float], field: Field) -> Tensor:
            if not self._linear and not last:
                time = field.time(number(end))
                last.append(field(nudged(time, jump) if jump else time, y1).detach())
            slopes = None if self._linear else (slope, last[0])
            return between([(x - start) / length for x in times], length, y, y1, slopes)

        return at

    def advance(self, t: Any, y: Tensor) -> None:
        self.begin(t, y)

    def _solved(self, start: tuple[float, float, Tensor, float, float]) -> Tensor:
        """The stage derivatives (S, n); NaN where Newton's method does not converge."""
        _, h, y, _, end = start
        slope, m = self._slope.detach(), self._coupled
        count = len(self.tableau.c)
        stages = slope.repeat(count, 1)
        eps = torch.finfo(y.dtype).eps
        factors = self._factors([self._jacobian(self._origin, y)] * count, h)
        previous, self.failure = math.inf, None
        for _ in range(self._max_iters):
            found = self._evaluated(stages, start)
            update = self._by(factors, stages[:, :m] - found[:, :m])
            stages = torch.cat([stages[:, :m] - update, found[:, m:]], dim=1)
            change = abs(h) * update.abs().max().item()
            size = (y[:m].abs().max() + abs(h) * stages[:, :m].abs().max()).item()
            if not math.isfinite(change):
                break
            stalled = change > 0.5 * previous
            if change <= 4.0 * eps * size or (stalled and change <= math.sqrt(eps) * size):
                return stages
            if change > 0.1 * previous:  # slow with the Jacobian of the start: take those of the stages
                factors = self._factors([self._jacobian(*at) for at in self._places(stages, start)], h)
            previous = change
        self.failure = f"Newton's method did not solve the stages of the step to t = {end:.9g}: lower the step"
        return torch.full_like(stages, math.nan)

    def _evaluated(self, stages: Tensor, start: tuple[Any, Any, Tensor, float, Any]) -> Tensor:
        """``f`` (S, n) at the stages."""
        places = self._places(stages, start)
        first = [self._slope if torch.is_grad_enabled() else self._slope.detach()] if self._explicit else []
        return torch.stack([*first, *(self.field(time, state) for time, state in places[len(first) :])])

    def _places(self, stages: Tensor, start: tuple[Any, Any, Tensor, float, Any]) -> list[tuple[Tensor, Tensor]]:
        """Times and states of the stages."""
        t, h, y, jump, end = start
        states = y + h * (self._a @ stages)
        times = [self._at(end, jump) if c == 1.0 else self._at(t + c * h, 0.0) for c in self.tableau.c]
        if self._explicit:
            times[0] = self._origin  # where the slope was taken, just inside the step behind a jump
        return list(zip(times, states.unbind(), strict=True))

    def _factors(self, jacobians: list[Tensor], h: float) -> tuple[Tensor, Tensor]:
        """LU factors of the stage equations' Jacobian, ``delta_ij I - h a_ij J_i``."""
        blocks = -h * self._a[:, :, None, None] * torch.stack(jacobians)[:, None]
        matrix = blocks.permute(0, 2, 1, 3).reshape(len(jacobians) * self._coupled, -1)
        matrix.diagonal().add_(1.0)
        lu, pivots, _ = torch.linalg.lu_factor_ex(matrix)
        return lu, pivots

    def _by(self, factors: tuple[Tensor, Tensor], residual: Tensor) -> Tensor:
        solved: Tensor = torch.linalg.lu_solve(*factors, residual.reshape(-1, 1)).reshape(residual.shape)
        return solved

    def _jacobian(self, time: Tensor, y: Tensor) -> Tensor:
        """``df/dy`` (m, m) of the coupled channels: exact, or by differences where the field is itself made of
        gradients, which steers Newton's method there and no more."""
        m = self._coupled
        if type(self.field).__call__ is not Field.__call__:
            base = self.field(time, y)[:m]
            scale = math.sqrt(torch.finfo(y.dtype).eps) * (y[:m].abs() + y[:m].abs().max() + 1e-3)
            columns = []
            for j, length in enumerate(scale.tolist()):
                moved = y.clone()
                moved[j] += length
                columns.append((self.field(time, moved)[:m] - base) / length)
            return torch.stack(columns, dim=1)
        return self.field.jacobian(time, y)

    def _at(self, t: Any, jump: float) -> Tensor:
        time = self.field.time(t)
        return nudged(time, jump) if jump else time
