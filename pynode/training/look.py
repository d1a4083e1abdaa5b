"""One look of a StepAdapter at its batches, and the comparison of two."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from pynode.errors import InputError, explain
from pynode.training.gap import gap_between
from pynode.training.measure import Batch, Measurement, measure
from pynode.training.metrics import Metric
from pynode.training.solving_with import Choice
from pynode.training.state_space import output_distance


@dataclass
class Look:
    """A metric over the batches, or (without a metric) the model's outputs for them."""

    found: Measurement
    outputs: list[Any] | None

    @property
    def value(self) -> float:
        return self.found.value

    @property
    def nfe(self) -> float:
        return self.found.nfe


def look(
    model: Any, batches: Iterable[Batch], metric: Metric | None, choice: Choice | None, options: dict[str, Any]
) -> Look:
    """The batches, solved by ``choice`` and ``options`` (see :func:`pynode.training.solving_with`)."""
    if metric is not None:
        return Look(measure(model, batches, metric, choice, **options), None)
    outputs: list[Any] = []

    def keep(output: Any, target: Any) -> float:
        outputs.append(output)
        return 0.0

    return Look(measure(model, batches, keep, choice, **options), outputs)


def compare(train: Look, test: Look, relative: bool, confidence: float | None) -> tuple[float, float]:
    """The gap of two looks, and half the width of its confidence interval (normal, of the paired differences).

    Raises
    ------
    InputError
        If there is but one number for the interval.
    """
    if train.found.failure or test.found.failure:
        return math.inf, 0.0
    if train.outputs is not None and test.outputs is not None:
        each = [output_distance(a, b) for a, b in zip(train.outputs, test.outputs, strict=True)]
        return sum(each) / len(each), 0.0
    gap = gap_between(train.value, test.value, relative)
    if confidence is None:
        return gap, 0.0
    difference = test.found.values - train.found.values
    if len(difference) < 2:
        raise InputError(
            explain(
                "confidence= with one number in all from the metric",
                "a metric of one number a sample, or batches=2 or more",
                "return losses before their mean (reduction='none')",
            )
        )
    z = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
    margin = z * float(difference.std()) / math.sqrt(len(difference))
    return gap, margin / (max(abs(train.value), 1e-300) if relative else 1.0)


class Unpacked(torch.nn.Module):
    """A model called with the tuple of its arguments."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: tuple[Any, ...]) -> Any:
        return self.model(*inputs)
