"""A pair of algorithms between which the stiffness of the problem decides."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from pynode.algorithms.base import Algorithm
from pynode.algorithms.implicit import Implicit
from pynode.algorithms.rosenbrock import Rosenbrock23
from pynode.algorithms.runge_kutta import Tsit5, Vern7, Vern9
from pynode.errors import InputError, explain


@dataclass(frozen=True)
class AutoSwitch(Algorithm):
    """An explicit method where the problem is not stiff, and an implicit one where it is: SciML's ``AutoSwitch``.

    After every accepted step the step size times an estimate of the largest eigenvalue of the Jacobian (of the explicit
    method from its last two stages, at no cost; of the implicit one from the Jacobian it has) is compared with the
    stability interval of the explicit method on the negative real axis. Successive verdicts decide, in both directions.

    Parameters
    ----------
    nonstiff : Algorithm
        An explicit adaptive Runge-Kutta method with two stages at one time: DP5, Tsit5, Vern7, Vern9 or DP8.
    stiff : Implicit
        An implicit adaptive method.
    maxstiffstep : int
        So many successive steps of the explicit method may be limited by stability; the next one switches.
    maxnonstiffstep : int
        So many successive steps of the implicit method may be such that the explicit one would be stable.
    nonstifftol, stifftol : float
        The fraction of the stability interval beyond which a step of the explicit, or implicit, method counts as stiff.
    stiffalgfirst : bool
        Start with the implicit method. Every discontinuity starts anew.

    Raises
    ------
    InputError
        For methods of another kind, or numbers that are not positive.

    Examples
    --------
    >>> algorithm = pynode.AutoSwitch(pynode.DP5(), pynode.KenCarp4(), maxstiffstep=5)
    >>> f = lambda t, y: -1000.0 * (y - torch.cos(t))
    >>> sol = pynode.solve(f, torch.zeros(1, dtype=torch.float64), [0.0, 1.0], algorithm=algorithm)
    >>> sol.stats.forward.njac > 0, abs(sol.ys[-1].item() - math.cos(1.0)) < 2e-3  # it found out
    (True, True)
    """

    nonstiff: Algorithm = dataclasses.field(default_factory=Tsit5)
    stiff: Algorithm = dataclasses.field(default_factory=Rosenbrock23)
    maxstiffstep: int = 10
    maxnonstiffstep: int = 3
    nonstifftol: float = 0.9
    stifftol: float = 0.9
    stiffalgfirst: bool = False

    def __post_init__(self) -> None:
        for key in ("nonstiff", "stiff"):
            algorithm = getattr(self, key)
            implicit = key == "stiff"
            if not (
                isinstance(algorithm, Algorithm)
                and algorithm.adaptive
                and isinstance(algorithm, Implicit) == implicit
                and not isinstance(algorithm, AutoSwitch)
            ):
                kind = "an implicit" if implicit else "an explicit"
                raise InputError(
                    explain(
                        f"AutoSwitch({key}={algorithm!r})",
                        f"{kind} adaptive algorithm object",
                        f"write {key}={'Rosenbrock23()' if implicit else 'Tsit5()'}",
                    )
                )
        for key in ("maxstiffstep", "maxnonstiffstep", "nonstifftol", "stifftol"):
            if not getattr(self, key) > 0:
                raise InputError(
                    explain(f"AutoSwitch({key}={getattr(self, key)!r})", "a positive number", "leave it at its default")
                )


def AutoTsit5(stiff: Algorithm, **options: Any) -> AutoSwitch:
    """``Tsit5()`` with an implicit method for where the problem is stiff: ``AutoTsit5(Rosenbrock23())``.

    ``options``: see :class:`AutoSwitch`.

    Examples
    --------
    >>> f, y0 = lambda t, y: -y, torch.ones(1)
    >>> sol = pynode.solve(f, y0, [0.0, 1.0], algorithm=pynode.AutoTsit5(pynode.Rosenbrock23()))
    >>> sol.stats.forward.njac  # not stiff: no Jacobian was made
    0
    """
    return AutoSwitch(Tsit5(), stiff, **options)


def AutoVern7(stiff: Algorithm, **options: Any) -> AutoSwitch:
    """``Vern7()`` with an implicit method: ``AutoVern7(Rodas5P())``. See :class:`AutoSwitch`.

    Examples
    --------
    >>> algorithm = pynode.AutoVern7(pynode.Rodas5P())
    >>> algorithm.nonstiff.name, algorithm.stiff.name
    ('Vern7', 'Rodas5P')
    """
    return AutoSwitch(Vern7(), stiff, **options)


def AutoVern9(stiff: Algorithm, **options: Any) -> AutoSwitch:
    """``Vern9()`` with an implicit method: ``AutoVern9(Rodas5P())``. See :class:`AutoSwitch`.

    Examples
    --------
    >>> algorithm = pynode.AutoVern9(pynode.KenCarp4(), maxstiffstep=5)
    >>> algorithm.nonstiff.name, algorithm.maxstiffstep
    ('Vern9', 5)
    """
    return AutoSwitch(Vern9(), stiff, **options)
