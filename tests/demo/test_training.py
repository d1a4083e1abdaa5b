"""Training: it learns, it counts, it stops at nonsense."""

from __future__ import annotations

import pytest
import torch

import pynode
from pynode.demo.data import Dataset
from pynode.demo.models import Classifier, ode_net, res_net
from pynode.demo.training import Epoch, History, accuracy, train
from pynode.errors import PynodeError


def stripes() -> Dataset:
    """Images of horizontal or vertical stripes with noise: two classes that a convolution tells apart."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(160) % 2
    wave = torch.tensor([1.0, -1.0]).repeat(4)
    images = torch.where(labels[:, None, None] == 0, wave[None, :, None], wave[None, None, :]).expand(160, 8, 8)
    images = (images + 0.3 * torch.randn(160, 8, 8, generator=generator))[:, None]
    return Dataset("stripes", images[:128], labels[:128], images[128:], labels[128:], classes=2)


def make(kind: str) -> Classifier:
    torch.manual_seed(0)
    if kind == "ResNet":
        return res_net(8, 8, 2)
    options = {"algorithm": pynode.Tsit5(), "sensealg": pynode.CheckpointedAdjoint(), "rtol": 1e-2, "atol": 1e-2}
    return ode_net(8, 8, 2, **options)


@pytest.mark.parametrize("kind", ["ODE-net", "ResNet"])
def test_both_networks_learn(kind):
    data, model, losses, seen = stripes(), make(kind), [], []
    history = train(
        model,
        data,
        epochs=3,
        batch_size=32,
        learning_rate=1e-2,
        seed=0,
        on_batch=losses.append,
        on_epoch=seen.append,
    )
    assert len(losses) == 3 * 4
    assert seen == history.epochs
    assert history.last.loss < history.epochs[0].loss / 2
    assert history.last.accuracy > 0.9
    assert history.last.accuracy == accuracy(model, data.test_images, data.test_labels)
    if kind == "ResNet":
        assert (history.last.forward_nfe, history.last.backward_nvjp) == (6, 6)


def test_accuracy_counts_the_correct_ones():
    labels = torch.arange(1200) % 3  # more than one batch of the test
    logits = torch.nn.functional.one_hot(labels, 3).float()
    logits[:300] = logits[:300].roll(1, dims=1)
    assert accuracy(torch.nn.Identity(), logits, labels) == 0.75


def test_a_loss_that_is_not_finite_ends_the_training():
    model = make("ResNet")
    with torch.no_grad():
        model.head[-1].bias.fill_(float("nan"))
    with pytest.raises(PynodeError, match="training loss is nan in epoch 1"):
        train(model, stripes(), epochs=1, batch_size=32, learning_rate=1e-2, seed=0)


def test_seconds_per_epoch_is_the_median():
    history = History([Epoch(1.0, 0.5, 6, 0, 6, seconds) for seconds in (9.0, 1.0, 2.0)])
    assert history.seconds_per_epoch == 2.0
    assert history.last.seconds == 2.0
