"""Symplectic methods as data: kicks and drifts.

One step of size ``h`` of a method with ``s`` drifts is ::

    p += kicks[0] h f_p(t, q)                                 left out where kicks[0] is zero
    for i = 1..s:
        q += drifts[i - 1] h f_q(t + (kicks[0] + .. + kicks[i - 1]) h, p)
        p += kicks[i] h f_p(t + (drifts[0] + .. + drifts[i - 1]) h, q)

Each half carries a time of its own, which the other half's substeps move: with those times as further channels, every
field that is separable and depends on time is one that is separable and does not, so that no order is lost.

To add a method: one ``_add(...)`` and its class in :mod:`pynode.algorithms`; ``tests/test_symplectic.py`` measures the
order.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

__all__ = ["SPLITTINGS", "Splitting"]


@dataclass(frozen=True)
class Splitting:
    """The coefficients of one method; the module docstring has the formulas.

    Attributes
    ----------
    name : str
        Key in :data:`SPLITTINGS`.
    order : int
        Where drifts are linear in the momenta, at least.
    drifts : tuple of float
        ``s`` fractions of the step, which add up to 1.
    kicks : tuple of float
        ``s + 1`` fractions, which add up to 1.
    source : str
        The paper.
    general_order : int
        Where they are not; 0 for the same order.
    """

    name: str
    order: int
    drifts: tuple[float, ...]
    kicks: tuple[float, ...]
    source: str
    general_order: int = 0

    @property
    def first_same_as_last(self) -> bool:
        """Whether the force that ends a step begins the next one."""
        return self.kicks[0] != 0.0 and self.kicks[-1] != 0.0


SPLITTINGS: dict[str, Splitting] = {}


def _add(splitting: Splitting) -> None:
    SPLITTINGS[splitting.name] = splitting


def _of_verlet_steps(name: str, order: int, weights: tuple[float, ...], source: str) -> Splitting:
    """Velocity Verlet steps of sizes ``weights`` one after the other, neighbouring half kicks joined."""
    ends = (0.0, *weights, 0.0)
    kicks = tuple((a + b) / 2 for a, b in itertools.pairwise(ends))
    return Splitting(name, order, weights, kicks, source)


_add(Splitting("SymplecticEuler", 1, (1.0,), (0.0, 1.0), "de Vogelaere (1956)"))
_add(_of_verlet_steps("VelocityVerlet", 2, (1.0,), "Verlet (1967); Swope et al. (1982)"))

# Digits: solution A of the paper's table 1 (15 of them), continued by solving its equations
# sum w = 1, sum w^3 = 0, sum w^5 = 0 and the fourth one, as in Hairer, Lubich and Wanner (2006), V.(3.11).
_W = (0.78451361047755726382, 0.23557321335935813368, -1.1776799841788710069, 1.3151863206839112189)
_add(
    _of_verlet_steps(
        "Yoshida6",
        6,
        (*_W, *_W[2::-1]),
        "Yoshida (1990), Construction of higher order symplectic integrators, solution A",
    )
)

_add(
    Splitting(
        "McAte4",
        4,
        (0.515352837431122936, -0.085782019412973646, 0.441583023616466524, 0.128846158365384185),
        (0.134496199277431089, -0.224819803079420806, 0.756320000515668291, 0.334003603286321425, 0.0),
        "McLachlan and Atela (1992), The accuracy of symplectic integrators, order 4 for a quadratic kinetic energy",
        general_order=3,
    )
)

_V = (
    *(0.13020248308889008087881763, 0.56116298177510838456196441, -0.38947496264484728640807860),
    *(0.15884190655515560089621075, -0.39590389413323757733623154, 0.18453964097831570709183254),
    *(0.25837438768632204729397911, 0.29501172360931029887096624, -0.60550853383003451169892108),
)
_add(
    _of_verlet_steps(
        "KahanLi8",
        8,
        (*_V, *_V[7::-1]),
        "Kahan and Li (1997), Composition constants for raising the orders of unconventional schemes, s17odr8a",
    )
)
