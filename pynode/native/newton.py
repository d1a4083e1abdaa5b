"""Simplified Newton iterations, stopped by their rate of convergence (Hairer and Wanner 1996, section IV.8)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Found:
    """How an iteration ended.

    Attributes
    ----------
    z : Tensor
        The last iterate.
    converged : bool
    finite : bool
        False where an iterate was not.
    iterations : int
    rate : float
        The largest quotient of two successive corrections, 0 with one.
    eta : float
        ``rate / (1 - rate)`` at the end: by how much the next error is smaller than the last correction.
    """

    z: Tensor
    converged: bool
    finite: bool
    iterations: int
    rate: float
    eta: float


class NewtonNorm:
    """Root mean square of corrections in the tolerances of a step, and how small they must become.

    Adaptive steps: the scale is ``atol + rtol |y|``, and the error of the iteration must stay below the fraction
    ``kappa = min(0.01, sqrt(rtol))`` of it: far below the error that the step itself may make, and tighter at tighter
    tolerances, as Hairer's RADAU5 has it. Fixed steps, which no tolerance governs, are solved to 1e-11 of the state
    (50 units of rounding in float32).

    Parameters
    ----------
    rtol, atol : float or Tensor (n,)
    fixed : bool
    """

    def __init__(self, rtol: float | Tensor, atol: float | Tensor, fixed: bool) -> None:
        self._rtol, self._atol, self._fixed = rtol, atol, fixed
        least = rtol.min().item() if isinstance(rtol, Tensor) else rtol
        self._kappa = 1.0 if fixed else min(0.01, math.sqrt(least))
        self.kappa = self._kappa
        self._scale = torch.empty(0)

    def start(self, y: Tensor) -> None:
        """Scale for a step from ``y`` (n,)."""
        size = y.abs()
        eps = torch.finfo(y.dtype).eps
        if self._fixed:
            tolerance = max(1e-11, 50.0 * eps)
            scale = tolerance * (size + torch.linalg.vector_norm(y) / math.sqrt(y.numel()))
            self._scale = scale.clamp_min(torch.finfo(y.dtype).tiny / eps)
            return
        self._scale = self._atol + self._rtol * size
        # Corrections of the size of rounding errors shrink no more.
        self.kappa = max(self._kappa, 10.0 * eps * self(size))

    def __call__(self, x: Tensor) -> float:
        """The norm of ``x`` (..., n)."""
        ratio = (x / self._scale).reshape(-1)
        return math.sqrt(torch.dot(ratio, ratio).item() / ratio.numel())

    def reach(self) -> float:
        """How far apart, in the largest element, two iterations can end that both converged."""
        return 2.0 * self.kappa * self._scale.max().item() * math.sqrt(self._scale.numel())


def newton(
    correction: Callable[[Tensor], Tensor], z: Tensor, norm: NewtonNorm, eta: float, limit: int, patient: bool
) -> Found:
    """Add ``correction(z)`` to ``z`` until what is left is below ``norm.kappa``.

    Parameters
    ----------
    eta : float
        For the first iteration, whose rate is not known: that of the last solve with the same matrix, or 1.
    limit : int
        Of iterations.
    patient : bool
        Go on where the rate seen so far would not get there within the limit, or is above one.
    """
    last, rate = math.nan, 0.0
    for k in range(1, limit + 1):
        change = correction(z)
        size = norm(change)
        if not math.isfinite(size):
            return Found(z, False, False, k, rate, eta)
        z = z + change
        if k > 1:
            theta = size / last if last else 0.0
            rate = max(rate, theta)
            if theta < 1.0:
                eta = theta / (1.0 - theta)
                hopeless = eta * size * theta ** (limit - k) > norm.kappa
            else:
                eta, hopeless = math.inf, theta > 2.0 or not patient
            if (hopeless and not patient) or theta > 2.0:
                return Found(z, False, True, k, rate, eta)
        if size == 0.0 or eta * size <= norm.kappa:
            return Found(z, True, True, k, rate, eta)
        last = size
    return Found(z, False, True, limit, rate, eta)
