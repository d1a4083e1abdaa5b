"""Orders of algorithms, and the more exact algorithm that a step size or tolerance is tested with."""

from __future__ import annotations

import dataclasses

from pynode.algorithms import RK4, Algorithm, FixedStep, Midpoint
from pynode.errors import InputError, explain
from pynode.native.reversible import REVERSIBLE
from pynode.native.splittings import SPLITTINGS
from pynode.native.tableaus import TABLEAUS


def order_of(algorithm: Algorithm) -> int | None:
    """The order ``p`` of the method, whose error is ``O(h^p)``; None for those of OrdinaryDiffEq.jl, which pynode does
    not know."""
    for table in (TABLEAUS, REVERSIBLE, SPLITTINGS):
        if algorithm.name in table:
            return int(table[algorithm.name].order)
    return None


def at_step(algorithm: FixedStep, dt: float) -> FixedStep:
    """The same method with steps of ``dt``."""
    return dataclasses.replace(algorithm, dt=dt, steps=None, mesh=None)


def finer_algorithm(algorithm: FixedStep) -> FixedStep:
    """What a fixed step of ``algorithm`` is tested with: a method of higher order where pynode has one with fixed
    steps (Euler: midpoint, second and third order: RK4), the method itself, with smaller steps, where it has none.

    Splittings, which solve pairs, are tested with themselves.
    """
    order = order_of(algorithm)
    if algorithm.name in SPLITTINGS or order is None or order >= 4:
        return algorithm
    chosen = Midpoint if order == 1 else RK4
    return chosen(interpolation=algorithm.interpolation, perturb=algorithm.perturb)


def finer_step(step: float, order: int, test_order: int, factor: float) -> float:
    """The step of the test method whose error is at least ``factor`` times smaller, in powers of the step:
    ``h_test^q <= h^p / factor``; never larger than ``step`` (Ott et al. 2021).

    Parameters
    ----------
    step : float
        ``h``, a fraction of the time span.
    order, test_order : int
        ``p`` and ``q``.
    """
    return float(min(step, (step**order / factor) ** (1.0 / test_order)))


def check_fixed(algorithm: Algorithm) -> FixedStep:
    """``algorithm`` if it has fixed steps, InputError otherwise."""
    if not isinstance(algorithm, FixedStep) or algorithm.adaptive:
        raise InputError(explain(f"{algorithm.name} chooses its own steps", "fixed steps", "give Euler(dt=...)"))
    return algorithm
