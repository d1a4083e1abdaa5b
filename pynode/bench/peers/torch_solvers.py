"""torchode and torchdyn as solvers of a case on tensors."""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor

from pynode.bench.fields import Case


class TorchOde:
    """torchode's Dormand-Prince with its integral controller, each row of the batch in steps of its own; gradients by
    backpropagation. Rows are flattened, as it takes states (batch, features) only."""

    def __call__(self, case: Case, y0: Tensor) -> Tensor:
        torchode: Any = importlib.import_module("torchode")
        shape = y0.shape if y0.ndim > 1 else (1, *y0.shape)
        rows = y0.reshape(shape[0], -1)

        def f(t: Tensor, y: Tensor) -> Tensor:
            if y0.ndim > 1:
                slope: Tensor = case.field(t, y.reshape(-1, *shape[1:]))
                return slope.flatten(1)
            single: Tensor = case.field(t[0], y[0])
            return single[None]

        term = torchode.ODETerm(f)
        controller = torchode.IntegralController(atol=case.atol, rtol=case.rtol, term=term)
        solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term=term), controller)
        t_eval = case.t.to(y0.dtype).repeat(len(rows), 1)
        values: Tensor = solver.solve(torchode.InitialValueProblem(y0=rows, t_eval=t_eval)).ys
        return values[:, -1].reshape(y0.shape)


class TorchDyn:
    """``torchdyn.numerics.odeint`` with its Dormand-Prince; gradients by backpropagation, its default."""

    def __call__(self, case: Case, y0: Tensor) -> Tensor:
        numerics: Any = importlib.import_module("torchdyn.numerics")
        _, values = numerics.odeint(case.field, y0, case.t, solver="dopri5", atol=case.atol, rtol=case.rtol)
        end: Tensor = values[-1]
        return end
