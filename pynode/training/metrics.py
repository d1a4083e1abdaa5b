"""What a model is judged by: accuracy, squared error, or a function of yours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pynode.errors import InputError, explain

#: ``metric(output, target)``: a number for the batch, or one for each of its samples.
Metric = Callable[[Any, Any], Any]


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """1 for each sample that is classified rightly, else 0.

    Parameters
    ----------
    output : Tensor (B, classes, ...) or (B, 1) or (B,)
        Logits; with one number a sample, positive ones mean the second class.
    target : Tensor
        Class numbers, or 0 and 1 (or -1 and 1) for one logit.

    Returns
    -------
    Tensor (B, ...), float64

    Examples
    --------
    >>> pynode.training.accuracy(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
    tensor([1., 0.], dtype=torch.float64)
    """
    if output.ndim > 1 and output.shape[1] > 1:
        return (output.argmax(1) == target).double()
    return ((output > 0).reshape(-1) == (target > 0).reshape(-1)).double()


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample: (B,), float64.

    Examples
    --------
    >>> pynode.training.squared_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]]))
    tensor([2.5000], dtype=torch.float64)
    """
    return (output - target).detach().double().pow(2).reshape(len(output), -1).mean(1)


METRICS: dict[str, Metric] = {"accuracy": accuracy, "mse": squared_error}


def as_metric(metric: Metric | str) -> Metric:
    """A function from itself or its name.

    Raises
    ------
    InputError
        For another name, or what cannot be called.
    """
    if isinstance(metric, str) and metric in METRICS:
        return METRICS[metric]
    if not callable(metric):
        raise InputError(
            explain(
                f"metric is {metric!r}", f"{' or '.join(map(repr, METRICS))}, or metric(output, target)", "pass one"
            )
        )
    return metric


def values_of(metric: Metric, output: Any, target: Any) -> Tensor:
    """What the metric says of a batch: one number, or one a sample, as a float64 vector on the CPU.

    Raises
    ------
    InputError
        If it returns something else.
    """
    found = metric(output, target)
    try:
        values = torch.as_tensor(found).detach().to("cpu", torch.float64).reshape(-1)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            explain(f"the metric returned a {type(found).__name__}", "a number or a tensor", "return loss or accuracy")
        ) from error
    if values.numel() == 0:
        raise InputError(explain("the metric returned no number", "one for the batch or each sample", "check it"))
    return values
