"""SciPy's LSODA with a shortest step, for torchdiffeq's ``options={"solver": "LSODA", "min_step": ...}``.

ODEPACK gives up where it would have to step shorter (torchdiffeq then returns fewer states than it was asked for), and
SciPy 1.17's translation of it disregards the bound (scipy/scipy#25827).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from pynode.errors import AccuracyWarning
from pynode.strict import warn

#: Steps with which LSODA feels for its step size, at the very start: they may be as short as it likes.
STARTING = 2


def integrate(
    rate: Callable[[float, Any], Any],
    times: list[float],
    start: Any,
    forced: Callable[[Any, list[float]], Any],
    min_step: float,
    **options: Any,
) -> Any:
    """The states at ``times``, (T, n).

    Parameters
    ----------
    rate : callable
        ``rate(t, y)`` of arrays (n,).
    times : list of float
        Ascending or descending.
    start : array (n,)
    forced : callable
        ``forced(y, times)``: the states at ``times[1:]`` from ``y`` at ``times[0]``, by a method that keeps
        ``min_step`` whatever the error; it takes over, with a RuntimeWarning, where LSODA would step shorter or fails.
    min_step : float
        Of all steps but the first two and the last.
    **options
        Of ``scipy.integrate.LSODA``.
    """
    from scipy.integrate import LSODA

    solver = LSODA(rate, times[0], start, times[-1], min_step=min_step, **options)
    rows = [start]
    steps = 0
    while solver.status == "running":
        t, y = solver.t, solver.y.copy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # why it failed; ours says what follows from that
            solver.step()
        steps += 1
        short = solver.status == "running" and steps > STARTING and abs(solver.t - t) < min_step
        if short or solver.status == "failed":
            warn(
                f"SciPy's LSODA does not meet the tolerances from t = {t:.6g} on with steps no shorter than "
                f"options['min_step'] = {min_step:.3g}: dopri5 goes on, at the price of the tolerances. Lower "
                "min_step, or raise rtol and atol",
                AccuracyWarning,
            )
            return np.concatenate([np.stack(rows), forced(y, [t, *times[len(rows) :]])])
        passed = [x for x in times[len(rows) :] if (x - solver.t) * solver.direction <= 0]
        if passed:
            rows += list(solver.dense_output()(np.array(passed)).T)
    return np.stack(rows)
