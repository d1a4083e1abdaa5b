"""What theory says that an answer may be off by.

A solve with N accepted steps, each with a local error of at most ``e`` in the Euclidean norm, is off by at most
``N * e * growth`` at any time: local errors are carried on by the exact flow, along which two solutions separate at
most by ``growth = exp(max(mu, 0) * span)`` with the logarithmic norm ``mu`` (Hairer, Norsett and Wanner 1993, sections
I.10 and II.3). Error control keeps the root mean square of ``estimate_i / (atol + rtol max |y_i|)`` over n channels
below 1, that is the estimate below ``sqrt(n) (atol + rtol size)``. Where the steps are short beside the time constants
of the problem, every method's estimate is that of its own error, or of a less accurate solution that it does not go on
with: the estimate stands for ``e``.
"""

from __future__ import annotations

import copy
import math

import torch
from drawn import Case
from torch import Tensor

import pynode
from pynode.native.tableaus import TABLEAUS

F64 = torch.float64


def reference(case: Case, tau: Tensor) -> Tensor:
    """The solution (T, n) at ``tau`` (T,): by formula, or by a tight solve in double precision."""
    x0 = case.x0.detach()
    wide = x0.to(torch.complex128 if x0.is_complex() else F64)
    with torch.no_grad():
        exact = case.core.exact(tau, wide)
        if exact is not None:
            return exact
        core = copy.deepcopy(case.core)
        for parameter in core.parameters():
            parameter.data = parameter.data.to(wide.dtype)
        tol = 1e-13
        return pynode.solve(core, wide, [0.0, case.span], algorithm=pynode.DP8(), rtol=tol, atol=tol, saveat=tau).ys


def size_of(case: Case) -> float:
    """Upper bound of the largest element between the ends.

    Between two of 65 points the solution grows by at most ``exp(lipschitz * span / 64)`` (and by what drives it, which
    is of the size of the solution here).
    """
    at = torch.linspace(0.0, case.span, 65, dtype=F64)
    return reference(case, at).abs().max().item() * math.exp(case.core.lipschitz * case.span / 64)


def rounding(case: Case, steps: int, size: float, algorithm: pynode.Algorithm | None = None, stages: int = 20) -> float:
    """What rounding adds up to: a step is a sum of ``stages + n`` products, each rounded relative to ``size`` times
    ``1 + h lipschitz``, and the field sees its time rounded in units of the state's precision.

    Of an explicit Runge-Kutta ``algorithm`` the products are as large as its coefficients, those of dense output among
    them: with sums A of the moduli of a row and B of the weights, a stage is off by ``(1 + h lipschitz A)`` and the sum
    of the stages by ``(1 + h lipschitz B)`` times as much. The steps h add up to the span, their squares to no more
    than its square.
    """
    z = case.span * case.core.lipschitz
    a, b = coefficients(algorithm)
    each = (stages + case.channels) * case.eps * size * (steps + z * (a + b) + a * b * z**2)
    clock = 0.0 if case.core.autonomous else abs(case.field.start * case.field.pace) + case.span
    return case.growth * (each + z * (1 + size) * clock * case.eps)


def coefficients(algorithm: pynode.Algorithm | None) -> tuple[float, float]:
    """A and B of :func:`rounding`."""
    name = getattr(getattr(algorithm, "nonstiff", algorithm), "name", "")
    if name not in TABLEAUS:
        return 1.0, 0.0
    tableau = TABLEAUS[name]
    rows = [sum(map(abs, row)) for row in (*tableau.a, *tableau.dense_a)]
    dense = sum(abs(x) for row in tableau.dense_b for x in row)
    return max(1.0, *rows), max(1.0, sum(map(abs, tableau.b)), dense)


#: Whose estimates are multiplied by the inverse of 1 - h gamma J, gamma < 1, to let go of what is damped anyway.
FILTERED = ("KenCarp4", "Kvaerno5", "TRBDF2", "RadauIIA5", "RadauIIA9", "Trapezoid", "ImplicitEuler", "AutoSwitch")


def tolerance_bound(
    case: Case, steps: int, rtol: float, atol: float, size: float, algorithm: pynode.Algorithm | None = None
) -> float:
    """Of the global error in the Euclidean norm: see the module's docstring. A filtered estimate is up to
    ``1 + h lipschitz`` times too small for a step h."""
    local = math.sqrt(case.channels) * (atol + rtol * size)
    filtered = getattr(algorithm, "name", "") in FILTERED
    count = steps + case.span * case.core.lipschitz if filtered else steps
    return count * local * case.growth + rounding(case, steps, size, algorithm)


def error(case: Case, ys: Tensor, tau: Tensor) -> float:
    """Largest Euclidean distance of the saved vectors (T, n) to the solution."""
    return (ys - reference(case, tau)).norm(dim=1).max().item()


#: Whose dense output is quadratic, or no better than the line through slopes.
QUADRATIC = ("AdaptiveHeun", "Fehlberg2", "Rosenbrock23", "ImplicitEuler", "Trapezoid", "TRBDF2")


def between(case: Case, algorithm: pynode.Algorithm, z: float, size: float) -> float:
    """What the interpolant of steps of ``z = h lipschitz`` adds: that of every method is at least as good as the cubic
    through states and slopes of a step, or of the method's own order, with an error of at most z^4 / 384 of the
    solution's size; quadratic ones z^3 / 12. States and slopes are off by what the solution is, and z times that."""
    own = z**3 / 12 if algorithm.name in QUADRATIC else z**4 / 384
    return own * (size + case.core.drive / case.core.lipschitz) * math.sqrt(case.channels)
