"""Stabilised explicit methods as data: a recurrence of as many stages as stability asks for, and a finish.

A step from ``y`` with slope ``f0`` runs

    u_1 = y + first h f0,
    u_i = mu_i h f(u_(i-1)) + a_i u_(i-1) + b_i u_(i-2) + c_i y + d_i h f0,   i = 2, 3, ..., m   (u_0 = y),

and then, from ``u_m``, the few stages of a Runge-Kutta method that gives it its order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files


@dataclass(frozen=True)
class Chebyshev:
    """The method with a given number of stages.

    Attributes
    ----------
    first : float
    rows : tuple of (mu, a, b, c, d)
        For stages 2, 3, ... of the recurrence.
    times : tuple of float
        Abscissae of ``u_1, u_2, ...``.
    finish_a : tuple of tuple of float
        Rows of the finishing method, the first one empty; none at all where the recurrence ends in the new state.
    finish_b : tuple of float
        Its weights.
    error_rise, error_start, error_end : float
        Weights in the error estimate of ``y - y1``, ``h f0`` and ``h f(y1)``.
    error_finish : tuple of float
        And of the finishing stages.
    """

    first: float
    rows: tuple[tuple[float, float, float, float, float], ...]
    times: tuple[float, ...]
    finish_a: tuple[tuple[float, ...], ...] = ()
    finish_b: tuple[float, ...] = ()
    error_rise: float = 0.0
    error_start: float = 0.0
    error_end: float = 0.0
    error_finish: tuple[float, ...] = ()


@dataclass(frozen=True)
class Scheme:
    """A family of such methods.

    Attributes
    ----------
    order, error_order : int
        Of the method, and the power of ``h`` in its error estimate.
    needed : callable
        ``needed(x)``: the number of stages that are stable for ``h rho = x``.
    reach : callable
        ``reach(s)``: the largest ``h rho`` for which ``needed`` is at most ``s``.
    method : callable
        ``method(s)``: with ``s`` stages, or the next number of stages there are coefficients for.
    """

    order: int
    error_order: int
    needed: Callable[[float], int]
    reach: Callable[[int], float]
    method: Callable[[int], Chebyshev]


@lru_cache(maxsize=512)
def rkc(s: int) -> Chebyshev:
    """Sommeijer, Shampine and Verwer (1997), "RKC: an explicit solver for parabolic PDEs"."""
    w0 = 1.0 + 2.0 / (13.0 * s * s)
    # Chebyshev polynomials T_j(w0) and their first two derivatives.
    t, dt, d2t = [1.0, w0], [0.0, 1.0], [0.0, 0.0]
    for j in range(2, s + 1):
        d2t.append(2.0 * w0 * d2t[-1] - d2t[-2] + 4.0 * dt[-1])
        dt.append(2.0 * w0 * dt[-1] - dt[-2] + 2.0 * t[-1])
        t.append(2.0 * w0 * t[j - 1] - t[j - 2])
    w1 = dt[s] / d2t[s]
    b = [0.0, 0.0, *(d2t[j] / dt[j] ** 2 for j in range(2, s + 1))]
    b[0] = b[1] = b[2]
    times = [0.0, b[1] * w1]
    rows = []
    for j in range(2, s + 1):
        mu, nu = 2.0 * w0 * b[j] / b[j - 1], -b[j] / b[j - 2]
        step = 2.0 * w1 * b[j] / b[j - 1]
        lag = 1.0 - b[j - 1] * t[j - 1]
        rows.append((step, mu, nu, 1.0 - mu - nu, -step * lag))
        times.append(mu * times[j - 1] + nu * times[j - 2] + step * (1.0 - lag))
    return Chebyshev(b[1] * w1, tuple(rows), tuple(times[1:]), error_rise=0.8, error_start=0.4, error_end=0.4)


@lru_cache(maxsize=4)
def _table(name: str) -> dict[int, tuple[float, ...]]:
    """Coefficients by the number of stages of the recurrence. A line: that number ``m``, the numbers of the finish, and
    those of the recurrence, ``mu_1, (mu_2, kappa_2), ..., (mu_m, kappa_m)``."""
    table = {}
    for line in files("pynode.native").joinpath("data", name).read_text(encoding="ascii").splitlines():
        stages, *numbers = line.split()
        table[int(stages)] = tuple(map(float, numbers))
    return table


def _recurrence(m: int, numbers: tuple[float, ...]) -> tuple[float, tuple[tuple[float, ...], ...], tuple[float, ...]]:
    first = numbers[0]
    times, rows = [0.0, first], []
    for mu, kappa in zip(numbers[1::2], numbers[2::2], strict=True):
        rows.append((mu, 1.0 + kappa, -kappa, 0.0, 0.0))
        times.append(mu + (1.0 + kappa) * times[-1] - kappa * times[-2])
    return first, tuple(rows), tuple(times[1:])


@lru_cache(maxsize=512)
def rock2(s: int) -> Chebyshev:
    """Abdulle and Medovikov (2001), "Second order Chebyshev methods based on orthogonal polynomials", Numer. Math. 90;
    the coefficients of Abdulle's code."""
    table = _table("rock2.txt")
    m = min(x for x in table if x >= s - 2)
    one, two, *rest = table[m]
    first, rows, times = _recurrence(m, tuple(rest))
    return Chebyshev(
        first,
        rows,  # type: ignore[arg-type]
        times,
        finish_a=((), (one,)),
        finish_b=(one - two, one + two),
        error_finish=(-two, two),
    )


@lru_cache(maxsize=512)
def rock4(s: int) -> Chebyshev:
    """Abdulle (2002), "Fourth order Chebyshev methods with recurrence relation", SIAM J. Sci. Comput. 23; the
    coefficients of Abdulle's code."""
    table = _table("rock4.txt")
    m = min(x for x in table if x >= s - 4)
    numbers = table[m]
    a, b, embedded = numbers[:6], numbers[6:10], numbers[10:15]
    first, rows, times = _recurrence(m, numbers[15:])
    return Chebyshev(
        first,
        rows,  # type: ignore[arg-type]
        times,
        finish_a=((), a[:1], a[1:3], a[3:6]),
        finish_b=b,
        error_finish=tuple(low - high for low, high in zip(embedded, b, strict=False)),
        error_end=embedded[4],
    )


SCHEMES: dict[str, Scheme] = {
    "RKC": Scheme(2, 3, lambda x: int(math.sqrt(1.54 * x + 1.0)) + 1, lambda s: (float(s) ** 2 - 1.0) / 1.54, rkc),
    "ROCK2": Scheme(
        2, 2, lambda x: int(math.sqrt((x + 1.5) / 0.811)) + 1, lambda s: 0.811 * float(s) ** 2 - 1.5, rock2
    ),
    "ROCK4": Scheme(
        4, 4, lambda x: int(math.sqrt((x + 3.0) / 0.353)) + 1, lambda s: 0.353 * float(s) ** 2 - 3.0, rock4
    ),
}
