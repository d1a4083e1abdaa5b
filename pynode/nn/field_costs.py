"""Running costs made of a field: what makes a flow easy to integrate (RNODE: Finlay et al. 2020, "How to train your
neural ODE").

Each is a rate ``l(t, y, *args)`` per element of the batch, for ``running_cost=`` of :func:`pynode.solve`,
:class:`pynode.nn.NeuralODE` and :class:`pynode.nn.CNF`, alone or among others in
:class:`pynode.training.RunningCosts`. They hold the field without registering it: a model that has field and cost
lists its parameters once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pynode.errors import InputError, explain
from pynode.layout import Tree, leaves_of
from pynode.nn.trace import ExactTrace, TraceEstimator, contracted, probed
from pynode.nn.trees import check_callable


class FieldCost:
    """Base class of the running costs of a field.

    Parameters
    ----------
    f : callable
        The field of the solve, ``f(t, y, *args)``.
    event_ndim : int
        Number of trailing dimensions of ``y`` (of each of its leaves) that are one element's.
    weight : float
        Of the cost's batch mean in :meth:`pynode.training.RunningCosts.penalty`. May be changed during training.

    Examples
    --------
    >>> cost = pynode.nn.KineticEnergy(lambda t, y: -y, weight=0.1)
    >>> isinstance(cost, pynode.nn.FieldCost), cost.event_ndim, cost.weight
    (True, 1, 0.1)
    """

    def __init__(self, f: Callable[..., Any], event_ndim: int = 1, weight: float = 1.0) -> None:
        check_callable("f", f, "f(t, y, *args)")
        if isinstance(event_ndim, bool) or not isinstance(event_ndim, int) or event_ndim < 0:
            raise InputError(explain(f"event_ndim = {event_ndim!r}", "an integer >= 0", "1 for vectors, 3 for images"))
        self.f = f
        self.event_ndim = event_ndim
        self.weight = weight

    def __call__(self, t: Tensor, y: Tree, *args: Any) -> Tensor:
        """Rate (batch...)."""
        raise NotImplementedError

    def flow_rate(self, t: Tensor, z: Tensor, probes: Tensor, *context: Tensor) -> Tensor:
        """Rate (batch...) within a :class:`pynode.nn.CNF`, whose trace has these probes."""
        return self(t, z, *context)

    def drawn(self, y0: Tree, generator: torch.Generator | None = None) -> FieldCost:
        """The cost for one solve from ``y0``: with noise of its own, where it has any."""
        return self


class KineticEnergy(FieldCost):
    """``|f(t, y)|^2``: its integral is the cost of transport along straight lines at constant speed, and more off them.

    Finlay et al. (2020), who write it for normalising flows. Default weight 0.01.

    Parameters
    ----------
    f, event_ndim, weight
        See :class:`FieldCost`. ``y`` may be a tree.

    Examples
    --------
    >>> cost = pynode.nn.KineticEnergy(lambda t, y: 2 * y)
    >>> cost(torch.tensor(0.0), torch.ones(1, 3))  # 3 * 2^2
    tensor([12.])
    """

    def __init__(self, f: Callable[..., Any], event_ndim: int = 1, weight: float = 0.01) -> None:
        super().__init__(f, event_ndim, weight)

    def __call__(self, t: Tensor, y: Tree, *args: Any) -> Tensor:
        """Rate (batch...)."""
        return squared_norm(self.f(t, y, *args), self.event_ndim)


class JacobianFrobenius(FieldCost):
    """``|df/dy|_F^2``, exact, or by noise ``e`` of unit covariance as ``|e^T df/dy|^2``, which has that expectation.

    Finlay et al. (2020). Default weight 0.01. Within a :class:`pynode.nn.CNF` the probes are those of the flow's trace.
    ``f`` has to be twice differentiable (tanh, SiLU; not ReLU) for a gradient.

    Parameters
    ----------
    f, event_ndim, weight
        See :class:`FieldCost`. ``y`` is a tensor, each element of whose batch ``f`` maps on its own.
    probes : TraceEstimator
        ``ExactTrace()``: one product a dimension. ``HutchinsonTrace()``: one in all, with noise that
        :class:`pynode.nn.NeuralODE` draws for each solve; elsewhere, ``cost.drawn(y0)`` is the cost for one solve.

    Examples
    --------
    >>> a = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    >>> cost = pynode.nn.JacobianFrobenius(lambda t, y: y @ a.T)
    >>> cost(torch.tensor(0.0), torch.zeros(1, 2))  # 1 + 4 + 1
    tensor([6.])
    """

    def __init__(
        self,
        f: Callable[..., Any],
        event_ndim: int = 1,
        weight: float = 0.01,
        probes: TraceEstimator = ExactTrace(),  # noqa: B008  (immutable)
    ) -> None:
        super().__init__(f, event_ndim, weight)
        self.probes = probes
        self._noise: Tensor | None = None

    def __call__(self, t: Tensor, y: Tree, *args: Any) -> Tensor:
        """Rate (batch...)."""
        noise = self._noise
        if isinstance(self.probes, ExactTrace):
            noise = self.probes.probes(_tensor(y), self.event_ndim)
        elif noise is None:
            raise InputError(
                explain(
                    f"JacobianFrobenius(probes={self.probes}) was called without noise",
                    "one draw for a whole solve",
                    "attach it to a NeuralODE or a CNF, which draw it, or pass cost.drawn(y0)",
                )
            )
        return self.flow_rate(t, y, noise, *args)

    def flow_rate(self, t: Tensor, z: Tensor, probes: Tensor, *context: Tensor) -> Tensor:
        """Rate (batch...) with these probes."""
        _, products = probed(lambda z: self.f(t, z, *context), _tensor(z), probes)
        return contracted(products.square(), self.event_ndim)

    def drawn(self, y0: Tree, generator: torch.Generator | None = None) -> JacobianFrobenius:
        """The cost for one solve from ``y0``, with fresh noise."""
        if isinstance(self.probes, ExactTrace):
            return self
        own = copy.copy(self)
        own._noise = self.probes.probes(_tensor(y0).detach(), self.event_ndim, generator)
        return own


class OnFlow:
    """A field's cost as the CNF integrates it: ``l(t, (z, log_p), probes, *context)``."""

    def __init__(self, cost: Any) -> None:
        self.cost = cost
        self.of_steps = getattr(cost, "of_steps", ())

    def __call__(self, t: Tensor, state: tuple[Tensor, Tensor], probes: Tensor, *context: Tensor) -> Any:
        return self.cost.flow_rate(t, state[0], probes, *context)


def squared_norm(tree: Tree, event_ndim: int) -> Tensor:
    """``|.|^2`` of every element of a batch, over all leaves: (batch...)."""
    parts = [contracted((leaf * leaf.conj()).real[None], event_ndim) for _, leaf in leaves_of(tree, "y")]
    return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]


def _tensor(y: Tree) -> Tensor:
    if not isinstance(y, Tensor):
        raise InputError(
            explain(f"the state is a {type(y).__name__}", "a tensor, for the Jacobian", "flatten the tree into one")
        )
    return y
