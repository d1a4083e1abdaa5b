"""NODE against ANODE: what a flow cannot represent, and what zeros appended to the state change (Dupont, Doucet and
Teh 2019, "Augmented Neural ODEs"; Table 4 and figures 5 to 7 of the undergraduate report, Aghaei 2020).

    python examples/anode.py                       # digits, 3 seeds, p = 0, 1, 2, 5
    python examples/anode.py --quick               # one seed, p = 0 and 5, a few epochs: less than two minutes
    python examples/anode.py --dataset cifar10 --data DIR --train 2000
    python examples/anode.py --dataset mnist --data DIR --train 60000 --side 28 --filters 92   # for a GPU

The flow of a field is a homeomorphism that keeps the order of points on a line and what is inside of what in the plane.

- *flip*: ``g(-1) = 1, g(1) = -1``. On the line trajectories would have to cross, so a NODE's mean squared error is at
  least 1. One appended zero is a plane, in which they pass each other.
- *annuli*: a disc (-1) inside a ring (1), to be separated by a linear layer. A NODE must stretch a wedge of the ring
  across the disc's image, gets that wedge wrong, and its field is expensive.
- *images*: ``p`` channels of zeros are appended to the image. The field is convolution 1 x 1 - ReLU - 3 x 3 - ReLU -
  1 x 1, a linear layer reads the whole state. All p have about as many parameters: fewer filters for more channels.

"evaluations" are those of a training solve, the mean over an epoch, in the first and the last one, and the largest of
all: a number that grows is a field that becomes hard to integrate. "backward" are vector-Jacobian products, in the last
epoch; "at 1e-5" evaluations of the trained model on test images at a tolerance that shows it; "rise" the largest rise
of the training loss from one epoch to the next.

Differs from the originals: images averaged to about 8 x 8 pixels unless ``--side`` says otherwise, a subset of the
training images (``--train``), few epochs, Adam with a cosine schedule, Tsit5 at 1e-3 and the exact discrete gradient.
SVHN is not read.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from fitting import (
    START,
    Pair,
    Run,
    fit,
    fit_images,
    image_arguments,
    parameters,
    picture,
    say,
    settled,
    solver_of,
    table,
    within,
)
from torch import Tensor, nn

import pynode
from pynode.demo.data import Dataset
from pynode.nn import Augment, NeuralODE, TimeSequential

PAPER = {  # Aghaei 2020, Table 4: test accuracy in per cent
    "MNIST": ("96.4 +- 0.5", "98.2 +- 0.1"),
    "CIFAR-10": ("53.7 +- 0.2", "60.6 +- 0.4"),
    "SVHN": ("81.0 +- 0.6", "83.5 +- 0.5"),
}

# The toys ------------------------------------------------------------------------------------------------------------

TOY: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-4, "sensealg": pynode.DirectAdjoint()}
TOY_LOSS: dict[str, Any] = {"loss": nn.functional.mse_loss, "right": lambda out, y: (out > 0) == (y > 0)}
FLIP: Pair = (torch.tensor([[-1.0], [1.0]]), torch.tensor([[1.0], [-1.0]]))


def tanh_net(inputs: int, outputs: int, hidden: int = 2, width: int = 16) -> TimeSequential:
    layers: list[nn.Module] = []
    for size in (inputs, *[width] * (hidden - 1)):
        layers += [nn.Linear(size, width), nn.Tanh()]
    return TimeSequential(*layers, nn.Linear(width, outputs))


def first(y: Tensor) -> Tensor:
    """The feature that was given; the appended ones are not read."""
    return y[..., :1]


def flip(p: int) -> NeuralODE:
    return NeuralODE(tanh_net(1 + p, 1 + p, 1), input=Augment(p), output=first, **TOY)


def plane(p: int) -> NeuralODE:
    return NeuralODE(tanh_net(2 + p, 2 + p), input=Augment(p), output=nn.Linear(2 + p, 1), **TOY)


def annuli(count: int, generator: torch.Generator) -> Pair:
    """Points (count, 2), uniform in ``r < 0.5`` (-1) and in ``1 < r < 1.5`` (1), half of them each."""
    inner = count // 2
    u = torch.rand(count, generator=generator)
    radius = torch.cat([0.25 * u[:inner], 1 + 1.25 * u[inner:]]).sqrt()
    angle = 2 * torch.pi * torch.rand(count, generator=generator)
    labels = torch.cat([-torch.ones(inner), torch.ones(count - inner)])
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1), labels[:, None]


def fit_toy(task: str, model: NeuralODE, seed: int, epochs: int) -> Run:
    """An epoch is 20 iterations, on the two points or on 256 fresh ones."""
    generator = torch.Generator().manual_seed(1000 + seed)
    if task == "flip":
        return fit(model, lambda: [FLIP] * 20, FLIP, epochs, 0.05, **TOY_LOSS)
    test = annuli(2000, generator)
    return fit(model, lambda: [annuli(256, generator) for _ in range(20)], test, epochs, 0.02, **TOY_LOSS)


# Images --------------------------------------------------------------------------------------------------------------


def convolutions(inputs: int, filters: int, outputs: int) -> TimeSequential:
    wide, relu = nn.Conv2d(filters, filters, 3, padding=1), nn.ReLU()
    return TimeSequential(nn.Conv2d(inputs, filters, 1), relu, wide, relu, nn.Conv2d(filters, outputs, 1))


def reader(channels: int, data: Dataset) -> nn.Sequential:
    """The linear layer on the whole state."""
    height, width = data.train_images.shape[-2:]
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, data.classes))


def augmented(data: Dataset, p: int, filters: int, solver: dict[str, Any]) -> NeuralODE:
    channels = data.train_images.shape[1] + p
    field_ = convolutions(channels, filters, channels)
    return NeuralODE(field_, input=Augment(p, dim=1), output=reader(channels, data), **solver)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    image_arguments(parser, "anode")
    parser.add_argument("--p", type=int, nargs="+", help="augmented channels; default 0 1 2 5, quick 0 5")
    options = parser.parse_args()
    seeds, data = settled(options)
    parts: dict[str, dict[str, list[Run]]] = {}

    for task, make in (("flip", flip), ("annuli", plane)) if options.toy_epochs else ():
        rows = parts.setdefault(task, {})
        for p in (0, 1, 2):
            for seed in seeds:
                torch.manual_seed(seed)
                run = fit_toy(task, make(p), seed, options.toy_epochs)
                rows.setdefault(f"ANODE, p = {p}" if p else "NODE", []).append(run)
                say(f"{task}, p = {p}, seed {seed}: loss {run.losses[-1]:.1e}, {run.accuracies[-1]:.1f} %")

    solver, (height, width) = solver_of(options), data.train_images.shape[-2:]
    budget = parameters(augmented(data, 0, options.filters, solver))
    rows = parts.setdefault(data.name, {})
    for p in options.p or ((0, 5) if options.quick else (0, 1, 2, 5)):
        filters = within(lambda width, p=p: augmented(data, p, width, solver), budget)
        for seed in seeds:
            torch.manual_seed(seed)
            run = fit_images(augmented(data, p, filters, solver).to(options.device), data, seed, options.epochs)
            name = f"ANODE, p = {p}" if p else "NODE"
            rows.setdefault(f"{name}, {filters} filters", []).append(run)
            say(f"{name}, seed {seed}: {run.accuracies[-1]:.1f} %, {run.forward[-1]:.0f} evaluations")

    if options.toy_epochs:
        table(f"flip, {20 * options.toy_epochs} iterations: no flow of the line gets below a loss of 1", parts["flip"])
        table(f"annuli, {20 * options.toy_epochs} iterations", parts["annuli"])
    table(
        f"{data.name}: {len(data.train_labels)} training and {len(data.test_labels)} test images of {height} x "
        f"{width}, {options.epochs} epochs, {len(seeds)} seed(s)",
        rows,
    )
    print("\nthe report's Table 4 (Aghaei 2020), its figures, full data sets: test accuracy, %")
    for name, (node, anode) in PAPER.items():
        print(f"{name:10} NODE {node}   ANODE {anode}")
    picture(parts, options.plot)
    print(f"\n{time.perf_counter() - START:.0f} s")


if __name__ == "__main__":
    main()
