"""Training a classifier and recording what it took."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pynode.demo.data import Dataset
from pynode.demo.models import Classifier
from pynode.errors import PynodeError, explain

_TEST_BATCH = 500


@dataclass(frozen=True)
class Epoch:
    """One pass over the training images.

    Attributes
    ----------
    loss : float
        Mean cross entropy over the training images, as they were met.
    accuracy : float
        Share of the test images classified correctly afterwards.
    forward_nfe, backward_nfe, backward_nvjp : float
        Evaluations of the body's field in a forward pass, evaluations and pullbacks in a backward pass: means over
        the batches.
    seconds : float
        Training only, without the test.
    """

    loss: float
    accuracy: float
    forward_nfe: float
    backward_nfe: float
    backward_nvjp: float
    seconds: float


@dataclass
class History:
    """The epochs of one training run, in order."""

    epochs: list[Epoch] = field(default_factory=list)

    @property
    def last(self) -> Epoch:
        return self.epochs[-1]

    @property
    def seconds_per_epoch(self) -> float:
        """Median: the first epoch pays for warming up, and a busy machine for its neighbours."""
        return statistics.median(epoch.seconds for epoch in self.epochs)


def train(
    model: Classifier,
    data: Dataset,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    on_batch: Callable[[float], None] = lambda loss: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> History:
    """Train with AdamW under a one-cycle schedule.

    Parameters
    ----------
    model : Classifier
        Trained in place; on the device of ``data``.
    data : Dataset
    epochs, batch_size : int
    learning_rate : float
        The schedule's peak.
    seed : int
        Of the order in which the images are met.
    on_batch, on_epoch : callable
        Called with the loss of each batch and with each finished epoch.

    Raises
    ------
    PynodeError
        If the loss is no longer finite.
    """
    images, labels = data.train_images, data.train_labels
    generator = torch.Generator().manual_seed(seed)
    batches = math.ceil(len(images) / batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * batches)
    history = History()
    for number in range(1, epochs + 1):
        model.train()
        total, forward_nfe, backward_nfe, backward_nvjp = 0.0, 0, 0, 0
        start = time.perf_counter()
        for picked in torch.split(torch.randperm(len(images), generator=generator).to(images.device), batch_size):
            loss = gradient_step(model, images[picked], labels[picked])
            optimizer.step()
            schedule.step()
            value = loss.item()
            if not math.isfinite(value):
                raise PynodeError(
                    explain(f"the training loss is {value} in epoch {number}", "a finite loss", "try another --seed")
                )
            stats = model.body.stats
            total += value * len(picked)
            forward_nfe += stats.forward.nfe
            backward_nfe += stats.backward.nfe
            backward_nvjp += stats.backward.nvjp
            on_batch(value)
        seconds = time.perf_counter() - start
        epoch = Epoch(
            loss=total / len(images),
            accuracy=accuracy(model, data.test_images, data.test_labels),
            forward_nfe=forward_nfe / batches,
            backward_nfe=backward_nfe / batches,
            backward_nvjp=backward_nvjp / batches,
            seconds=seconds,
        )
        history.epochs.append(epoch)
        on_epoch(epoch)
    return history


def gradient_step(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The mean cross entropy of one batch, its gradient left in the parameters' ``grad`` (and nothing else there)."""
    model.zero_grad(set_to_none=True)
    loss = nn.functional.cross_entropy(model(images), labels)
    torch.autograd.backward(loss)
    return loss.detach()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of the images (N, 1, height, width) whose largest logit is their label's."""
    model.eval()
    correct = 0
    for some_images, some_labels in zip(
        torch.split(images, _TEST_BATCH), torch.split(labels, _TEST_BATCH), strict=True
    ):
        correct += int((model(some_images).argmax(dim=1) == some_labels).sum())
    return correct / len(images)
