"""The field of a state together with the logarithm of its density."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pynode.errors import FieldError, explain
from pynode.nn.trace import contracted, probed


class LogDensity(torch.nn.Module):
    """``dz/dt = f(t, z[, context])``, ``d log p/dt = -tr(df/dz)``: the instantaneous change of variables.

    A field of the state ``(z, log_p)`` with the arguments ``(probes[, context])``, for :func:`pynode.solve` and
    :func:`pynode.julia.source`. The noise of an estimated trace comes in as an argument, so that all evaluations of a
    solve, and of its adjoint, are of one deterministic field.

    Parameters
    ----------
    f : torch.nn.Module or callable
        ``f(t, z)`` or ``f(t, z, context)`` for ``z`` (batch..., event...), acting on every element of the batch on its
        own (no batch normalisation); twice differentiable (tanh, SiLU, softplus; not ReLU) where gradients are wanted.
    event_ndim : int
        Number of trailing dimensions of ``z`` that are one element's.

    References
    ----------
    Chen et al. (2018), "Neural ordinary differential equations", theorem 1.

    Examples
    --------
    >>> field = pynode.nn.LogDensity(lambda t, z: 3 * z)
    >>> probes = pynode.nn.ExactTrace().probes(torch.zeros(1, 2), 1)
    >>> field(torch.tensor(0.0), (torch.ones(1, 2), torch.zeros(1)), probes)[1]  # minus the trace of 3 I
    tensor([-6.])
    """

    def __init__(self, f: Callable[..., Any], event_ndim: int = 1) -> None:
        super().__init__()
        self.f = f
        self.event_ndim = event_ndim

    def forward(
        self, t: Tensor, state: tuple[Tensor, Tensor], probes: Tensor, *context: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Derivatives (batch..., event...) and (batch...). ``probes``: see :mod:`pynode.nn.trace`."""
        z, _ = state
        dz, products = probed(lambda z: _same_shape(self.f(t, z, *context), z), z, probes)
        return dz, -contracted(products * probes, self.event_ndim)


def _same_shape(dz: Any, z: Tensor) -> Tensor:
    """``dz``, after raising FieldError where it is no derivative of ``z``: the products would fail with less to say."""
    if isinstance(dz, Tensor) and dz.shape == z.shape and dz.dtype == z.dtype:
        return dz
    came = f"{dz.dtype} of shape {tuple(dz.shape)}" if isinstance(dz, Tensor) else f"a {type(dz).__name__}"
    raise FieldError(
        explain(
            f"f(t, z) returned {came}",
            f"a tensor like z, {z.dtype} of shape {tuple(z.shape)}",
            "let the field's last layer have as many features as z",
        )
    )
