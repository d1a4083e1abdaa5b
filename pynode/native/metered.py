"""Steps that add quantities of their own to the last channels of the state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.errors import UnsupportedError, explain
from pynode.native.checkpoints import State
from pynode.native.dense import Piece
from pynode.native.error_norm import ErrorNorm
from pynode.native.runge_kutta import RungeKutta, TapedRungeKutta
from pynode.step_quantity import Step, StepQuantity


class Metered:
    """A Runge-Kutta stepper (see :class:`pynode.native.stepper.Stepper`) that also sums quantities of its steps.

    Parameters
    ----------
    stepper : RungeKutta or TapedRungeKutta
    quantities : sequence of StepQuantity
        Of the last channels of the state, one each. The field's rate there is zero.
    size : int
        How many channels the state proper has, which come first.
    rtol, atol : float or Tensor
        The solver's tolerances.
    """

    def __init__(
        self,
        stepper: RungeKutta | TapedRungeKutta,
        quantities: Sequence[StepQuantity],
        size: int,
        rtol: Any,
        atol: Any,
    ) -> None:
        self._stepper, self._quantities, self._size = stepper, quantities, size
        self._tolerances = rtol, atol
        self.field = stepper.field
        self.order, self.error_order = stepper.order, stepper.error_order
        tableau = stepper.coefficients.tableau
        for quantity in quantities:
            missing = quantity.missing(tableau)
            if missing is not None:
                raise UnsupportedError(
                    explain(
                        f"{type(quantity).__name__} with {tableau.name}",
                        f"a method with {missing}",
                        "use algorithm=Tsit5(), or drop that cost",
                    )
                )

    def begin(self, t: Any, y: Tensor, derivative: Tensor | None = None, jump: float = 0.0) -> None:
        self._stepper.begin(t, y, derivative, jump)

    def resume(self, t: Any, y: Tensor, carried: State) -> None:
        self._stepper.resume(t, y, carried)

    def carried(self, end: bool = False) -> State:
        return ()

    def derivative(self) -> Tensor:
        return self._stepper.derivative()

    def attempt(self, t: Any, h: Any, y: Tensor, jump: float = 0.0, end: Any = None) -> Tensor:
        y1 = self._stepper.attempt(t, h, y, jump, end)
        size, count = self._size, len(self._quantities)
        rtol, atol = self._tolerances
        stages = self._stepper.stages()[:, :size]
        step = Step(h, y[:size], y1[:size], stages, self._stepper.coefficients.tableau, rtol, atol)
        self._h = h
        self._amounts = torch.stack([quantity.of_step(step) for quantity in self._quantities])
        return torch.cat([y1[:-count], y[-count:] + self._amounts])

    def error_ratio(self, measure: ErrorNorm) -> float:
        return self._stepper.error_ratio(measure)

    def interpolate(self, thetas: Sequence[Any], derivative: bool = False) -> Tensor:
        rows = self._stepper.interpolate(thetas, derivative)
        # What a step adds accrues evenly along it, so that a save time at its end, taken as an inner one for the sake
        # of its own gradient, has all of it.
        count, amounts = len(self._quantities), self._amounts
        if derivative:
            accrued = (amounts / self._h).expand(len(rows), -1)
        else:
            fractions = [torch.as_tensor(x, dtype=amounts.dtype, device=amounts.device) for x in thetas]
            accrued = torch.outer(torch.stack(fractions), amounts)
        return torch.cat([rows[:, :-count], rows[:, -count:] + accrued], dim=1)

    def piece(self) -> Piece:
        return self._stepper.piece()

    def advance(self, t: Any, y: Tensor) -> None:
        self._stepper.advance(t, y)
