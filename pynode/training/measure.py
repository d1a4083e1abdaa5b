"""A metric over data, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pynode.errors import InputError, SolveError, explain
from pynode.layout import leaves_of
from pynode.nn.neural_ode import NeuralODE
from pynode.solution import Solution
from pynode.training.metrics import Metric, as_metric, values_of
from pynode.training.solving_with import Choice, evaluating, solving_with

Batch = tuple[Any, Any]


@dataclass
class Measurement:
    """A metric over some batches.

    Attributes
    ----------
    values, weights : Tensor (N,)
        One value a sample where the metric gives one, else one a batch, weighted by its size.
    nfe : float
        Evaluations of the fields for a batch.
    failure : str
        Why there are no values: the message of the solve that failed.

    Examples
    --------
    >>> model = pynode.nn.NeuralODE(lambda t, y: -y)
    >>> found = pynode.training.measure(model, [(torch.ones(4, 1), torch.zeros(4, 1))], "mse")
    >>> round(found.values.mean().item(), 4), found.nfe > 0, found.failure  # exp(-2)
    (0.1353, True, '')
    """

    values: Tensor
    weights: Tensor
    nfe: float
    failure: str = ""

    @property
    def value(self) -> float:
        """The mean; NaN if a solve failed."""
        if self.failure:
            return math.nan
        return float((self.values * self.weights).sum() / self.weights.sum())


def measure(
    model: Any, data: Iterable[Batch], metric: Metric | str, algorithm: Choice | None = None, **options: Any
) -> Measurement:
    """The metric of ``model`` on ``data``, in evaluation mode and without gradients.

    Parameters
    ----------
    model : torch.nn.Module
        With at least one :class:`pynode.nn.NeuralODE` in it.
    data : iterable of (x, target)
    metric : callable or str
        ``metric(output, target)``: a number for the batch, or one a sample; ``"accuracy"``, ``"mse"``.
    algorithm, **options
        Of :func:`pynode.training.solving_with`: how to solve.

    Returns
    -------
    Measurement

    Raises
    ------
    InputError
        If there are no data.

    Examples
    --------
    >>> model = pynode.nn.NeuralODE(lambda t, y: -y)
    >>> data = [(torch.ones(4, 1), torch.zeros(4, 1))]
    >>> round(pynode.training.measure(model, data, "mse").values.mean().item(), 4)  # exp(-2)
    0.1353
    >>> pynode.training.measure(model, data, "mse", pynode.Euler(steps=1)).values
    tensor([0., 0., 0., 0.], dtype=torch.float64)
    """
    metric = as_metric(metric)
    nfe, batches = 0, 0
    values: list[Tensor] = []
    weights: list[Tensor] = []
    own = options.pop("hook", None)

    def count(ode: NeuralODE, inputs: tuple[Any, ...], solution: Solution) -> Any:
        nonlocal nfe
        # Asked first: what a hook evaluates on top is part of the price.
        replaced = None if own is None else own(ode, inputs, solution)
        nfe += solution.stats.forward.nfe
        return replaced

    with evaluating(model), solving_with(model, algorithm, hook=count, **options):
        for x, target in data:
            try:
                found = values_of(metric, model(x), target)
            except SolveError as error:
                empty = torch.zeros(0, dtype=torch.float64)
                return Measurement(empty, empty, nfe / (batches + 1), str(error))
            batches += 1
            values.append(found)
            size = 1 if len(found) > 1 else len_of(x)
            weights.append(torch.full_like(found, size))
    if not batches:
        raise InputError(explain("data holds no batch", "an iterable of (x, target)", "pass a list or a DataLoader"))
    return Measurement(torch.cat(values), torch.cat(weights), nfe / batches)


def len_of(x: Any) -> int:
    """Samples in a batch: the length of its first tensor."""
    leaf = next(leaves_of(x))[1]
    return len(leaf) if isinstance(leaf, Tensor) and leaf.ndim else 1


def as_batches(data: Any) -> list[Batch]:
    """``data`` as a list, so that it can be gone through again.

    Raises
    ------
    InputError
        If it is not an iterable of pairs, or empty.
    """
    form = "an iterable of (x, target) batches"
    if isinstance(data, Sequence) and len(data) == 2 and isinstance(data[0], Tensor):
        data = [tuple(data)]
    try:
        batches = [(x, target) for x, target in data]
    except (TypeError, ValueError) as error:
        raise InputError(explain(f"data is a {type(data).__name__} ({error})", form, "pass [(x, target)]")) from error
    if not batches:
        raise InputError(explain("data is empty", form, "an iterator that was used up? pass a list")) from None
    return batches
