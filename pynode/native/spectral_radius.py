"""The spectral radius of a field's Jacobian, by nonlinear power iteration.

Sommeijer, Shampine and Verwer (1997), "RKC: an explicit solver for parabolic PDEs", section 2.2: ``f(y + z) - f(y)``
stands for ``J z``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pynode.transforms import number

#: Most iterations for a first estimate, and for one that starts from the eigenvector of the step before.
FIRST, LATER = 50, 8


def spectral_radius(
    evaluate: Callable[[Tensor], Tensor], y: Tensor, slope: Tensor, known: tuple[Tensor, float] | None = None
) -> tuple[Tensor, float]:
    """An approximate dominant eigenvector (n,) of ``df/dy`` at ``y``, and the modulus of its eigenvalue.

    Parameters
    ----------
    evaluate : callable
        ``f`` of a state (n,), at the time at hand.
    y, slope : Tensor (n,)
        The state and ``f`` there.
    known : (Tensor, float), optional
        What this function gave nearby. One evaluation is then enough where it still holds to 5 %; a first estimate is
        iterated until it changes by less than 1 %.

    Notes
    -----
    The result is a function of the arguments alone. Where the iteration does not settle, as it does not for a dominant
    pair of complex eigenvalues, the largest of the last quotients is taken.
    """
    eps = torch.finfo(y.dtype).eps
    size = _norm(y)
    length = math.sqrt(eps) * (size if size > 0.0 else 1.0)
    # What rounding in f makes of a radius of zero.
    noise = 4.0 * eps * _norm(slope) / length
    if known is None:
        z, previous, tolerance, most = _anything(y, slope), math.inf, 0.01, FIRST
    else:
        z, previous, tolerance, most = *known, 0.05, LATER
    quotients: list[float] = []
    for i in range(most):
        scale = _norm(z)
        if not scale > 0.0:
            z, scale = _spread(y), 1.0
        change = evaluate(y + z * (length / scale)) - slope
        radius = _norm(change) / length
        if not math.isfinite(radius):
            return z, radius
        if abs(radius - previous) <= tolerance * radius + noise and (i or known is not None):
            return change if radius > 0.0 else z, radius
        z, previous = change, radius
        quotients.append(radius)
    return z, max(quotients[-(len(quotients) // 2) :])


def _norm(x: Tensor) -> float:
    return number(torch.linalg.vector_norm(x))


def _spread(y: Tensor) -> Tensor:
    """A vector of norm one with a share in every direction that a field is likely to have: the multiples of the golden
    ratio, modulo one. Always the same, so that a solve can be repeated."""
    golden = 0.5 * (math.sqrt(5.0) - 1.0)
    places = torch.arange(1, y.numel() + 1, dtype=torch.float64, device=y.device)
    spread = (torch.remainder(places * golden, 1.0) - 0.5).to(y.dtype)
    unit: Tensor = spread / torch.linalg.vector_norm(spread)
    return unit


def _anything(y: Tensor, slope: Tensor) -> Tensor:
    """Where the first iteration starts. The slope alone may be an eigenvector of a small eigenvalue, as that of a sine
    is for the heat equation. What is added to it is turned towards it, so that ``-y`` of an odd ``f`` gets the opposite
    vector, and the same radius."""
    size, spread = _norm(slope), _spread(y)
    if not (math.isfinite(size) and size > 0.0):
        return spread
    unit = slope / size
    return unit + spread if number(torch.dot(unit, spread)) >= 0.0 else unit - spread
