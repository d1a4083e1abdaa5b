"""NODE against ANODE: what a flow cannot represent, and what zeros appended to the state change (Dupont, Doucet and
Teh 2019, "Augmented Neural ODEs"; Table 4 and figures 5 to 7 of the undergraduate report, Aghaei 2020).

    python examples/anode.py                       # digits, 3 seeds, p = 0, 1, 2, 5
    python examples/anode.py --quick               # one seed, p = 0 and 5, a few epochs: less than two minutes
    python examples/anode.py --dataset cifar10 --data DIR --train 2000 --side 32

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
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from data import add_arguments, load_images
from torch import Tensor, nn

import pynode
from pynode.demo.data import Dataset
from pynode.nn import Augment, NeuralODE, TimeSequential

PAPER = {  # Aghaei 2020, Table 4: test accuracy in per cent
    "MNIST": ("96.4 +- 0.5", "98.2 +- 0.1"),
    "CIFAR-10": ("53.7 +- 0.2", "60.6 +- 0.4"),
    "SVHN": ("81.0 +- 0.6", "83.5 +- 0.5"),
}
Pair = tuple[Tensor, Tensor]
START = time.perf_counter()


def say(text: str) -> None:
    print(f"[{time.perf_counter() - START:5.0f} s] {text}", file=sys.stderr, flush=True)


@dataclass
class Run:
    """A training, epoch by epoch: mean loss and evaluations of the training solves, accuracy on the test set."""

    parameters: int
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)
    seconds: float = 0.0
    tight: float = 0.0

    @property
    def rise(self) -> float:
        """The largest rise of the loss between epochs."""
        return max([0.0, *(b - a for a, b in zip(self.losses, self.losses[1:], strict=False))])


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def fit(
    model: NeuralODE,
    epoch: Callable[[], Iterable[Pair]],
    test: Pair,
    epochs: int,
    rate: float,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
    right: Callable[[Tensor, Tensor], Tensor] = lambda out, y: out.argmax(-1) == y,
) -> Run:
    """Adam with a cosine schedule, and what every epoch cost."""
    optimiser = torch.optim.Adam(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    head = model.output or nn.Identity()
    run, began = Run(parameters(model)), time.perf_counter()
    for _ in range(epochs):
        losses, forward, backward = [], [], []
        for x, y in epoch():
            optimiser.zero_grad()
            sol = model.solve(x)
            value = loss(head(sol.ys[-1]), y)
            value.backward()
            optimiser.step()
            losses.append(value.item())
            forward.append(sol.stats.forward.nfe)
            backward.append(sol.stats.backward.nvjp)
        schedule.step()
        run.losses.append(statistics.mean(losses))
        run.forward.append(statistics.mean(forward))
        run.backward.append(statistics.mean(backward))
        run.accuracies.append(100 * tested(model, test, right)[0])
    run.seconds = time.perf_counter() - began
    run.tight = tested(model.with_tolerance(1e-5), test, right)[1]
    return run


def tested(model: NeuralODE, test: Pair, right: Callable[[Tensor, Tensor], Tensor]) -> tuple[float, float]:
    """The share of right answers, and the mean number of evaluations of a batch."""
    found, evaluations = 0, []
    with torch.no_grad():
        for x, y in zip(*(whole.split(250) for whole in test), strict=True):
            sol = model.solve(x)
            found += int(right((model.output or nn.Identity())(sol.ys[-1]), y).sum())
            evaluations.append(sol.stats.forward.nfe)
    return found / test[1].numel(), statistics.mean(evaluations)


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
    batches = lambda: (annuli(256, generator) for _ in range(20))  # noqa: E731
    return fit(model, batches, annuli(2000, generator), epochs, 0.02, **TOY_LOSS)


# Images --------------------------------------------------------------------------------------------------------------


def averaged(data: Dataset, side: int) -> Dataset:
    """Images averaged over squares, as many pixels wide as leave about ``side``."""
    window = max(1, data.train_images.shape[-1] // side)
    train, test = (nn.functional.avg_pool2d(x, window) for x in (data.train_images, data.test_images))
    return Dataset(data.name, train, data.train_labels, test, data.test_labels, data.classes)


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


def within(make: Callable[[int], nn.Module], budget: int) -> int:
    """The largest number of filters whose model has at most ``budget`` parameters (at least 1)."""
    filters = 1
    while parameters(make(filters + 1)) <= budget:
        filters += 1
    return filters


def fit_images(model: NeuralODE, data: Dataset, seed: int, epochs: int, rate: float = 5e-3, batch: int = 64) -> Run:
    """Cross-entropy, shuffled batches."""
    generator = torch.Generator().manual_seed(1000 + seed)

    def epoch() -> Iterable[Pair]:
        order = torch.randperm(len(data.train_labels), generator=generator).to(data.train_labels.device)
        return ((data.train_images[rows], data.train_labels[rows]) for rows in order.split(batch))

    return fit(model, epoch, (data.test_images, data.test_labels), epochs, rate)


def solver_of(options: argparse.Namespace) -> dict[str, Any]:
    """Tsit5 at 1e-3; whole solves in C++ on a CPU."""
    whole = options.backend == "torch" and options.device == "cpu" and not options.eager
    return {"rtol": 1e-3, "atol": 1e-3, "backend": options.backend} | ({"compile": "solve"} if whole else {})


def image_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """What this script and dissecting.py have in common."""
    parser.add_argument("--quick", action="store_true", help="one seed and few epochs: less than two minutes")
    add_arguments(parser, "digits")
    parser.add_argument("--train", type=int, help="training images; default all, 2000 of data sets other than digits")
    parser.add_argument("--test", type=int, default=1000, help="test images")
    parser.add_argument("--side", type=int, default=8, help="images are averaged to about so many pixels")
    parser.add_argument("--filters", type=int, default=24, help="of the NODE; the others get as many parameters")
    parser.add_argument("--epochs", type=int, help="of the images; default 10, quick 3")
    parser.add_argument("--toy-epochs", type=int, help="of 20 iterations; default 10, quick 5; 0 for no toys")
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--seeds", type=int, help="how many; default 3, quick 1")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backend", choices=("torch", "julia"), default="torch", help="of the images")
    parser.add_argument("--eager", action="store_true", help="no compile='solve'")
    parser.add_argument("--plot", type=Path, default=Path(f"{name}.png"), help="the picture")


def settled(options: argparse.Namespace) -> tuple[list[int], Dataset]:
    """Fills in the defaults; the seeds and the data."""
    torch.set_num_threads(1)
    if options.epochs is None:
        options.epochs = 3 if options.quick else 10
    if options.toy_epochs is None:
        options.toy_epochs = 5 if options.quick else 10
    count = options.seeds or (1 if options.quick else 3)
    limit = options.train or (None if options.dataset == "digits" else 2000)
    data = averaged(load_images(options.dataset, options.data, train=limit, test=options.test), options.side)
    return list(range(options.seed, options.seed + count)), data.to(torch.device(options.device))


def spread(values: list[float], digits: int = 1) -> str:
    """The mean and, of several, the standard deviation."""
    deviation = f" +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def row(name: str, runs: list[Run]) -> str:
    """A line of the table."""
    mean = lambda values: statistics.mean(list(values))  # noqa: E731
    ends = f"{mean(r.forward[0] for r in runs):.0f} -> {mean(r.forward[-1] for r in runs):.0f}"
    most, last = max(max(r.forward) for r in runs), mean(r.backward[-1] for r in runs)
    return (
        f"{name:28} {runs[0].parameters:10d} {spread([r.accuracies[-1] for r in runs]):>13} "
        f"{mean(r.losses[-1] for r in runs):9.2e} {max(r.rise for r in runs):8.1e} {ends:>12} {most:5.0f} "
        f"{last:8.0f} {mean(r.tight for r in runs):7.0f} {mean(r.seconds for r in runs):6.0f}"
    )


def table(title: str, rows: dict[str, list[Run]]) -> None:
    print(f"\n{title}")
    print(
        f"{'':28} {'parameters':>10} {'accuracy, %':>13} {'loss':>9} {'rise':>8} {'evaluations':>12} {'most':>5} "
        f"{'backward':>8} {'at 1e-5':>7} {'s':>6}"
    )
    for name, runs in rows.items():
        print(row(name, runs))


def picture(parts: dict[str, dict[str, list[Run]]], path: Path) -> None:
    """Losses and evaluations over epochs, a line a seed; a column each part."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        say("no picture: matplotlib is not installed (pip install 'pynode[plot]')")
        return
    figure = Figure(figsize=(4.5 * len(parts), 7), dpi=110, layout="constrained")
    grid = figure.subplots(2, len(parts), squeeze=False)
    for column, (title, rows) in enumerate(parts.items()):
        for i, (name, runs) in enumerate(rows.items()):
            for run in runs:
                label = name if run is runs[0] else None
                epochs = range(1, len(run.losses) + 1)
                grid[0, column].semilogy(epochs, run.losses, color=f"C{i % 10}", label=label)
                grid[1, column].plot(epochs, run.forward, color=f"C{i % 10}", label=label)
        grid[0, column].set(title=title, ylabel="training loss")
        grid[1, column].set(xlabel="epoch", ylabel="evaluations of a training solve")
        grid[0, column].legend(fontsize=7)
    figure.savefig(path)
    say(f"{path} written")


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
