"""SciPy's Dormand-Prince on a case: the field is torch's, the state NumPy's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pynode.bench.fields import Case
from pynode.errors import SolveError
from pynode.solution import ReturnCode


def scipy_solve(case: Case) -> Callable[[], Tensor]:
    """``solve_ivp(method="RK45")``, ready. It steps in float64; the field gets states of the case's precision."""
    from scipy.integrate import solve_ivp

    dtype, shape = case.y0.dtype, case.y0.shape
    span, start = tuple(case.t.tolist()), case.y0.reshape(-1).double().numpy()

    def f(t: float, y: Any) -> Any:
        return case.field(torch.tensor(t, dtype=dtype), torch.from_numpy(y).to(dtype).reshape(shape)).reshape(-1)

    def run() -> Tensor:
        with torch.no_grad():
            found = solve_ivp(f, span, start, method="RK45", rtol=case.rtol, atol=case.atol, t_eval=span[-1:])
        if not found.success:
            raise SolveError(f"SciPy: {found.message}", ReturnCode.Unstable, span[0])
        return torch.from_numpy(found.y[:, -1]).reshape(shape)

    return run
