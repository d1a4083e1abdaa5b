"""Fields given by a formula, written once for torch and for ``jax.numpy``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

#: ``formula(xp, t, y, p)``: the derivative, in the array library ``xp``, with the parameters ``p`` by name.
Formula = Callable[[Any, Any, Any, dict[str, Any]], Any]


class FormulaField(nn.Module):
    """A formula with its parameters as ``nn.Parameter``s of the same names.

    Examples
    --------
    >>> field = pynode.problems.FormulaField(lambda xp, t, y, p: -p["rate"] * y, rate=2.0)
    >>> round(pynode.solve(field, torch.ones(1, dtype=torch.float64), [0.0, 1.0]).ys[-1].item(), 4)  # exp(-2)
    0.1353
    >>> [name for name, _ in field.named_parameters()]
    ['rate']
    """

    def __init__(self, formula: Formula, **parameters: Any) -> None:
        super().__init__()
        self.formula = formula
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(torch.as_tensor(value, dtype=torch.float64)))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        derivative: Tensor = self.formula(torch, t, y, self._parameters)
        return derivative
