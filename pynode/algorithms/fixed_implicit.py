"""Implicit Runge-Kutta methods at fixed steps."""

from __future__ import annotations

from dataclasses import dataclass

from pynode.algorithms.base import FixedStep
from pynode.errors import InputError, explain

#: What ``FixedImplicit(scheme=...)`` may be: torchdiffeq's names of its implicit methods.
SCHEMES = (
    *("implicit_euler", "implicit_midpoint", "trapezoid", "radauIIA3", "radauIIA5"),
    *("gl4", "gl6", "sdirk2", "trbdf2"),
)


@dataclass(frozen=True)
class FixedImplicit(FixedStep):
    """An implicit Runge-Kutta method over a given mesh, its stages solved to rounding by Newton's method.

    Parameters
    ----------
    dt, steps, mesh, interpolation, perturb
        See FixedStep.
    scheme : str
        ``"implicit_euler"``, ``"implicit_midpoint"``, ``"trapezoid"``, ``"radauIIA3"``, ``"radauIIA5"`` (Radau IIA of
        orders 3 and 5), ``"gl4"``, ``"gl6"`` (Gauss-Legendre of orders 4 and 6), ``"sdirk2"`` (Alexander's, L-stable)
        or ``"trbdf2"``.
    max_iters : int
        Newton iterations per step; a step that needs more fails the solve.

    Gradients are exact for the steps taken (implicit function theorem at the stages); second derivatives are refused.

    Examples
    --------
    >>> gauss = pynode.FixedImplicit(dt=0.5, scheme="gl6")
    >>> sol = pynode.solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], algorithm=gauss)
    >>> abs(sol.ys[-1].item() - math.exp(-1)) < 1e-5
    True
    """

    scheme: str = "gl4"
    max_iters: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scheme not in SCHEMES:
            raise InputError(
                explain(f"FixedImplicit(scheme={self.scheme!r})", f"one of {', '.join(SCHEMES)}", "use scheme='gl4'")
            )
        if isinstance(self.max_iters, bool) or not isinstance(self.max_iters, int) or self.max_iters < 1:
            raise InputError(
                explain(f"FixedImplicit(max_iters={self.max_iters!r})", "an integer >= 1", "drop max_iters=")
            )
