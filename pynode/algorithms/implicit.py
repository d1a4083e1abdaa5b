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
    to the trapezoidal rule. Takes singular mass matrices."""

    masses: ClassVar[str] = "singular"


@dataclass(frozen=True)
class Trapezoid(SDIRK):
    """The trapezoidal rule (Crank-Nicolson), order 2, A-stable, without numerical damping. Adaptive by a divided
    difference over the last two steps."""


@dataclass(frozen=True)
class ImplicitMidpoint(SDIRK):
    """The implicit midpoint rule, order 2: A-stable, symplectic, time-symmetric. Fixed steps only; with none of ``dt``,
    ``steps``, ``mesh`` one for every interval of ``t``."""

    @property
    def adaptive(self) -> bool:
        return False


@dataclass(frozen=True)
class TRBDF2(SDIRK):
    """TR-BDF2 (Bank et al. 1985, with the estimate of Hosea and Shampine 1996), order 2, L-stable: for stiff problems
    at loose tolerances."""


@dataclass(frozen=True)
class KenCarp4(SDIRK):
    """The implicit part of ARK4(3)6L[2]SA of Kennedy and Carpenter (2003), order 4, six stages, L-stable: for stiff
    problems at tolerances of 1e-4 to 1e-8."""


@dataclass(frozen=True)
class Kvaerno5(SDIRK):
    """Kvaerno's ESDIRK 5(4) (2004), seven stages, L-stable. One of its stages lies beyond the end of the step: of
    fields that jump it sees the other side."""


@dataclass(frozen=True)
class RadauIIA(Implicit):
    """A Radau IIA method: its stages are solved for all at once. Takes singular mass matrices."""

    stages: ClassVar[int]
    masses: ClassVar[str] = "singular"


@dataclass(frozen=True)
class RadauIIA5(RadauIIA):
    """Radau IIA of three stages and order 5 (Hairer and Wanner 1996), L-stable: for stiff problems at tight tolerances,
    and for differential-algebraic ones of index 1. Takes singular mass matrices. Dense output is the collocation
    polynomial, of order 3."""

    stages: ClassVar[int] = 3


@dataclass(frozen=True)
class RadauIIA9(RadauIIA):
    """Radau IIA of five stages and order 9 (Hairer and Wanner 1999), L-stable: as ``RadauIIA5``, for tolerances of 1e-6
    and less, where it takes a fraction of its steps. Dense output is of order 5."""

    stages: ClassVar[int] = 5
