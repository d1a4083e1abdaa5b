"""Diagonally implicit Runge-Kutta steps over a tableau: one stage after the other, all with one matrix.

Stages are the increments ``z_i = h k_i``, which solve ``M z_i = h f(t + c_i h, y + sum_j a_ij z_j)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from pynode.native.checkpoints import State
from pynode.native.dense import Piece
from pynode.native.error_norm import ErrorNorm
from pynode.native.hermite import between
from pynode.native.implicit import ImplicitStepper, Settings, with_derivative
from pynode.native.implicit_tableaus import ImplicitTableau
from pynode.native.linear_operator import Solver, linearise
from pynode.problem import Field
from pynode.transforms import number


class SDIRK(ImplicitStepper):
    """A diagonally implicit method.

    Carries the slope at the start of the step, which is that of the last stage of the step before where the method is
    stiffly accurate: evaluating ``f`` there instead would multiply the error of the iteration by the stiffness.

    Dense output is the cubic with the slopes at both ends; where the end of a step is none of its stages that takes
    two more evaluations.

    Parameters
    ----------
    tableau : ImplicitTableau
    field : Field
    settings : Settings
    """

    limit = 10
    slow = 0.1

    def __init__(self, tableau: ImplicitTableau, field: Field, settings: Settings) -> None:
        super().__init__(field, settings)
        self.tableau = tableau
        self.order, self.error_order = tableau.order, tableau.error_order
        self.stages = len(tableau.c)
        self._guesses = _guesses(tableau)
        self._slope = torch.empty(0)
        self._end_slope = torch.empty(0)
        #: Length and first slope of the step before, for an estimate that looks back.
        self._before: tuple[float, Tensor] | None = None

    def begin(self, t: Any, y: Tensor, derivative: Tensor | None = None, jump: float = 0.0) -> None:
        """See :class:`pynode.native.stepper.Stepper`."""
        self._anew(jump)
        self._before = None
        if derivative is None:
            derivative = self.field.check_pure(self._time(t, jump), y)
        mass = self.field.mass
        slope = derivative if mass is None else mass.inverse @ derivative
        # Kept beyond this step, while f may write its next result into the same memory.
        self._slope = slope if slope.requires_grad else slope.clone()

    def resume(self, t: Any, y: Tensor, carried: State) -> None:
        self._anew(0.0, carried[1:])
        self._before = None
        self._slope = carried[0]

    def carried(self, end: bool = False) -> State:
        if end:
            return (self._end_slope,)
        return (self._slope,) if self._found is None else (self._slope, self._found)

    def derivative(self) -> Tensor:
        return self._slope

    def advance(self, t: Any, y: Tensor) -> None:
        self._before = (self._step[0], self._slope.detach())
        self._slope, self._found = self._end_slope, None
        self._anew(0.0)

    # The search.

    def _search(self, t: float, h: float, y: Tensor, jump: float, end: float) -> Tensor | None:
        tableau = self.tableau
        solver = self._matrix(h)
        stages = y.new_empty(len(tableau.c), y.numel())
        slope = self._slope.detach()
        for i, row in enumerate(tableau.a):
            if row[i] == 0.0:
                stages[i] = h * slope
                continue
            base = torch.addmv(y, stages[:i].t(), self._row(row[:i], y)) if i else y
            guess = torch.mv(stages[:i].t(), self._row(self._guesses[i], y)) if i else h * slope
            time = self._time(end, jump) if tableau.c[i] == 1.0 else self._time(t + tableau.c[i] * h)
            gamma = row[i]

            def correction(z: Tensor, time: Tensor = time, base: Tensor = base, gamma: float = gamma) -> Tensor:
                state = torch.add(base, z, alpha=gamma)
                residual = torch.sub(h * self.field(time, state), self._mass_times(z))
                if self._full:
                    return (
                        linearise(self.field, time, state, self.settings.linsolve).operator(gamma * h).solve(residual)
                    )
                return solver.solve(residual)

            found = self._newton(correction, guess)
            if not self._converged(found):
                return None
            stages[i] = found.z
        return stages

    def _matrix(self, h: float) -> Solver:
        solver: Solver = self._solver("stages", h, lambda jacobian: jacobian.operator(self.tableau.gamma * h))
        return solver

    def _row(self, row: Sequence[float], y: Tensor) -> Tensor:
        return torch.tensor(row, dtype=y.dtype, device=y.device)

    # The step.

    def _finish(self, t: Any, h: Any, y: Tensor, jump: float, end: Any, stages: Tensor) -> Tensor:
        tableau = self.tableau
        rows = list(stages.unbind())
        if self.settings.taped and torch.is_grad_enabled():
            self._record(t, h, y, jump, end, rows)
        y1 = y
        for weight, z in zip(tableau.b, rows, strict=True):
            if weight:
                y1 = torch.add(y1, z, alpha=weight)
        self._start, self._end, self._sides = t, end, (self._jump, jump)
        self._step = (number(h), h, y, y1)
        self._end_slope = rows[-1] / h
        return y1

    def _record(self, t: Any, h: Any, y: Tensor, jump: float, end: Any, rows: list[Tensor]) -> None:
        """Give the stages their derivatives: one Newton correction each, at the stages found."""
        tableau = self.tableau
        for i, row in enumerate(tableau.a):
            if row[i] == 0.0:
                rows[i] = h * self._slope
                continue
            base = y
            for weight, z in zip(row[:i], rows, strict=False):
                if weight:
                    base = torch.add(base, z, alpha=weight)
            now = end if tableau.c[i] == 1.0 else t + tableau.c[i] * h
            time = self._time(now, jump if tableau.c[i] == 1.0 else 0.0)
            state = torch.add(base, rows[i], alpha=row[i])
            residual = h * self.field(time, state) - self._mass_times(rows[i])
            if residual.requires_grad:
                exact = linearise(self.field, time.detach(), state.detach(), self.settings.linsolve)
                correction = exact.operator(row[i] * number(h)).solve(residual)
                rows[i] = with_derivative(rows[i], correction)
                if tableau.b[i]:
                    share = tableau.b[i] * correction.detach()
                    self._moved = share if self._moved is None else self._moved + share

    def _error(self, measure: ErrorNorm) -> float:
        tableau, stages, h = self.tableau, self._found, self._step[0]
        assert stages is not None
        if isinstance(tableau.error, tuple):
            error = torch.mv(stages.t(), self._row(tableau.error, stages))
        else:
            start, end = self._slope.detach(), stages[-1] / h
            if tableau.error == "slopes" or self._before is None:
                error = (0.5 * h) * (end - start)
            else:
                last, before = self._before
                third = 2.0 * ((end - start) / h - (start - before) / last) / (h + last)
                error = (h**3 / 12.0) * third
        # Filtered: stiff components, of which the estimate says nothing, are damped as the method damps them.
        if self._jacobian is None:
            return measure(error)  # a repeated step, whose stages were known
        return measure(self._matrix(h).solve(self._mass_times(error)))

    # Dense output.

    def interpolate(self, thetas: Sequence[Any], derivative: bool = False) -> Tensor:
        """See :class:`pynode.native.stepper.Stepper`."""
        _, h, y, y1 = self._step
        return between(thetas, h, y, y1, self._slopes(), derivative)

    def _slopes(self) -> tuple[Tensor, Tensor] | None:
        if self.settings.linear:
            return None
        if self.tableau.stiffly_accurate:
            return self._slope, self._end_slope
        _, _, y, y1 = self._step
        return tuple(  # type: ignore[return-value]
            self.field.rate(self._time(time, side), state)
            for time, side, state in zip((self._start, self._end), self._sides, (y, y1), strict=True)
        )

    def piece(self) -> Piece:
        """See :class:`pynode.native.stepper.Stepper`."""
        with torch.no_grad():
            slopes = self._slopes()
        h, _, y, y1 = self._step
        t, ends = number(self._start), (y.detach(), y1.detach())
        kept = None if slopes is None else (slopes[0].detach(), slopes[1].detach())

        def evaluate(times: Sequence[float], field: Field) -> Tensor:
            return between([(x - t) / h for x in times], h, *ends, kept)

        return evaluate

    _start: Any
    _end: Any
    _sides: tuple[float, float]
    _step: tuple[float, Any, Tensor, Tensor]


@lru_cache(maxsize=16)
def _guesses(tableau: ImplicitTableau) -> tuple[tuple[float, ...], ...]:
    """First guesses of the stages as combinations of those before: the polynomial through the slopes of the last
    three abscissae that differ; of the stage at the same abscissa, where there is one."""
    rows: list[tuple[float, ...]] = []
    for i, c in enumerate(tableau.c):
        row = [0.0] * i
        nodes: list[int] = []
        for j in reversed(range(i)):
            if all(tableau.c[j] != tableau.c[k] for k in nodes) and len(nodes) < 3:
                nodes.append(j)
        same = [j for j in nodes if tableau.c[j] == c]
        for j in same or nodes:
            weight = 1.0
            for k in nodes:
                if k != j and not same:
                    weight *= (c - tableau.c[k]) / (tableau.c[j] - tableau.c[k])
            row[j] = weight
        rows.append(tuple(row))
    return tuple(rows)
