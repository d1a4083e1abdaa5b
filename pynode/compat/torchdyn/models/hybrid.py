"""Recurrent models with a continuous flow between jumps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pynode.compat.torchdyn.core.neuralde import NeuralODE
from pynode.compat.torchdyn.unsupported import Refused


class LatentNeuralSDE(Refused):
    """Stochastic: raises UnsupportedError."""


class HybridNeuralDE(torch.nn.Module):
    """At each element of a sequence a jump, then a flow: ``h = flow(jump(x_t, h))``, ``y = out(h)``.

    For irregular times and missing values see :class:`pynode.nn.ODERNN`.

    Parameters
    ----------
    flow : callable
        Of the hidden state (batch, hidden); of a ``NeuralODE`` the state at the last time.
    jump : torch.nn.RNNCell, GRUCell, LSTMCell, or module like these
        Called with ``(x_t, h)``; has an attribute ``hidden_size``. The cell state of an LSTMCell does not flow.
    out : callable
        Of all hidden states (T, batch, hidden).
    last_output : bool
        Return the output of the last element only.
    reverse : bool
        Take the sequence from its end.
    """

    def __init__(
        self, flow: Callable[..., Any], jump: Any, out: Callable[[Tensor], Tensor], last_output: bool = True,
        reverse: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.flow, self.jump, self.out = flow, jump, out
        self.last_output, self.reverse = last_output, reverse

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (T, batch, features) to outputs (T, batch, ...), or the last one."""
        h = cell = x.new_zeros(x.shape[1], self.jump.hidden_size)
        states = []
        for element in x.flip(0) if self.reverse else x:
            if isinstance(self.jump, torch.nn.LSTMCell):
                h, cell = self.jump(element, (h, cell))
            else:
                h = self.jump(element, h)
            flowed = self.flow(h)
            if isinstance(self.flow, NeuralODE):
                flowed = (flowed[1] if self.flow.return_t_eval else flowed)[-1]
            h = flowed
            states.append(h)
        outputs = self.out(torch.stack(states))
        return outputs[-1] if self.last_output else outputs
