"""Backward differentiation formulas with a fixed leading coefficient, of order 1 to 5.

With P the polynomial through the states at the last k + 1 times, the step solves ::

    M (P'(t1) + (gamma_k / h) (y1 - P(t1))) = f(t1, y1),    gamma_k = 1 + 1/2 + .. + 1/k

which is the formula of order k for the values of P at equal distances behind t1 (Jackson and Sacks-Davis 1980), so that
the matrix ``M - (h / gamma_k) df/dy`` changes with ``h`` and the order only. Past states and the lengths of past steps
are carried; gradients go through both.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.native.checkpoints import State
from pynode.native.dense import Piece
from pynode.native.error_norm import ErrorNorm
from pynode.native.history import derivative_weights, interpolation_weights, lengthened, nodes_of
from pynode.native.implicit import ImplicitStepper, Settings, with_derivative
from pynode.native.linear_operator import Solver, linearise
from pynode.native.order_choice import OrderChoice
from pynode.problem import Field
from pynode.transforms import number

#: gamma_k, from k = 0.
GAMMA = (0.0, *itertools.accumulate(1.0 / j for j in range(1, 6)))
#: Past states kept beside the one at the start of a step: as many as the highest order looks back at.
PAST = 5


#: Estimates are taken twice as large as they are: errors are then about those of SciPy's BDF at the same tolerance, on
#: about as many evaluations.
SCALE = 2.0


class BDF(ImplicitStepper):
    """See :class:`pynode.native.stepper.SteeringStepper`.

    Parameters
    ----------
    most : int
        The highest order.
    field : Field
    settings : Settings
    """

    limit = 5
    slow = 0.3

    def __init__(self, most: int, field: Field, settings: Settings) -> None:
        super().__init__(field, settings)
        #: The highest, which quadratures along the solution ask for.
        self.order = most
        self._choice = OrderChoice(most)
        #: Of the last attempt; that of the coming one is chosen while the last is still looked at.
        self._order = 1
        self._past: tuple[Tensor, ...] = ()
        self._gaps = torch.empty(0, dtype=torch.float64)
        self._slope: Tensor | None = None
        self._known: dict[int, float] = {}

    @property
    def error_order(self) -> int:  # type: ignore[override]
        return self._choice.order + 1

    def begin(self, t: Any, y: Tensor, derivative: Tensor | None = None, jump: float = 0.0) -> None:
        """See :class:`pynode.native.stepper.Stepper`."""
        self._anew(jump)
        self._jacobian = None  # so that the step repeats from its state alone
        self._choice.restart()
        self._past, self._gaps, self._found = (), torch.empty(0, dtype=torch.float64), None
        if derivative is None:
            derivative = self.field.check_pure(self._time(t, jump), y)
        mass = self.field.mass
        slope = derivative if mass is None else mass.inverse @ derivative
        self._slope = slope if slope.requires_grad else slope.clone()

    def resume(self, t: Any, y: Tensor, carried: State) -> None:
        self._gaps, *rest = carried
        past = len(self._gaps)
        self._anew(0.0, tuple(rest[past:]))
        self._past, self._slope, self._found = tuple(rest[:past]), None, None

    def carried(self, end: bool = False) -> State:
        """Lengths of the past steps and the states at their starts; behind an attempt also what Newton found."""
        if end:
            _, h, y, _ = self._step
            return (lengthened(h, self._gaps, PAST), *(y, *self._past)[:PAST])
        return (self._gaps, *self._past, *(() if self._found is None else (self._found,)))

    def derivative(self) -> Tensor:
        if self._slope is not None:
            return self._slope
        y, gap = self._start_state, self._gaps[0].item()
        return (y - self._past[0].detach()) / gap

    def witness(self) -> Tensor:
        """A tensor in whose graph every evaluation of the step is."""
        return self._step[3]

    def choice(self) -> int:
        return self._order

    def choose(self, choice: int) -> None:
        self._choice.order = choice

    def advance(self, t: Any, y: Tensor) -> None:
        self._gaps, *past = self.carried(end=True)
        self._past, self._slope, self._found = tuple(past), None, None
        self._start_state = y.detach()
        self._anew(0.0)

    # The order.

    def attempt(self, t: Any, h: Any, y: Tensor, jump: float = 0.0, end: Any = None) -> Tensor:
        """See :class:`pynode.native.stepper.Stepper`."""
        self._order = self._choice.order
        return super().attempt(t, h, y, jump, end)

    def reorder(self, accepted: bool) -> tuple[float, int]:
        """See :class:`pynode.native.stepper.SteeringStepper`."""
        if accepted:
            # With the state reached there is one more to look back at.
            ratio, order = self._choice.accepted(self._known.__getitem__, len(self._past) + 1)
        else:
            ratio, order = self._choice.rejected(self._known.__getitem__, self._ratio)
        return ratio, order + 1

    def steer(self, factor: float, accepted: bool) -> float:
        """See :class:`pynode.native.stepper.SteeringStepper`."""
        return self._choice.steer(factor, accepted)

    def error_ratio(self, measure: ErrorNorm) -> float:
        self._ratio = super().error_ratio(measure)
        return self._ratio

    def _error(self, measure: ErrorNorm) -> float:
        """The error of the formula, and what it would be at the orders around: each the highest derivative of the
        polynomial through the new state and those behind it, over ``k + 1``."""
        k, (_, h, y, y1) = self._order, self._step
        states = (y1, y, *self._past)
        nodes = nodes_of(float(h), self._gaps, ahead=True)
        self._known = {}
        for j in range(max(k - 2, 1), k + 2):
            if j + 2 <= len(states):
                weights = derivative_weights(nodes[: j + 2])
                difference = _combined(weights[None], states[: j + 2])[0]
                self._known[j] = measure(difference, SCALE / (j + 1))
        ahead = 1.0 - nodes
        if not self._past:  # of the first step, which has the slope for a past state
            difference = y1 - y - float(h) * self._slope  # type: ignore[operator]
            self._known[1] = ratio = measure(difference, SCALE / 2)
            return ratio
        # Of unequal steps: Brenan, Campbell and Petzold (1996), (5.2.20).
        last = 1.0 / ahead[k + 1].item()
        constant = max(abs(last - GAMMA[k] + (1.0 / ahead[1 : k + 1]).sum().item()), last)
        ratio = measure(self._excess, SCALE * constant)
        self._known[k] = max(self._known[k], ratio)
        return ratio

    # The step.

    def _predicted(self, h: Any, y: Tensor) -> tuple[Tensor, Tensor]:
        """P at the end of the step, and h times its derivative there."""
        if not self._past:
            assert self._slope is not None
            rise = h * self._slope
            return y + rise, rise
        k = self._order
        nodes = nodes_of(h, self._gaps[:k])
        both = torch.cat([interpolation_weights(nodes, (1.0,), slope) for slope in (False, True)])
        value, slope = _combined(both, (y, *self._past[:k])).unbind()
        return value, slope

    def _search(self, t: float, h: float, y: Tensor, jump: float, end: float) -> Tensor | None:
        """What the step adds to the prediction."""
        gamma = GAMMA[self._order]
        if not self._past:
            self._eta = 1.0  # as in begin
        start, slope = (x.detach() for x in self._predicted(h, y))
        time, c = self._time(end, jump), h / gamma
        known = 1.0 if self._current else self._eta
        solver: Solver = self._solver("step", c, lambda jacobian: jacobian.operator(c))
        # Steps that at most double may rely on the rate that the same Jacobian had for the last one.
        self._eta = min(self._eta, known)

        def correction(d: Tensor) -> Tensor:
            rate = self.field(time, start + d)
            return solver.solve(torch.sub(c * rate, self._mass_times(d + slope / gamma)))

        found = self._newton(correction, torch.zeros_like(y))
        return found.z if self._converged(found) else None

    def _lost(self, y: Tensor) -> Tensor:
        return torch.full_like(y, torch.nan)

    def _finish(self, t: Any, h: Any, y: Tensor, jump: float, end: Any, stages: Tensor) -> Tensor:
        gamma = GAMMA[self._order]
        start, slope = self._predicted(h, y)
        excess = stages
        if self.settings.taped and torch.is_grad_enabled():
            time, c = self._time(end, jump), h / gamma
            state = start + excess
            residual = c * self.field(time, state) - self._mass_times(excess + slope / gamma)
            if residual.requires_grad:
                exact = linearise(self.field, time.detach(), state.detach(), self.settings.linsolve)
                excess = with_derivative(excess, exact.operator(number(c)).solve(residual))
        y1 = start + excess
        self._excess = stages
        self._step = (t, h, y, y1)
        return y1

    # Dense output.

    def interpolate(self, thetas: Sequence[Any], derivative: bool = False) -> Tensor:
        """See :class:`pynode.native.stepper.Stepper`: the polynomial through the new state and the last k."""
        k, (_, h, y, y1) = self._order, self._step
        nodes = nodes_of(h, self._gaps[: k - 1], ahead=True)
        values = _combined(interpolation_weights(nodes, thetas, derivative), (y1, y, *self._past[: k - 1]))
        return values / h if derivative else values

    def piece(self) -> Piece:
        """See :class:`pynode.native.stepper.Stepper`."""
        kept = copy.copy(self)
        kept._jacobian, kept._solvers = None, {}
        t, h = float(self._step[0]), float(self._step[1])
        return lambda times, field: kept.interpolate([(x - t) / h for x in times]).detach()

    _ratio: float
    _excess: Tensor
    _start_state: Tensor
    _step: tuple[Any, Any, Tensor, Tensor]


def _combined(weights: Tensor, states: Sequence[Tensor]) -> Tensor:
    combined: Tensor = weights.to(states[0]) @ torch.stack(list(states))
    return combined
