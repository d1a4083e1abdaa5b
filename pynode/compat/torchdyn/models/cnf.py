"""Continuous normalising flows on states ``(log-density, x)`` side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pynode.compat.torchdyn.ambient import current
from pynode.compat.torchdyn.unsupported import refuse
from pynode.errors import InputError, explain
from pynode.nn import ExactTrace
from pynode.nn.trace import contracted, probed


def autograd_trace(x_out: Tensor, x_in: Tensor, **kwargs: Any) -> Tensor:
    """Trace of ``d x_out / d x_in`` (batch,), row by row, for tensors (batch, d): one backward pass a dimension."""
    rows = [
        torch.autograd.grad(x_out[:, i].sum(), x_in, create_graph=True)[0][:, i] for i in range(x_in.shape[1])
    ]  # fmt: skip
    return torch.stack(rows).sum(dim=0)


def hutch_trace(x_out: Tensor, x_in: Tensor, noise: Tensor | None = None, **kwargs: Any) -> Tensor:
    """Hutchinson's estimate ``noise^T (d x_out / d x_in) noise`` of the trace (batch,), one backward pass."""
    if noise is None:
        raise InputError(explain("hutch_trace has no noise", "noise like x_in", "pass noise=, or noise_dist= to CNF"))
    (product,) = torch.autograd.grad(x_out, x_in, noise, create_graph=True)
    return (product * noise).sum(dim=1)


class CNF(torch.nn.Module):
    """The field of ``(log p, x)``, ``d log p = -tr(d net/dx)``, for a NeuralODE behind ``Augmenter(1, 1)``.

    :class:`pynode.nn.CNF` is a whole flow, with ``log_prob`` and ``sample``.

    Parameters
    ----------
    net : torch.nn.Module
        Of ``x`` (batch, d), each row on its own.
    trace_estimator : callable, optional
        ``autograd_trace`` (default), ``hutch_trace``, or a function ``(x_out, x_in, noise=None)``.
    noise_dist : torch.distributions.Distribution, optional
        Of the noise, drawn once for each solve.
    order : int
        1.
    """

    def __init__(
        self,
        net: torch.nn.Module,
        trace_estimator: Callable[..., Tensor] | None = None,
        noise_dist: Any = None,
        order: int = 1,
    ) -> None:
        super().__init__()
        if order != 1:
            refuse("CNF of higher order", "give NeuralODE the order")
        self.net = net
        self.order = order
        self.trace_estimator = autograd_trace if trace_estimator is None else trace_estimator
        self.noise_dist = noise_dist
        if trace_estimator is hutch_trace and noise_dist is None:
            raise InputError(
                explain("hutch_trace without noise_dist", "the distribution of its noise", "pass noise_dist=")
            )

    def forward(self, x: Tensor) -> Tensor:
        """Derivative (batch, 1 + d)."""
        state = x[:, 1:]
        noise = current("CNF").noise.get(id(self))
        if noise is None and self.noise_dist is not None:
            raise InputError(explain("CNF has no noise", "a solve, which draws it", "write model.vf(t, x, noise=(e,))"))
        if self.trace_estimator is autograd_trace or self.trace_estimator is hutch_trace:
            probes = ExactTrace().probes(state, 1) if self.trace_estimator is autograd_trace else noise
            assert probes is not None
            probes = probes if probes.ndim == 3 else probes[None]
            slope, products = probed(self.net, state, probes)
            trace = contracted(products * probes, 1)
        else:
            with torch.enable_grad():
                state = state if state.requires_grad else state.detach().requires_grad_()
                slope = self.net(state)
                trace = self.trace_estimator(slope, state, noise=noise)
        return torch.cat([-trace[:, None], slope], dim=1)
