"""A generative model of time series: a random initial state, a differential equation, noisy observations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from pynode.controls.observations import check_series
from pynode.errors import InputError, explain
from pynode.nn.neural_ode import NeuralODE
from pynode.nn.ode_rnn import ODERNN


class Recognition(nn.Module):
    """``q(z0 | x)``: a network run backwards over a series, and a layer from its state at the first row.

    Parameters
    ----------
    rnn : ODERNN
        Made with ``reverse=True``: an ODE-RNN (Rubanova et al. 2019), or with ``f=None`` an RNN (Chen et al. 2018).
    readout : torch.nn.Module
        From its state to (batch, 2 * latent): means, then logarithms of standard deviations.

    Examples
    --------
    >>> rnn = pynode.nn.ODERNN(None, torch.nn.GRUCell(2, 8), hidden=8, reverse=True)
    >>> posterior = pynode.nn.Recognition(rnn, torch.nn.Linear(8, 4))(torch.linspace(0, 1, 5), torch.randn(3, 5, 1))
    >>> posterior.mean.shape, bool((posterior.stddev > 0).all())
    (torch.Size([3, 2]), True)
    """

    def __init__(self, rnn: ODERNN, readout: nn.Module) -> None:
        super().__init__()
        if not rnn.reverse:
            raise InputError(
                explain("the recognition network runs forward", "one that ends at the first row", "pass reverse=True")
            )
        self.rnn = rnn
        self.readout = readout

    def forward(self, ts: Tensor, x: Tensor) -> Normal:
        """The posterior of the state at ``ts[0]``: batch shape (batch, latent)."""
        mean, log_std = self.readout(self.rnn(ts, x).after[..., 0, :]).chunk(2, -1)
        return Normal(mean, log_std.exp())


@dataclass(frozen=True)
class ELBO:
    """The terms of the evidence lower bound, each (batch,), differentiable.

    Attributes
    ----------
    log_likelihood : Tensor
        ``E_q[log p(x | z0)]``, the mean over the samples drawn.
    kl : Tensor
        ``KL(q(z0 | x) || p(z0))``, exact.

    Examples
    --------
    >>> bound = pynode.nn.ELBO(log_likelihood=torch.tensor([-1.0]), kl=torch.tensor([0.5]))
    >>> bound.value(), bound.value(kl_weight=0.0)
    (tensor([-1.5000]), tensor([-1.]))
    """

    log_likelihood: Tensor
    kl: Tensor

    def value(self, kl_weight: float | Tensor = 1.0) -> Tensor:
        """``log_likelihood - kl_weight * kl`` (batch,): the bound itself at 1; training may anneal it from 0."""
        return self.log_likelihood - kl_weight * self.kl


class LatentODE(nn.Module):
    """``z(t0) ~ N(0, 1)``, ``dz/dt = f(t, z)``, ``x(t) ~ N(decoder(z(t)), noise_std^2)`` (Chen et al. 2018).

    Parameters
    ----------
    encoder : torch.nn.Module
        ``encoder(ts, x)`` gives the posterior ``Normal`` of ``z(ts[0])``, (batch, latent); see :class:`Recognition`.
    f : torch.nn.Module or callable
        The field ``f(t, z)`` of the latent state (samples, batch, latent).
    decoder : torch.nn.Module or callable
        From latent states (..., latent) to observations (..., channels).
    noise_std : float or Tensor
        Standard deviation of the observations' noise, a number or one a channel; a Parameter is learned.
    **options
        As for :class:`NeuralODE`: algorithm, sensealg, tolerances, backend...

    Notes
    -----
    A batch shares the grid ``ts`` (the union of its samples' times, :func:`pynode.controls.on_shared_times`), NaN
    marks what is missing. All latent states of a batch are one solve over the union of times.

    References
    ----------
    Chen, Rubanova, Bettencourt and Duvenaud (2018), "Neural Ordinary Differential Equations"; Rubanova, Chen and
    Duvenaud (2019), "Latent ODEs for Irregularly-Sampled Time Series".

    Examples
    --------
    >>> rnn = pynode.nn.ODERNN(None, torch.nn.GRUCell(2, 8), hidden=8, reverse=True)
    >>> encoder = pynode.nn.Recognition(rnn, torch.nn.Linear(8, 4))
    >>> model = pynode.nn.LatentODE(encoder, lambda t, z: -z, torch.nn.Linear(2, 1))
    >>> ts, x = torch.linspace(0, 1, 5), torch.randn(3, 5, 1)
    >>> model.elbo(ts, x).value().shape
    torch.Size([3])
    """

    noise_std: Tensor

    def __init__(
        self, encoder: nn.Module, f: Any, decoder: Any, noise_std: float | Tensor = 0.1, **options: Any
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.flow = NeuralODE(f, **options)
        self.decoder = decoder
        if isinstance(noise_std, nn.Parameter):
            self.noise_std = noise_std
        else:
            self.register_buffer("noise_std", torch.as_tensor(noise_std, dtype=torch.get_default_dtype()))
        if bool((self.noise_std <= 0).any()):
            raise InputError(explain(f"noise_std = {noise_std}", "positive numbers", "give a standard deviation"))

    def encode(self, ts: Tensor, x: Tensor) -> Normal:
        """The posterior of the latent state at ``ts[0]``."""
        check_series(ts, x)
        posterior: Normal = self.encoder(ts, x)
        return posterior

    def decode(self, z0: Tensor, t0: Tensor | float, ts: Tensor) -> Tensor:
        """Means of the observations at ``ts`` (M,), increasing from ``t0`` on or decreasing from it, given ``z(t0)``.

        Parameters
        ----------
        z0 : Tensor
            (..., latent).

        Returns
        -------
        Tensor
            (..., M, channels).
        """
        start = torch.as_tensor(t0, dtype=ts.dtype, device=ts.device).reshape(1)
        times = ts if bool(ts[0] == start[0]) else torch.cat([start, ts])
        states = self.flow.trajectory(z0, times) if len(times) > 1 else z0.unsqueeze(0)
        means: Tensor = self.decoder(states[-len(ts) :].movedim(0, -2))
        return means

    def elbo(self, ts: Tensor, x: Tensor, samples: int = 1) -> ELBO:
        """The evidence lower bound of ``x`` (batch, T, channels), by reparametrised draws from the posterior.

        Only observed values count. Annealing the KL term is the caller's: ``model.elbo(ts, x).value(weight)``.
        """
        posterior = self.encode(ts, x)
        z0 = posterior.rsample(torch.Size([samples]))
        return ELBO(self.log_likelihood(ts, x, z0).mean(0), standard_normal_kl(posterior).sum(-1))

    def log_likelihood(self, ts: Tensor, x: Tensor, z0: Tensor) -> Tensor:
        """``log p(x | z0)`` (..., batch) of the observed values, given ``z(ts[0])`` (..., batch, latent).

        ``ts`` may decrease: of a state in the middle of a series, that of the values before it.
        """
        means = self.decode(z0, ts[0], ts)
        observed = x.isnan().logical_not()
        # A residual with a NaN in it would poison gradients even where it is not summed.
        residual = torch.where(observed, x, means) - means
        terms = -0.5 * (residual / self.noise_std) ** 2 - torch.log(self.noise_std) - 0.5 * math.log(2 * math.pi)
        return torch.where(observed, terms, 0.0).sum((-2, -1))

    def forward(self, ts: Tensor, x: Tensor, at: Tensor, samples: int | None = None) -> Tensor:
        """Predictions at the times ``at`` (M,), increasing from ``ts[0]`` on, given observations ``x`` at ``ts``.

        Parameters
        ----------
        samples : int, optional
            Number of draws from the posterior; by default its mean is decoded.

        Returns
        -------
        Tensor
            (batch, M, channels), or (samples, batch, M, channels): means given each draw, without noise.
        """
        posterior = self.encode(ts, x)
        z0 = posterior.mean if samples is None else posterior.rsample(torch.Size([samples]))
        return self.decode(z0, ts[0], at)

    def sample(
        self, t0: float, ts: Tensor, count: int, latent: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """``count`` new series (count, M, channels) at ``ts``, without noise, from the prior of ``z(t0)``."""
        z0 = torch.randn(count, latent, generator=generator, dtype=ts.dtype, device=ts.device)
        return self.decode(z0, t0, ts)


def standard_normal_kl(q: Normal) -> Tensor:
    """``KL(q || N(0, 1))`` of each component: ``(mean^2 + std^2 - 1) / 2 - log std``."""
    return 0.5 * (q.mean**2 + q.stddev**2 - 1) - q.stddev.log()
