"""Butcher tableaus of diagonally implicit Runge-Kutta methods, as data, each with its source."""

from __future__ import annotations

import math
from dataclasses import dataclass

Row = tuple[float, ...]


@dataclass(frozen=True)
class ImplicitTableau:
    """A diagonally implicit method with one number ``gamma`` on the diagonal, but for a first stage that may be
    explicit.

    ``a``: row i has i + 1 entries, the last one on the diagonal. ``error``: of the estimate ``h sum e_i k_i``, or
    ``"slopes"`` for ``h/2 (k_1 - k_0)`` and ``"third"`` for ``h^3/12 y'''``, in which the derivatives come from the
    slopes ``k_0`` at the start of the step, ``k_1`` at its end and one before; None without one. ``error_order``: k of
    its O(h^k).
    """

    name: str
    order: int
    c: Row
    a: tuple[Row, ...]
    b: Row
    error: Row | str | None
    error_order: int

    @property
    def gamma(self) -> float:
        return self.a[-1][-1]

    @property
    def explicit_first(self) -> bool:
        return self.a[0][0] == 0.0

    @property
    def stiffly_accurate(self) -> bool:
        """Whether the last stage is the state at the end, so that its slope is the one there."""
        return self.c[-1] == 1.0 and self.a[-1] == self.b


def _trbdf2() -> ImplicitTableau:
    """Bank et al. (1985); the embedded third-order formula: Hosea and Shampine (1996)."""
    root = math.sqrt(2.0)
    d, w = 1.0 - root / 2.0, root / 4.0
    return ImplicitTableau(
        name="TRBDF2",
        order=2,
        c=(0.0, 2.0 - root, 1.0),
        a=((0.0,), (d, d), (w, w, d)),
        b=(w, w, d),
        error=((1.0 - root) / 3.0, 1.0 / 3.0, (root - 2.0) / 3.0),
        error_order=3,
    )


def _kencarp4() -> ImplicitTableau:
    """Kennedy and Carpenter (2003), "Additive Runge-Kutta schemes for convection-diffusion-reaction equations":
    ESDIRK of ARK4(3)6L[2]SA."""
    g = 1 / 4
    b = (82889 / 524892, 0.0, 15625 / 83664, 69875 / 102672, -2260 / 8211, g)
    embedded = (
        *(4586570599 / 29645900160, 0.0, 178811875 / 945068544),
        *(814220225 / 1159782912, -3700637 / 11593932, 61727 / 225920),
    )
    return ImplicitTableau(
        name="KenCarp4",
        order=4,
        c=(0.0, 1 / 2, 83 / 250, 31 / 50, 17 / 20, 1.0),
        a=(
            (0.0,),
            (g, g),
            (8611 / 62500, -1743 / 31250, g),
            (5012029 / 34652500, -654441 / 2922500, 174375 / 388108, g),
            (15267082809 / 155376265600, -71443401 / 120774400, 730878875 / 902184768, 2285395 / 8070912, g),
            b,
        ),
        b=b,
        error=tuple(x - y for x, y in zip(b, embedded, strict=True)),
        error_order=4,
    )


def _kvaerno5() -> ImplicitTableau:
    """Kvaerno (2004), "Singly diagonally implicit Runge-Kutta methods with an explicit first stage": 5(4), seven
    stages, both formulas stiffly accurate."""
    g = 0.26
    sixth = (0.13855640231268224, 0.0, -0.04245337201752043, 0.02446657898003141, 0.61943039072480676, g)
    b = (
        *(0.13659751177640291, 0.0, -0.05496908796538376, -0.04118626728321046),
        *(0.62993304899016403, 0.06962479448202728, g),
    )
    return ImplicitTableau(
        name="Kvaerno5",
        order=5,
        c=(0.0, 0.52, 1.230333209967908, 0.895765984350076, 0.436393609858648, 1.0, 1.0),
        a=(
            (0.0,),
            (g, g),
            (0.13, 0.84033320996790809, g),
            (0.22371961478320505, 0.47675532319799699, -0.06470895363112615, g),
            (0.16648564323248321, 0.1045001884159172, 0.03631482272098715, -0.13090704451073998, g),
            sixth,
            b,
        ),
        b=b,
        error=tuple(x - y for x, y in zip(b, (*sixth, 0.0), strict=True)),
        error_order=5,
    )


#: All diagonally implicit methods by name.
IMPLICIT_TABLEAUS: dict[str, ImplicitTableau] = {
    tableau.name: tableau
    for tableau in (
        ImplicitTableau("ImplicitEuler", 1, (1.0,), ((1.0,),), (1.0,), "slopes", 2),
        ImplicitTableau("ImplicitMidpoint", 2, (0.5,), ((0.5,),), (1.0,), None, 2),
        ImplicitTableau("Trapezoid", 2, (0.0, 1.0), ((0.0,), (0.5, 0.5)), (0.5, 0.5), "third", 3),
        _trbdf2(),
        _kencarp4(),
        _kvaerno5(),
    )
}
