"""Explicit Runge-Kutta methods."""

from __future__ import annotations

from dataclasses import dataclass

from pynode.algorithms.base import Algorithm, FixedStep


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
class Heun3(FixedStep):
    """Heun's third-order method, three stages; torchdiffeq's ``heun3``."""


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
