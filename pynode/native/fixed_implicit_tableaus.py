"""Butcher tableaus of implicit Runge-Kutta methods, as data: ``Y_i = y + h sum_j a_ij f(t + c_j h, Y_j)``.

Sources: Hairer and Wanner, Solving ODEs II, tables IV.5.1 (Gauss), IV.5.5 and IV.5.6 (Radau IIA); Alexander, SIAM J.
Numer. Anal. 14 (1977) 1006-1021 (sdirk2); Bank et al., IEEE Trans. CAD 4 (1985) 436-451 and Hosea and Shampine, Appl.
Numer. Math. 20 (1996) 21-37 (trbdf2). Orders and row sums are tested.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_S2, _S3, _S6, _S15 = (math.sqrt(x) for x in (2.0, 3.0, 6.0, 15.0))


@dataclass(frozen=True)
class ImplicitTableau:
    """Coefficients of a method with ``S`` stages, of which a first one with an empty row is ``f(t, y)``.

    Attributes
    ----------
    order : int
    a : S rows of S numbers
    b, c : S numbers
    """

    order: int
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]


_G = 1.0 - _S2 / 2.0  # of sdirk2 and trbdf2

SCHEME_TABLEAUS: dict[str, ImplicitTableau] = {
    "implicit_euler": ImplicitTableau(1, ((1.0,),), (1.0,), (1.0,)),
    "implicit_midpoint": ImplicitTableau(2, ((0.5,),), (1.0,), (0.5,)),
    "trapezoid": ImplicitTableau(2, ((0.0, 0.0), (0.5, 0.5)), (0.5, 0.5), (0.0, 1.0)),
    "radauIIA3": ImplicitTableau(3, ((5 / 12, -1 / 12), (3 / 4, 1 / 4)), (3 / 4, 1 / 4), (1 / 3, 1.0)),
    "radauIIA5": ImplicitTableau(
        5,
        (
            (11 / 45 - 7 * _S6 / 360, 37 / 225 - 169 * _S6 / 1800, -2 / 225 + _S6 / 75),
            (37 / 225 + 169 * _S6 / 1800, 11 / 45 + 7 * _S6 / 360, -2 / 225 - _S6 / 75),
            (4 / 9 - _S6 / 36, 4 / 9 + _S6 / 36, 1 / 9),
        ),
        (4 / 9 - _S6 / 36, 4 / 9 + _S6 / 36, 1 / 9),
        (2 / 5 - _S6 / 10, 2 / 5 + _S6 / 10, 1.0),
    ),
    "gl4": ImplicitTableau(
        4,
        ((1 / 4, 1 / 4 - _S3 / 6), (1 / 4 + _S3 / 6, 1 / 4)),
        (1 / 2, 1 / 2),
        (1 / 2 - _S3 / 6, 1 / 2 + _S3 / 6),
    ),
    "gl6": ImplicitTableau(
        6,
        (
            (5 / 36, 2 / 9 - _S15 / 15, 5 / 36 - _S15 / 30),
            (5 / 36 + _S15 / 24, 2 / 9, 5 / 36 - _S15 / 24),
            (5 / 36 + _S15 / 30, 2 / 9 + _S15 / 15, 5 / 36),
        ),
        (5 / 18, 4 / 9, 5 / 18),
        (1 / 2 - _S15 / 10, 1 / 2, 1 / 2 + _S15 / 10),
    ),
    "sdirk2": ImplicitTableau(2, ((_G, 0.0), (1.0 - _G, _G)), (1.0 - _G, _G), (_G, 1.0)),
    "trbdf2": ImplicitTableau(
        2,
        ((0.0, 0.0, 0.0), (_G, _G, 0.0), (_S2 / 4, _S2 / 4, _G)),
        (_S2 / 4, _S2 / 4, _G),
        (0.0, 2.0 * _G, 1.0),
    ),
}
