"""Backward differentiation formulas of variable order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pynode.algorithms.base import Algorithm
from pynode.errors import InputError, explain


@dataclass(frozen=True)
class FBDF(Algorithm):
    """Backward differentiation formulas with a fixed leading coefficient, adaptive in step size and order (1 to 5), for
    stiff problems: one system of the state's size is solved a step, whatever the order.

    Shampine (2002), "Solving 0 = F(t, y(t), y'(t)) in Matlab"; Brenan, Campbell and Petzold (1996), chapter 5 (DASSL).
    Cheap per step where ``f`` is expensive; of order 3 and more it is not A-stable: for stiff oscillations take
    ``RadauIIA5``, or ``max_order=2``. Takes singular mass matrices. Dense output is the polynomial through the last
    states, of the order of the step.

    Parameters
    ----------
    max_order : int
        From 1 to 5.
    linsolve : "dense" or "gmres"
        See Implicit.

    Examples
    --------
    >>> f = lambda t, y: -1000.0 * (y - torch.cos(t))  # stiff: Tsit5 takes some 300 steps for stability
    >>> sol = pynode.solve(f, torch.zeros(1, dtype=torch.float64), [0.0, 1.0], algorithm=pynode.FBDF())
    >>> sol.stats.forward.accepted < 150, abs(sol.ys[-1].item() - math.cos(1.0)) < 2e-3
    (True, True)
    """

    max_order: int = 5
    linsolve: str = "dense"

    #: See Implicit.
    masses: ClassVar[str] = "singular"

    def __post_init__(self) -> None:
        whole = isinstance(self.max_order, int) and not isinstance(self.max_order, bool)
        if not whole or not 1 <= self.max_order <= 5:
            raise InputError(explain(f"FBDF(max_order={self.max_order!r})", "an integer from 1 to 5", "drop max_order"))
        if self.linsolve not in ("dense", "gmres"):
            raise InputError(explain(f"FBDF(linsolve={self.linsolve!r})", "'dense' or 'gmres'", "use one of them"))
