"""Whether an explicit method ran out of steps because the problem is stiff: looked at only after that happened."""

from __future__ import annotations

import torch
from torch import Tensor

from pynode.native.spectral_radius import spectral_radius
from pynode.native.stepper import Stepper

#: Explicit Runge-Kutta methods are stable for decaying components to some |h lambda| between 2 and 6. Steps that
#: accuracy limits keep it below one where the fastest component is part of the solution.
_NEAR_LIMIT = 1.0
#: So many time constants of the fastest component in what was left of the span, or the problem is no more than long.
_MANY = 100.0
#: Cosine of the angle between a direction and its image from which on it counts as an eigenvector.
_ALIGNED = 0.9


def stiffness_clause(stepper: Stepper, t: float, y: Tensor, size: float, left: float) -> str:
    """What to add to the message of an explicit solve that stopped at ``(t, y)`` for want of steps; empty where its
    last step ``size`` was not held down by the stability of the method, or the method is no explicit one.

    The spectral radius of the Jacobian is found by at most some fifty evaluations of ``f``. ``left``: to the end.
    """
    if not getattr(stepper, "explicit", False):
        return ""
    with torch.no_grad():
        field, y = stepper.field, y.detach()
        time = field.time(t)
        slope = field(time, y).clone()
        direction, radius = spectral_radius(lambda state: field(time, state), y, slope)
        if not radius * size >= _NEAR_LIMIT or not radius * left >= _MANY:  # also NaN
            return ""
        unit = direction / torch.linalg.vector_norm(direction)
        length = torch.finfo(y.dtype).eps ** 0.5 * max(torch.linalg.vector_norm(y).item(), 1.0)
        change = field(time, y + length * unit) - slope
        if not torch.dot(change, unit).item() < -_ALIGNED * torch.linalg.vector_norm(change).item():
            return ""  # what grows, or turns, fast has to be followed by every method
    return (
        f"; the problem is stiff there: the Jacobian has eigenvalues of about -{radius:.2g}, with which an explicit "
        f"method is stable for steps up to a few times {1.0 / radius:.2g} only, and {radius * left:.2g} of these were "
        "left. "
        "Take an implicit method: TRBDF2(), KenCarp4() or RadauIIA5()"
    )
