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


def rounding(case: Case, steps: int, size: float, stages: int = 20) -> float:
    """What rounding adds up to: a step is a sum of ``stages + n`` products, each rounded relative to ``size`` times
    ``1 + h lipschitz``, and the field sees its time rounded in units of the state's precision."""
    h = case.span * case.core.lipschitz / steps
    each = (stages + case.channels) * (1.0 + h) * case.eps * size
    clock = 0.0 if case.core.autonomous else abs(case.field.start * case.field.pace) + case.span
    return case.growth * (steps * each + case.span * case.core.lipschitz * (1 + size) * clock * case.eps)


def tolerance_bound(case: Case, steps: int, rtol: float, atol: float, size: float) -> float:
    """Of the global error in the Euclidean norm: see the module's docstring."""
    local = math.sqrt(case.channels) * (atol + rtol * size)
    return steps * local * case.growth + rounding(case, steps, size)


def error(case: Case, ys: Tensor, tau: Tensor) -> float:
    """Largest Euclidean distance of the saved vectors (T, n) to the solution."""
    return (ys - reference(case, tau)).norm(dim=1).max().item()
