"""The trace of a field's Jacobian, from products of the Jacobian with probe vectors.

For probes ``v_k`` with ``sum_k E[v_k v_k^T] = 1``, ``sum_k v_k^T J v_k`` is the trace of ``J`` in expectation. The
standard basis gives it exactly; random probes give an unbiased estimate for the price of one product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pynode.errors import InputError, explain


class TraceEstimator:
    """Base class: where the probes come from."""

    def probes(self, z: Tensor, event_ndim: int, generator: torch.Generator | None = None) -> Tensor:
        """Probes (K, batch..., event...) for states ``z`` (batch..., event...), or with ones for the batch."""
        raise NotImplementedError


@dataclass(frozen=True)
class ExactTrace(TraceEstimator):
    """``tr J = sum_i e_i^T J e_i`` over the standard basis: one vector-Jacobian product a dimension, in one batch.

    Examples
    --------
    >>> exact = pynode.nn.CNF(lambda t, z: torch.sin(z), 3, trace=pynode.nn.ExactTrace())
    >>> x = torch.randn(2, 3)
    >>> torch.equal(exact.log_prob(x), exact.log_prob(x))  # no noise in it
    True
    """

    def probes(self, z: Tensor, event_ndim: int, generator: torch.Generator | None = None) -> Tensor:
        """The basis, (d, 1..., event...)."""
        event = z.shape[z.ndim - event_ndim :]
        basis = torch.eye(math.prod(event), dtype=z.dtype, device=z.device)
        return basis.reshape(-1, *[1] * (z.ndim - event_ndim), *event)


@dataclass(frozen=True)
class HutchinsonTrace(TraceEstimator):
    """``tr J = E[e^T J e]`` for noise with mean zero and unit covariance: one product whatever the dimension.

    Parameters
    ----------
    noise : "rademacher" or "gaussian"
        Rademacher noise has the smaller variance, ``2 (|S|_F^2 - sum_i S_ii^2)`` for the symmetric part ``S`` of
        ``J``, against ``2 |S|_F^2``.
    samples : int
        Independent probes whose estimates are averaged.

    References
    ----------
    Hutchinson (1990), "A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines";
    Grathwohl et al. (2019), "FFJORD: free-form continuous dynamics for scalable reversible generative models".

    Examples
    --------
    >>> a = torch.tensor([[1.0, 0.5], [0.0, 2.0]])
    >>> estimate = pynode.nn.HutchinsonTrace(samples=2000)
    >>> probes = estimate.probes(torch.zeros(1, 2), 1, torch.Generator().manual_seed(0))
    >>> abs((probes @ a * probes).sum().item() - 3.0) < 0.1  # the trace of a
    True
    """

    noise: str = "rademacher"
    samples: int = 1

    def __post_init__(self) -> None:
        if self.noise not in ("rademacher", "gaussian"):
            raise InputError(
                explain(f"HutchinsonTrace(noise={self.noise!r})", "'rademacher' or 'gaussian'", "use 'rademacher'")
            )
        if self.samples != int(self.samples) or self.samples < 1:
            raise InputError(explain(f"HutchinsonTrace(samples={self.samples})", "an integer >= 1", "give 1"))

    def probes(self, z: Tensor, event_ndim: int, generator: torch.Generator | None = None) -> Tensor:
        """Fresh noise (samples, batch..., event...), over the root of ``samples``."""
        shape = (self.samples, *z.shape)
        if self.noise == "gaussian":
            drawn = torch.randn(shape, generator=generator, dtype=z.dtype, device=z.device)
        else:
            drawn = torch.randint(0, 2, shape, generator=generator, dtype=z.dtype, device=z.device) * 2 - 1
        return drawn / math.sqrt(self.samples)


def probed(f: Callable[[Tensor], Tensor], z: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
    """``f(z)``, and ``v_k^T df/dz`` for every probe, (K, batch..., event...).

    ``f`` maps each element of a batch on its own. Differentiable, inside transforms too: ``f`` has to be twice
    differentiable for a gradient of the products.
    """
    dz, pull = torch.func.vjp(f, z)[:2]
    probes = probes.expand(-1, *z.shape)
    if len(probes) == 1:  # vmap would only cost time
        return dz, pull(probes[0])[0][None]
    return dz, torch.func.vmap(pull)(probes)[0]


def contracted(x: Tensor, event_ndim: int) -> Tensor:
    """The sum over probes and event dimensions: (K, batch..., event...) to (batch...)."""
    return x.sum([0, *range(x.ndim - event_ndim, x.ndim)])
