"""Step-size control of many rows at once: what :mod:`pynode.controllers` and :mod:`pynode.native.loop` do for one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pynode.controllers import START, PIDController, PredictiveController
from pynode.errors import UnsupportedError, explain

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def steady(size: Floats) -> Floats:
    """:func:`pynode.controllers.steady` for every row."""
    mantissa, exponent = np.frexp(size)
    found: Floats = np.ldexp(np.rint(mantissa * 2.0**20), exponent - 20)
    return found


def check_controller(controller: PIDController) -> None:
    """Raise UnsupportedError for a controller whose decisions are Python of its own, for one row at a time."""
    own = type(controller)
    known = own.propose in (PIDController.propose, PredictiveController.propose)
    if not known or own._filter is not PIDController._filter:
        raise UnsupportedError(
            explain(
                f"{own.__name__} overrides propose, under batching='independent'",
                "PredictiveController, IController, PIController or PIDController, with any coefficients",
                "give coefficients to PIDController, or use batching='joint'",
            )
        )


def propose(
    controller: PIDController, ratio: Floats, order: int, first: Floats, second: Floats
) -> tuple[Bools, Floats]:
    """:meth:`pynode.controllers.PIDController.propose` for every row.

    Parameters
    ----------
    controller : PIDController
    ratio : ndarray (b,)
        Norms of the error over the tolerance; NaN is a rejection.
    order : int
        Of the error estimate.
    first, second : ndarray (b,)
        Reciprocal ratios of the last two accepted steps, which become those of the next step.

    Returns
    -------
    accepted, factor : ndarray (b,)
    """
    if isinstance(controller, PredictiveController):
        return _predict(controller, ratio, order, first, second)
    accepted = ratio <= 1.0
    p, i, d = controller.pcoeff / order, controller.icoeff / order, controller.dcoeff / order
    reciprocal = 1.0 / np.maximum(ratio, 1e-10)
    factor = reciprocal ** (p + i + d)
    factor *= controller.safety
    if p or d:
        factor *= first ** -(p + 2 * d) * second**d
        second[:] = np.where(accepted, first, second)
        first[:] = np.where(accepted, reciprocal, first)
    factor = steady(factor)
    # fmax and fmin pass over the NaN of a ratio that is none: the step shrinks as far as it may.
    if accepted.all():
        return accepted, np.minimum(np.maximum(factor, 1.0), controller.factormax)
    factor = np.fmax(factor, np.where(accepted, 1.0, controller.factormin))
    return accepted, np.fmin(factor, np.where(accepted, controller.factormax, controller.safety))


def _predict(
    controller: PredictiveController, ratio: Floats, order: int, first: Floats, second: Floats
) -> tuple[Bools, Floats]:
    """:meth:`pynode.controllers.PredictiveController.propose` for every row."""
    accepted, fresh = ratio <= 1.0, (first == START[0]) & (second == START[1])
    with np.errstate(invalid="ignore"):
        own = np.maximum(ratio, 1e-10) ** (-1.0 / order)
        predicted = second * (np.maximum(ratio, 1e-10) ** -2.0 / first) ** (1.0 / order)
    factor = steady(np.where(accepted & ~fresh, np.fmin(own, predicted), own) * controller.safety)
    # fmax passes over the NaN of a ratio that is none: the step shrinks as far as it may.
    factor = np.fmin(np.fmax(factor, controller.factormin), np.where(accepted, controller.factormax, controller.safety))
    factor[accepted & (factor >= 1.0) & (factor < controller.deadband)] = 1.0
    grown = np.where(accepted, factor, second * factor)
    second[:] = np.where(accepted | ~fresh, grown, second)
    first[:] = np.where(accepted, 1.0 / np.maximum(ratio, 1e-10), first)
    forgotten = (ratio <= 1e-10) | ~np.isfinite(ratio) | (controller.safety * own >= controller.factormax)
    first[forgotten], second[forgotten] = START
    return accepted, factor


def initial_steps(d0: Floats, d1: Floats, span: Floats) -> Floats:
    """The trial step of :func:`pynode.native.loop.initial_step` from the norms of state and derivative, magnitudes."""
    with np.errstate(divide="ignore", invalid="ignore"):
        h0 = np.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1)
    return np.minimum(np.where(h0 > 0, h0, 1e-6), span)


def refined_steps(h0: Floats, d1: Floats, d2: Floats, order: int, span: Floats) -> Floats:
    """The first step, ``d2`` being the norm of the second derivative that the trial step showed; made in units of
    ``100 h0`` where it is longer than that, as :func:`pynode.native.loop.initial_step` says."""
    unit = 100.0 * h0
    with np.errstate(divide="ignore", invalid="ignore"):
        most = np.maximum(d1, d2)
        h1 = np.where(most <= 1e-15, np.maximum(1e-6, h0 * 0.001), (0.01 / most) ** (1.0 / order))
        quick = unit * (0.01 / np.maximum(d1 * unit, d2 * unit * unit)) ** (1.0 / order)
        h1 = np.where((h1 > unit) & (most > 1e-15), quick, h1)
        size = np.minimum(steady(np.minimum(unit, h1)), span)
    return np.where(size > 0, size, h0)
