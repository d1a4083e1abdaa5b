"""Integration algorithms: names and options only, no arithmetic.

An algorithm is an immutable object; the backends know how to run it. Names are those of OrdinaryDiffEq.jl;
the lower-case names of torchdiffeq are accepted as strings (:func:`algorithm_from_name`).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pynode.errors import InputError, explain


@dataclass(frozen=True)
class Algorithm:
    """Base class of all algorithms. ``name`` is the SciML name."""

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def adaptive(self) -> bool:
        """Whether the step size follows an error estimate."""
        return True


@dataclass(frozen=True)
class FixedStep(Algorithm):
    """An algorithm that carries its own steps.

    Parameters
    ----------
    dt : float, optional
        Step size (> 0; the direction follows ``t``). The last step is shortened to end at the final time.
    steps : int, optional
        Number of equal steps over the whole time span.

    mesh : callable, optional
        ``mesh(t) -> tensor`` of step boundaries, from ``t[0]`` to ``t[-1]`` in the direction of ``t``.
    interpolation : "hermite" or "linear"
        How save points inside a step are filled: cubic Hermite (one more evaluation where the method has no
        derivative at the end of the step), or a straight line (torchdiffeq's default).
    perturb : bool
        Evaluate the field just inside every step, for fields that jump at the step boundaries.

    With none of ``dt``, ``steps``, ``mesh``, one step is taken per interval of ``t``, as torchdiffeq's fixed solvers
    do.
    """

    dt: float | None = None
    steps: int | None = None
    mesh: Callable[[Any], Any] | None = None
    interpolation: str = "hermite"
    perturb: bool = False

    def __post_init__(self) -> None:
        given = [key for key in ("dt", "steps", "mesh") if getattr(self, key) is not None]
        if len(given) > 1:
            raise InputError(explain(f"{self.name} got {' and '.join(given)}", "at most one of them", "keep one"))
        if self.interpolation not in ("hermite", "linear"):
            raise InputError(
                explain(
                    f"{self.name}(interpolation={self.interpolation!r})", "'hermite' or 'linear'", "use one of them"
                )
            )
        if self.dt is not None and not 0 < self.dt < float("inf"):
            raise InputError(
                explain(
                    f"{self.name}(dt={self.dt})",
                    "a positive finite step size",
                    "give dt > 0; the direction is taken from t",
                )
            )
        if self.steps is not None and (
            isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1
        ):
            raise InputError(explain(f"{self.name}(steps={self.steps})", "an integer >= 1", "give the number of steps"))

    @property
    def adaptive(self) -> bool:
        return False


@dataclass(frozen=True)
class Euler(FixedStep):
    """Explicit Euler, order 1."""


@dataclass(frozen=True)
class Midpoint(FixedStep):
    """Explicit midpoint rule, order 2."""


@dataclass(frozen=True)
class Heun(FixedStep):
    """Explicit trapezoidal rule (Heun), order 2."""


@dataclass(frozen=True)
class Ralston(FixedStep):
    """Ralston's second-order method with the least truncation error bound."""


@dataclass(frozen=True)
class RK4(FixedStep):
    """The classical Runge-Kutta method, order 4."""


@dataclass(frozen=True)
class RK38(FixedStep):
    """Kutta's 3/8 rule, order 4: what torchdiffeq calls ``rk4``."""


@dataclass(frozen=True)
class SSPRK33(FixedStep):
    """Strong-stability-preserving method of Shu and Osher, three stages, order 3."""


@dataclass(frozen=True)
class Reversible(FixedStep):
    """A method of order 2 that can be run backward to rounding, which ``ReversibleAdjoint`` needs.

    One evaluation a step. Reversible methods do not damp: where the solution decays fast, errors grow as fast.

    Parameters
    ----------
    adaptive : bool
        Choose the steps by an embedded error estimate (against Euler's step) and the tolerances, instead of taking
        them from ``dt``, ``steps`` or ``mesh``.
    dt, steps, mesh, interpolation, perturb
        See FixedStep.
    """

    adaptive: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [key for key in ("dt", "steps", "mesh", "perturb") if getattr(self, key) not in (None, False)]
        if self.adaptive and given:
            raise InputError(
                explain(
                    f"{self.name}(adaptive=True) got {' and '.join(given)}",
                    "steps chosen by the tolerances, or given ones",
                    f"drop adaptive=True or {' and '.join(given)}",
                )
            )


@dataclass(frozen=True)
class ReversibleHeun(Reversible):
    """Reversible Heun method of Kidger et al. (2021), "Efficient and Accurate Gradients for Neural SDEs", order 2."""


@dataclass(frozen=True)
class AsynchronousLeapfrog(Reversible):
    """Asynchronous leapfrog of Mutze (2013), order 2: the integrator of "MALI" (Zhuang et al. 2021)."""


@dataclass(frozen=True)
class Symplectic(FixedStep):
    """A method for separable fields on pairs ``(q, p)``: ``dq/dt = f_q(t, p)``, ``dp/dt = f_p(t, q)``.

    Kicks (``p += b h f_p``) and drifts (``q += a h f_q``) alternate. For ``f_q = dH/dp``, ``f_p = -dH/dq`` every step
    is a symplectic map: the energy error stays bounded over times exponentially long in ``1/h``, instead of growing
    (Hairer, Lubich and Wanner 2006, "Geometric Numerical Integration").

    The state is a tuple, list or named tuple of two trees, positions first (SciML's ``DynamicalODEProblem`` has the
    velocities first). The field is one of

    - any ``f(t, (q, p), *args) -> (dq, dp)``, which is called once for every half that is needed;
    - one with the methods ``velocity(t, p, *args) -> dq`` and ``force(t, q, *args) -> dp`` besides, which are called
      instead (``pynode.nn.HamiltonianODE(kinetic=, potential=)``, say).

    Every call, of the whole or of a half, counts as one evaluation. Whether the field is separable is tried before the
    first step, at three more evaluations; FieldError says which half is not. A running cost is integrated to the
    method's order, one evaluation a drift.

    Fixed steps: all options of FixedStep. Save points inside a step are filled by a cubic, of order 3 whatever the
    order of the method: let ``t`` or ``mesh`` meet them. Continuous adjoints need another algorithm for the way back
    (``GaussAdjoint(algorithm=Tsit5())``): the adjoint state is no pair. ``ReversibleAdjoint`` works. The native backend
    only.
    """


@dataclass(frozen=True)
class SymplecticEuler(Symplectic):
    """Symplectic Euler, order 1: a drift, then a kick. Two evaluations a step."""


@dataclass(frozen=True)
class VelocityVerlet(Symplectic):
    """Velocity Verlet (Stoermer-Verlet, leapfrog), order 2: half a kick, a drift, half a kick.

    Two evaluations a step, as the last force is the first of the next step.
    """


@dataclass(frozen=True)
class Yoshida6(Symplectic):
    """Yoshida's sixth-order composition of seven Verlet steps, solution A (Yoshida 1990, "Construction of higher order
    symplectic integrators"). Fourteen evaluations a step.

    Some substeps go back in time, beyond the start and the end of the step: of fields that jump it sees the other side.
    """


@dataclass(frozen=True)
class BS3(Algorithm):
    """Bogacki-Shampine 3(2), adaptive; torchdiffeq's ``bosh3``."""


@dataclass(frozen=True)
class DP5(Algorithm):
    """Dormand-Prince 5(4), adaptive; torchdiffeq's ``dopri5``."""


@dataclass(frozen=True)
class Tsit5(Algorithm):
    """Tsitouras 5(4), adaptive: the default."""


@dataclass(frozen=True)
class Vern7(Algorithm):
    """Verner's efficient 7(6), adaptive: for tolerances of about 1e-8 and below in float64."""


@dataclass(frozen=True)
class Vern9(Algorithm):
    """Verner's efficient 9(8), adaptive: for tolerances of about 1e-11 and below in float64."""


@dataclass(frozen=True)
class DP8(Algorithm):
    """Dormand-Prince 8(5,3) of Hairer, Norsett and Wanner (DOP853), adaptive."""


@dataclass(frozen=True)
class Fehlberg2(Algorithm):
    """Fehlberg's Runge-Kutta 1(2), adaptive; torchdiffeq's ``fehlberg2``.

    Its error estimate carries the small factor 1/512 and is optimistic at loose tolerances: at 1e-6 and above the error
    can exceed what other methods leave. ``AdaptiveHeun`` is of the same order and honest.
    """


@dataclass(frozen=True)
class AdaptiveHeun(Algorithm):
    """Heun's method with embedded Euler, 2(1), adaptive; torchdiffeq's ``adaptive_heun``."""


@dataclass(frozen=True)
class JuliaAlgorithm(Algorithm):
    """An algorithm of OrdinaryDiffEq.jl, for ``backend="julia"``.

    Parameters
    ----------
    expression : str
        What one writes in Julia: ``"Rodas5P"``, ``"AutoTsit5(Rosenbrock23())"``,
        ``"TRBDF2(linsolve = KrylovJL_GMRES())"``. A name alone is called without arguments.
    object : optional
        Instead, an algorithm object of diffeqpy (``de.Rodas5P()``) or juliacall.

    Notes
    -----
    Names of https://docs.sciml.ai/DiffEqDocs/stable/solvers/ode_solve/.
    """

    expression: str = ""
    object: Any = None

    def __post_init__(self) -> None:
        if bool(self.expression) == (self.object is not None) or not isinstance(self.expression, str):
            raise InputError(
                explain(
                    f"JuliaAlgorithm(expression={self.expression!r}, object={self.object!r})",
                    "an expression, or an object of diffeqpy",
                    "write JuliaAlgorithm('Rodas5P') or JuliaAlgorithm(object=de.Rodas5P())",
                )
            )

    @property
    def name(self) -> str:
        return self.expression or str(self.object).partition("(")[0].partition("{")[0]


ALGORITHMS: dict[str, type[Algorithm]] = {
    cls.__name__: cls
    for cls in (
        *(Euler, Midpoint, Heun, Ralston, RK4, RK38, SSPRK33),
        *(ReversibleHeun, AsynchronousLeapfrog),
        *(SymplecticEuler, VelocityVerlet, Yoshida6),
        *(BS3, DP5, Tsit5, Vern7, Vern9, DP8, Fehlberg2, AdaptiveHeun),
    )
}

#: Names of other libraries that do not equal a class name in lower case.
ALIASES: dict[str, str] = {
    "dopri5": "DP5",
    "dopri8": "DP8",
    "bosh3": "BS3",
    "adaptive_heun": "AdaptiveHeun",
    "heun2": "Heun",
    "rk3/8": "RK38",
    "reversible_heun": "ReversibleHeun",
    "alf": "AsynchronousLeapfrog",
}


def algorithm_from_name(name: str, foreign: bool = False) -> Algorithm:
    """The algorithm called ``name`` (case-insensitive class name or alias), with default options.

    ``foreign``: a name that is not pynode's own is one of OrdinaryDiffEq.jl's.

    Raises
    ------
    InputError
        For an unknown name; the message lists the nearest known ones.
    """
    table = {key.lower(): cls for key, cls in ALGORITHMS.items()}
    table.update({alias: ALGORITHMS[key] for alias, key in ALIASES.items()})
    found = table.get(name.lower())
    if found is not None:
        return found()
    if foreign:
        return JuliaAlgorithm(name)
    near = difflib.get_close_matches(name.lower(), table, n=3, cutoff=0.4)
    names = [table[key].__name__ for key in near] or sorted(ALGORITHMS)
    hint = "did you mean " if near else "known algorithms are "
    raise InputError(
        explain(
            f"unknown algorithm {name!r}",
            f"one of {', '.join(sorted(ALGORITHMS))} or the aliases {', '.join(ALIASES)}",
            hint + ", ".join(dict.fromkeys(names)) + "; all of OrdinaryDiffEq.jl's are there with backend='julia'",
        )
    )
