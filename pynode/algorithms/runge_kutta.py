"""Explicit Runge-Kutta methods."""

from __future__ import annotations

from dataclasses import dataclass

from pynode.algorithms.base import Algorithm, FixedStep


@dataclass(frozen=True)
class Euler(FixedStep):
    """Explicit Euler, order 1.

    Examples
    --------
    >>> sol = pynode.solve(lambda t, y: y, torch.ones(1), [0.0, 1.0], algorithm=pynode.Euler(steps=2))
    >>> sol.ys[-1]  # (1 + 1/2)^2
    tensor([2.2500])
    """


@dataclass(frozen=True)
class Midpoint(FixedStep):
    """Explicit midpoint rule, order 2.

    Examples
    --------
    >>> one = torch.zeros(1), [0.0, 1.0]
    >>> pynode.solve(lambda t, y: 3 * t**2 + 0 * y, *one, algorithm=pynode.Midpoint(steps=1)).ys[-1]  # 3 (1/2)^2
    tensor([0.7500])
    """


@dataclass(frozen=True)
class Heun(FixedStep):
    """Explicit trapezoidal rule (Heun), order 2.

    Examples
    --------
    >>> one = torch.zeros(1), [0.0, 1.0]
    >>> pynode.solve(lambda t, y: 3 * t**2 + 0 * y, *one, algorithm=pynode.Heun(steps=1)).ys[-1]  # the mean of 0 and 3
    tensor([1.5000])
    """


@dataclass(frozen=True)
class Ralston(FixedStep):
    """Ralston's second-order method with the least truncation error bound.

    Examples
    --------
    >>> one = torch.zeros(1), [0.0, 1.0]
    >>> sol = pynode.solve(lambda t, y: 3 * t**2 + 0 * y, *one, algorithm=pynode.Ralston(steps=1))
    >>> round(sol.ys[-1].item(), 4)  # 3/4 of 3 (2/3)^2
    1.0
    """


@dataclass(frozen=True)
class RK4(FixedStep):
    """The classical Runge-Kutta method, order 4.

    Examples
    --------
    >>> def error(steps):
    ...     y0 = torch.ones(1, dtype=torch.float64)
    ...     sol = pynode.solve(lambda t, y: y, y0, [0.0, 1.0], algorithm=pynode.RK4(steps=steps))
    ...     return sol.ys[-1].item() - math.e
    >>> round(math.log2(error(20) / error(40)))  # half the step, a sixteenth of the error
    4
    """


@dataclass(frozen=True)
class RK38(FixedStep):
    """Kutta's 3/8 rule, order 4: what torchdiffeq calls ``rk4``.

    Examples
    --------
    >>> one = torch.zeros(1), [0.0, 1.0]
    >>> sol = pynode.solve(lambda t, y: 4 * t**3 + 0 * y, *one, algorithm=pynode.RK38(steps=1))
    >>> round(sol.ys[-1].item(), 4)  # exact for cubics
    1.0
    """


@dataclass(frozen=True)
class SSPRK33(FixedStep):
    """Strong-stability-preserving method of Shu and Osher, three stages, order 3.

    Examples
    --------
    >>> sol = pynode.solve(lambda t, y: y, torch.ones(1), [0.0, 1.0], algorithm=pynode.SSPRK33(steps=1))
    >>> round(sol.ys[-1].item(), 4)  # 1 + 1 + 1/2 + 1/6
    2.6667
    """


@dataclass(frozen=True)
class Heun3(FixedStep):
    """Heun's third-order method, three stages; torchdiffeq's ``heun3``.

    Examples
    --------
    >>> one = torch.zeros(1), [0.0, 1.0]
    >>> sol = pynode.solve(lambda t, y: 3 * t**2 + 0 * y, *one, algorithm=pynode.Heun3(steps=1))
    >>> round(sol.ys[-1].item(), 4)  # exact for parabolas
    1.0
    """


@dataclass(frozen=True)
class BS3(Algorithm):
    """Bogacki-Shampine 3(2), adaptive; torchdiffeq's ``bosh3``.

    Examples
    --------
    >>> sol = pynode.solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], algorithm=pynode.BS3(), rtol=1e-3, atol=1e-5)
    >>> abs(sol.ys[-1].item() - math.exp(-1)) < 1e-3, sol.stats.forward.accepted < 10
    (True, True)
    """


@dataclass(frozen=True)
class DP5(Algorithm):
    """Dormand-Prince 5(4), adaptive; torchdiffeq's ``dopri5``.

    Examples
    --------
    >>> sol = pynode.solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], algorithm="dopri5")  # or pynode.DP5()
    >>> sol.algorithm, round(sol.ys[-1].item(), 4)
    (DP5(), 0.3679)
    """


@dataclass(frozen=True)
class Tsit5(Algorithm):
    """Tsitouras 5(4), adaptive: the default.

    Examples
    --------
    >>> sol = pynode.solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0])
    >>> sol.algorithm, round(sol.ys[-1].item(), 4)
    (Tsit5(), 0.3679)
    """


@dataclass(frozen=True)
class Vern7(Algorithm):
    """Verner's efficient 7(6), adaptive: for tolerances of about 1e-8 and below in float64.

    Examples
    --------
    >>> y0, t = torch.ones(1, dtype=torch.float64), [0.0, 10.0]
    >>> f, tight = lambda t, y: torch.cos(y), {"rtol": 1e-10, "atol": 1e-10}
    >>> sols = [pynode.solve(f, y0, t, algorithm=name, **tight) for name in ("vern7", "tsit5")]
    >>> sols[0].stats.forward.nfe < sols[1].stats.forward.nfe
    True
    """


@dataclass(frozen=True)
class Vern9(Algorithm):
    """Verner's efficient 9(8), adaptive: for tolerances of about 1e-11 and below in float64.

    Examples
    --------
    >>> y0, t = torch.ones(1, dtype=torch.float64), [0.0, 10.0]
    >>> sol = pynode.solve(lambda t, y: -y, y0, t, algorithm=pynode.Vern9(), rtol=1e-12, atol=1e-14)
    >>> abs(sol.ys[-1].item() / math.exp(-10) - 1) < 1e-9
    True
    """


@dataclass(frozen=True)
class DP8(Algorithm):
    """Dormand-Prince 8(5,3) of Hairer, Norsett and Wanner (DOP853), adaptive.

    Examples
    --------
    >>> y0, t = torch.ones(1, dtype=torch.float64), [0.0, 10.0]
    >>> sol = pynode.solve(lambda t, y: -y, y0, t, algorithm="dopri8", rtol=1e-9, atol=1e-12)
    >>> sol.algorithm.name, abs(sol.ys[-1].item() - math.exp(-10)) < 1e-9
    ('DP8', True)
    """


@dataclass(frozen=True)
class Fehlberg2(Algorithm):
    """Fehlberg's Runge-Kutta 1(2), adaptive; torchdiffeq's ``fehlberg2``.

    Its error estimate carries the small factor 1/512 and is optimistic at loose tolerances: at 1e-6 and above the error
    can exceed what other methods leave. ``AdaptiveHeun`` is of the same order and honest.

    Examples
    --------
    >>> sol = pynode.solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], algorithm="fehlberg2", rtol=1e-4, atol=1e-4)
    >>> sol.algorithm.name, abs(sol.ys[-1].item() - math.exp(-1)) < 1e-2
    ('Fehlberg2', True)
    """


@dataclass(frozen=True)
class AdaptiveHeun(Algorithm):
    """Heun's method with embedded Euler, 2(1), adaptive; torchdiffeq's ``adaptive_heun``.

    Examples
    --------
    >>> sol = pynode.solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], algorithm="adaptive_heun", rtol=1e-3, atol=1e-3)
    >>> sol.algorithm.name, abs(sol.ys[-1].item() - math.exp(-1)) < 1e-2
    ('AdaptiveHeun', True)
    """
