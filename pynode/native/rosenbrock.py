"""Rosenbrock steps over a tableau."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.algorithms.rosenbrock import Rosenbrock as Options
from pynode.native.checkpoints import State
from pynode.native.dense import Piece
from pynode.native.error_norm import ErrorNorm
from pynode.native.linear_operator import Linearisation, Solver, linearise
from pynode.native.once import once
from pynode.native.rosenbrock_tableaus import ROSENBROCK
from pynode.native.tangents import Tangents
from pynode.problem import Field, nudged
from pynode.transforms import number


class Rosenbrock:
    """A stepper (:class:`pynode.native.stepper.Stepper`), with and without autograd's tape.

    On the tape a stage ``U``, the solution of ``W U = r`` with ``W = M - h gamma J``, is found off it first; then
    ``U - W^-1 (W(y) U - r)``, with ``W^-1`` a constant and ``U`` another one, has the same value, and by the implicit
    function theorem the derivatives of the stage. ``W(y) U`` takes a derivative of ``f`` along a direction, no more.

    Parameters
    ----------
    options : pynode.algorithms.rosenbrock.Rosenbrock
    field : Field
    taped : bool

    Attributes
    ----------
    leaves : list of Tensor
        What stands on the tape of the last attempt beside its inputs.
    """

    def __init__(self, options: Options, field: Field, taped: bool) -> None:
        self.field = field
        self.tableau = tableau = ROSENBROCK[options.name]
        self.order, self.error_order = tableau.order, tableau.error_order
        self._linsolve = options.linsolve
        self._linear = options.interpolation == "linear"
        self._taped = taped
        self._needed = max(i for i, weight in enumerate(tableau.b) if weight) + 1
        self._us: list[Tensor] = []

    @property
    def leaves(self) -> list[Tensor]:
        return [] if self._tangents is None else self._tangents.leaves

    def begin(self, t: Any, y: Tensor, derivative: Tensor | None = None, jump: float = 0.0) -> None:
        time = self._at(t, jump)
        if derivative is None and not self._taped:
            self.field.check_pure(time, y)
        self._start_at(time, y)

    def resume(self, t: Any, y: Tensor, carried: State) -> None:
        self._start_at(self._at(t), y)

    def advance(self, t: Any, y: Tensor) -> None:
        self._start_at(self._at(t), y, self._at_end)

    def carried(self, end: bool = False) -> State:
        """A Rosenbrock step starts from its state alone."""
        return ()

    def derivative(self) -> Tensor:
        mass = self.field.mass
        return self._slope if mass is None else mass.inverse @ self._slope

    def attempt(self, t: Any, h: Any, y: Tensor, jump: float = 0.0, end: Any = None) -> Tensor:
        self._step = (t, h, t + h if end is None else end, jump, y)
        self._us, self._at_end = [], None
        if self._linearisation is None:
            self._linearisation = linearise(self.field, self._time, y, self._linsolve)
        self._solver = self._linearisation.operator(self.tableau.gamma * number(h))
        self._need(self._needed)
        self._y1 = self._plus(y, self.tableau.b)
        return self._y1

    def error_ratio(self, measure: ErrorNorm) -> float:
        with torch.no_grad():
            self._need(len(self.tableau.b))
            return measure(self._plus(torch.zeros_like(self._y1), self.tableau.b_error).detach(), 1.0)

    def interpolate(self, thetas: Sequence[Any], derivative: bool = False) -> Tensor:
        _, h, _, _, y = self._step
        weights, stages = self._weights(thetas, derivative), torch.stack(self._us[: self._needed])
        return weights @ stages / h if derivative else y + weights @ stages

    def piece(self) -> Piece:
        """See :class:`pynode.native.stepper.Stepper`."""
        t, h, y = number(self._step[0]), number(self._step[1]), self._step[4].detach()
        stages = torch.stack(self._us[: self._needed]).detach()

        def piece(times: Sequence[float], field: Field) -> Tensor:
            return y + self._weights([min(max((x - t) / h, 0.0), 1.0) for x in times], False) @ stages

        return piece

    def _start_at(self, time: Tensor, y: Tensor, known: Tangents | None = None) -> None:
        """Take in the start of a step, where ``known`` may hold the field already."""
        self._time, self._linearisation = time.detach(), None
        self._tangents: Tangents | None = None
        self._change: Tensor | None = None
        self._change_known = False
        if self.field.on_tape:
            self._tangents = Tangents(self.field, time, y, self._taped) if known is None else known
            self._slope = self._tangents.value
        else:
            self._slope = self.field(time, y).clone()

    def _need(self, count: int) -> None:
        """Solve for stages up to ``count``."""
        tableau, (t, h, end, jump, y) = self.tableau, self._step
        for i in range(len(self._us), count):
            slope = self._slope
            if i:
                time = self._at(end, jump) if tableau.c[i] == 1.0 else self._at(t + tableau.c[i] * h)
                slope = self._evaluated(i, time, self._plus(y, tableau.a[i]))
            known = (tableau.gamma * h) * slope
            if i:
                known = known + tableau.gamma * self._massive(self._plus(torch.zeros_like(y), tableau.coupling[i]))
            self._us.append(self._solved(known, h, tableau.d[i]))

    def _evaluated(self, i: int, time: Tensor, state: Tensor) -> Tensor:
        last = self.tableau.fsal and i == len(self.tableau.b) - 1
        if last and not self._taped and self.field.on_tape:
            self._at_end = Tangents(self.field, time, state, False)  # the start of the next step, if this one is taken
            return self._at_end.value
        return self.field(time, state)

    def _solved(self, known: Tensor, h: Any, d: float) -> Tensor:
        """The stage whose right-hand side is ``known``, and ``h gamma h d df/dt``."""
        gamma, solver = self.tableau.gamma, self._solver
        with torch.no_grad():
            right, step = known.detach(), number(h)
            if d and (change := self._time_derivative()) is not None:
                right = torch.add(right, change, alpha=gamma * step * step * d)
            u = solver.solve(right)
        if not (self._taped and torch.is_grad_enabled()):
            return u
        assert self._tangents is not None
        residual = self._massive(u) - known
        along = self._tangents.along(h * d if d else None, u)
        if along is not None:
            residual = residual - (gamma * h) * along
        return once(u - solver.solve(residual))

    def _time_derivative(self) -> Tensor | None:
        """``df/dt`` at the start of the step, None for zero."""
        if not self._change_known:
            self._change_known = True
            if self._tangents is None:
                self._change = self._difference()
            else:
                change = self._tangents.along(1.0)
                self._change = None if change is None else change.detach()
        return self._change

    def _difference(self) -> Tensor:
        """``df/dt`` of a field that autograd does not see through, by a difference over a small part of the step."""
        t, h, _, _, y = self._step
        small = math.copysign(max(1e-4 * abs(h), 64.0 * math.ulp(t)), h)
        ahead = self.field.time(t + small)
        apart = (ahead - self._time).item()
        return (self.field(ahead, y) - self._slope) / apart if apart else torch.zeros_like(y)

    def _plus(self, y: Tensor, weights: Sequence[float]) -> Tensor:
        for weight, u in zip(weights, self._us, strict=False):
            if weight:
                y = torch.add(y, u, alpha=weight)
        return y

    def _massive(self, v: Tensor) -> Tensor:
        """``M v``."""
        mass = self.field.mass_matrix
        return v if mass is None else mass.mv(v)

    def _weights(self, thetas: Sequence[Any], derivative: bool) -> Tensor:
        """Weights (m, s) of the stages at fractions of the step, or their derivatives with respect to them."""
        layout, tableau = self.field.layout, self.tableau
        x = torch.stack([torch.as_tensor(theta, dtype=torch.float64, device=layout.device) for theta in thetas])
        rows = [(weight,) for weight in tableau.b] if self._linear else tableau.dense_b
        dense = torch.tensor(rows[: self._needed], dtype=torch.float64, device=layout.device).t()
        powers = torch.arange(1, len(dense) + 1, dtype=torch.float64, device=layout.device)
        basis = powers * x[:, None] ** (powers - 1) if derivative else x[:, None] ** powers
        return (basis @ dense).to(layout.dtype)

    def _at(self, t: Any, jump: float = 0.0) -> Tensor:
        time = self.field.time(t)
        return nudged(time, jump) if jump else time

    _time: Tensor
    _slope: Tensor
    _linearisation: Linearisation | None
    _solver: Solver
    _step: tuple[Any, Any, Any, float, Tensor]
    _at_end: Tangents | None
    _y1: Tensor
