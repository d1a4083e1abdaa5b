"""Radau IIA methods of any number of stages, in the form that their stages are solved for in.

Collocation at the right Radau points (Hairer and Wanner 1996, sections IV.5 and IV.8; "Stiff differential equations
solved by Radau methods", J. Comput. Appl. Math. 111 (1999) 93-111, for more than three stages): everything follows
from the abscissae.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.polynomial import legendre


def radau_points(stages: int) -> Any:
    """The zeros (s,) in (0, 1] of ``P_s - P_(s-1)`` with Legendre's polynomials on [0, 1]: the last one is 1."""
    series = [0.0] * (stages - 1) + [-1.0, 1.0]
    x = np.sort(legendre.legroots(series).real)
    slope = legendre.legder(series)
    for _ in range(3):  # the eigenvalues of the companion matrix, to rounding
        x = x - legendre.legval(x, series) / legendre.legval(x, slope)
    x[-1] = 1.0
    return 0.5 * (x + 1.0)


def collocation(c: Any) -> Any:
    """``A`` (s, s) of the collocation method with abscissae ``c``: integrals of Lagrange's polynomials up to them, by
    Gauss's formula, which is exact for them and keeps to rounding what powers would cancel."""
    nodes, weights = legendre.leggauss(len(c))
    points = 0.5 * np.outer(c, nodes + 1.0)
    a = np.empty((len(c), len(c)))
    for j, own in enumerate(c):
        others = np.delete(c, j)
        values = np.prod((points[:, :, None] - others) / (own - others), axis=2)
        a[:, j] = 0.5 * c * (values @ weights)
    return a


class RadauTableau:
    """Numbers of a method in a precision, on a device.

    Attributes
    ----------
    c : tuple of float
    a : Tensor (s, s)
    e : Tensor (s,)
        Weights of the stages in the error estimate, to be divided by h: the formula of order s that takes the slope at
        the start of the step besides, with the weight ``1 / real`` so that its matrix is factored already (equations
        IV.8.17 to IV.8.19), minus the method.
    end : Tensor (s,)
        Weights of the stages in the slope at the end, to be divided by h.
    real : float
        The real eigenvalue of ``A^-1``, of an odd number of stages.
    right_real, left_real : Tensor (s,)
        Its eigenvectors, scaled to real numbers.
    pairs : list of (complex, Tensor (s,), Tensor (s,))
        The others with a positive imaginary part, with their right and left eigenvectors; each with its conjugate.
    dense : Tensor (s, s)
        Row i: the coefficient of theta^(i+1) in the polynomial through 0 and the stages. In float64.
    """

    def __init__(self, stages: int, dtype: torch.dtype, device: torch.device) -> None:
        c = radau_points(stages)
        a = collocation(c)
        inverse = np.linalg.inv(a)
        values, right = np.linalg.eig(inverse)
        left = np.linalg.inv(right)

        def own(x: Any) -> torch.Tensor:
            tensor = torch.from_numpy(np.ascontiguousarray(x))
            return tensor.to(device, dtype.to_complex() if tensor.is_complex() else dtype)

        one = int(np.argmin(np.abs(values.imag)))
        self.real = float(values[one].real)
        phase = right[np.argmax(np.abs(right[:, one])), one]
        self.right_real, self.left_real = own((right[:, one] / phase).real), own((left[one] * phase).real)
        twos = [int(i) for i in np.argsort(values.imag) if values[i].imag > 0.0 and i != one]
        self.pairs = [(complex(values[i]), own(right[:, i]), own(left[i])) for i in twos]

        # The weights of the two formulas differ so that no polynomial of degree s - 1 shows it, but constants do.
        moments = np.zeros(stages)
        moments[0] = -1.0
        self.c = tuple(float(x) for x in c)
        self.a, self.end = own(a), own(inverse[-1])
        self.e = own(np.linalg.solve(c ** np.arange(stages)[:, None], moments) @ inverse)
        self.dense = torch.from_numpy(np.linalg.inv(c[:, None] ** np.arange(1, stages + 1))).to(device)


@lru_cache(maxsize=16)
def radau_tableau(stages: int, dtype: torch.dtype, device: torch.device) -> RadauTableau:
    """Made once, as it is of the same use to every solve."""
    with torch.inference_mode(False):  # a tape may use it later
        return RadauTableau(stages, dtype, device)
