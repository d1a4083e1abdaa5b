"""The gated recurrent unit in continuous time."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GRUField(nn.Module):
    """``dh/dt = (1 - u) (g - h)``, ``u = sigmoid(W_u h)``, ``g = tanh(W_g (r h))``, ``r = sigmoid(W_r h)``: GRU-ODE.

    The flow that a GRU without input takes one Euler step of, of length 1 (De Brouwer et al. 2019). States that begin
    within [-1, 1] stay there, and it is Lipschitz: a safe field for :class:`ODERNN`.

    Parameters
    ----------
    hidden : int

    References
    ----------
    De Brouwer, Simm, Arany and Moreau (2019), "GRU-ODE-Bayes: Continuous modeling of sporadically-observed time
    series".

    Examples
    --------
    >>> field = pynode.nn.GRUField(4)
    >>> h = pynode.solve(field, torch.rand(2, 4) * 2 - 1, [0.0, 10.0]).ys[-1]
    >>> bool((h.abs() <= 1).all())  # states stay within [-1, 1]
    True
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.gates = nn.Linear(hidden, 2 * hidden)
        self.candidate = nn.Linear(hidden, hidden)

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        reset, keep = torch.sigmoid(self.gates(h)).chunk(2, -1)
        candidate = torch.tanh(self.candidate(reset * h))
        return (1 - keep) * (candidate - h)


class GRUBayesCell(nn.Module):
    """A jump towards an observation that sees by how much the prediction missed it (De Brouwer et al. 2019).

    For each observed channel the values (x, predicted mean, predicted logarithm of the standard deviation, error over
    standard deviation) are mixed into ``features`` numbers by weights of that channel; those of missing channels are
    zero. A GRU cell reads them.

    Parameters
    ----------
    channels, hidden, features : int
    predict : torch.nn.Module
        From the state to (batch, 2 * channels): means, then logarithms of standard deviations.

    Notes
    -----
    A cell for :class:`ODERNN` with its mask and without gaps. Unlike in the paper, all channels observed at a time are
    read at once.

    Examples
    --------
    >>> cell = pynode.nn.GRUBayesCell(channels=3, hidden=8, predict=torch.nn.Linear(8, 6))
    >>> rnn = pynode.nn.ODERNN(pynode.nn.GRUField(8), cell, hidden=8)
    >>> rnn(torch.linspace(0, 1, 4), torch.randn(2, 4, 3)).after.shape
    torch.Size([2, 4, 8])
    """

    def __init__(self, channels: int, hidden: int, predict: nn.Module, features: int = 4) -> None:
        super().__init__()
        self.predict = predict
        self.mix = nn.Parameter(torch.randn(channels, 4, features) / 2)
        self.shift = nn.Parameter(torch.zeros(channels, features))
        self.cell = nn.GRUCell(channels * features, hidden)

    def forward(self, row: Tensor, h: Tensor) -> Tensor:
        x, mask = row.chunk(2, -1)
        mean, log_std = self.predict(h).chunk(2, -1)
        seen = torch.stack([x, mean, log_std, (x - mean) * torch.exp(-log_std)], -1)
        features = torch.relu((seen.unsqueeze(-2) @ self.mix).squeeze(-2) + self.shift) * mask.unsqueeze(-1)
        updated: Tensor = self.cell(features.flatten(-2), h)
        return updated
