"""Implicit methods, for stiff problems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pynode.algorithms.base import FixedStep
from pynode.errors import InputError, explain


@dataclass(frozen=True)
class Implicit(FixedStep):
    """A method that solves linear systems with the Jacobian of ``f`` in every step, and so takes large steps where the
    problem is stiff.

    Adaptive by its own error estimate unless ``dt``, ``steps`` or ``mesh`` is given.

    Parameters
    ----------
    dt, steps, mesh, interpolation, perturb
        See FixedStep; without them the steps follow the tolerances.
    linsolve : "dense" or "gmres"
        ``"dense"``: the n x n Jacobian is made (by ``jac=``, or by n pullbacks at once) and factored; for up to some
        thousand states. ``"gmres"``: only products with it are made, and the systems are solved by GMRES without a
        preconditioner; for large states whose stiff part has few directions.
    """

    linsolve: str = "dense"

    #: What mass matrices the method takes: "none", "regular", or "singular" ones too.
    masses: ClassVar[str] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.linsolve not in ("dense", "gmres"):
            raise InputError(
                explain(f"{self.name}(linsolve={self.linsolve!r})", "'dense' or 'gmres'", "use one of them")
            )

    @property
    def adaptive(self) -> bool:
        return self.dt is None and self.steps is None and self.mesh is None


@dataclass(frozen=True)
class SDIRK(Implicit):
    """A diagonally implicit Runge-Kutta method: its stages are solved for one after the other, with one matrix.

    Takes regular mass matrices. Dense output is a cubic.
    """

    masses: ClassVar[str] = "regular"


@dataclass(frozen=True)
class ImplicitEuler(SDIRK):
    """Implicit (backward) Euler, order 1, L-stable: the most robust and the least accurate. Adaptive by its difference
    to the trapezoidal rule. Takes singular mass matrices.

    Examples
    --------
    >>> sol = pynode.solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], algorithm=pynode.ImplicitEuler(dt=1.0))
    >>> round(sol.ys[-1].item(), 4)  # 1 / (1 + h)
    0.5
    """

    masses: ClassVar[str] = "singular"


@dataclass(frozen=True)
class Trapezoid(SDIRK):
    """The trapezoidal rule (Crank-Nicolson), order 2, A-stable, without numerical damping. Adaptive by a divided
    difference over the last two steps.

    Examples
    --------
    >>> sol = pynode.solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], algorithm=pynode.Trapezoid(dt=1.0))
    >>> round(sol.ys[-1].item(), 4)  # (1 - h / 2) / (1 + h / 2)
    0.3333
    """


@dataclass(frozen=True)
class ImplicitMidpoint(SDIRK):
    """The implicit midpoint rule, order 2: A-stable, symplectic, time-symmetric. Fixed steps only; with none of ``dt``,
    ``steps``, ``mesh`` one for every interval of ``t``.

    Examples
    --------
    >>> f = lambda t, y: torch.stack([y[1], -y[0]])  # norms are kept to rounding
    >>> sol = pynode.solve(f, torch.tensor([1.0, 0.0]), [0.0, 10.0], algorithm=pynode.ImplicitMidpoint(dt=0.5))
    >>> round(sol.ys[-1].norm().item(), 4)
    1.0
    """

    @property
    def adaptive(self) -> bool:
        return False


@dataclass(frozen=True)
class TRBDF2(SDIRK):
    """TR-BDF2 (Bank et al. 1985, with the estimate of Hosea and Shampine 1996), order 2, L-stable: for stiff problems
    at loose tolerances.

    Examples
    --------
    >>> f, y0 = lambda t, y: -1000.0 * (y - torch.cos(t)), torch.zeros(1, dtype=torch.float64)
    >>> sol = pynode.solve(f, y0, [0.0, 1.0], algorithm=pynode.TRBDF2(), rtol=1e-3, atol=1e-3)
    >>> sol.stats.forward.accepted < 100, abs(sol.ys[-1].item() - math.cos(1.0)) < 1e-2
    (True, True)
    """


@dataclass(frozen=True)
class KenCarp4(SDIRK):
    """The implicit part of ARK4(3)6L[2]SA of Kennedy and Carpenter (2003), order 4, six stages, L-stable: for stiff
    problems at tolerances of 1e-4 to 1e-8.

    Examples
    --------
    >>> f = lambda t, y: -1000.0 * (y - torch.cos(t))
    >>> sol = pynode.solve(f, torch.zeros(1, dtype=torch.float64), [0.0, 1.0], algorithm=pynode.KenCarp4())
    >>> sol.stats.forward.accepted < 100, abs(sol.ys[-1].item() - math.cos(1.0)) < 2e-3
    (True, True)
    """


@dataclass(frozen=True)
class Kvaerno5(SDIRK):
    """Kvaerno's ESDIRK 5(4) (2004), seven stages, L-stable. One of its stages lies beyond the end of the step: of
    fields that jump it sees the other side.

    Examples
    --------
    >>> f = lambda t, y: -1000.0 * (y - torch.cos(t))
    >>> sol = pynode.solve(f, torch.zeros(1, dtype=torch.float64), [0.0, 1.0], algorithm=pynode.Kvaerno5())
    >>> sol.stats.forward.accepted < 100, abs(sol.ys[-1].item() - math.cos(1.0)) < 2e-3
    (True, True)
    """


@dataclass(frozen=True)
class RadauIIA(Implicit):
    """A Radau IIA method: its stages are solved for all at once. Takes singular mass matrices."""

    stages: ClassVar[int]
    masses: ClassVar[str] = "singular"


@dataclass(frozen=True)
class RadauIIA5(RadauIIA):
    """Radau IIA of three stages and order 5 (Hairer and Wanner 1996), L-stable: for stiff problems at tight tolerances,
    and for differential-algebraic ones of index 1. Takes singular mass matrices. Dense output is the collocation
    polynomial, of order 3.

    Examples
    --------
    >>> y0, mass = torch.ones(2, dtype=torch.float64), torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
    >>> f = lambda t, y: torch.stack([-y[1], y[0] - y[1]])  # y0' = -y1 and 0 = y0 - y1
    >>> sol = pynode.solve(f, y0, [0.0, 1.0], algorithm=pynode.RadauIIA5(), mass_matrix=mass)
    >>> abs(sol.ys[-1, 1].item() - math.exp(-1)) < 1e-4
    True
    """

    stages: ClassVar[int] = 3


@dataclass(frozen=True)
class RadauIIA9(RadauIIA):
    """Radau IIA of five stages and order 9 (Hairer and Wanner 1999), L-stable: as ``RadauIIA5``, for tolerances of 1e-6
    and less, where it takes a fraction of its steps. Dense output is of order 5.

    Examples
    --------
    >>> f = lambda t, y: -1000.0 * (y - torch.cos(t))
    >>> options = {"rtol": 1e-9, "atol": 1e-9}
    >>> sol = pynode.solve(f, torch.ones(1, dtype=torch.float64), [0.0, 1.0], algorithm=pynode.RadauIIA9(), **options)
    >>> exact = (1e6 * math.cos(1.0) + 1e3 * math.sin(1.0)) / (1e6 + 1)  # but for a transient that is gone
    >>> sol.stats.forward.accepted < 100, abs(sol.ys[-1].item() - exact) < 1e-7
    (True, True)
    """

    stages: ClassVar[int] = 5
