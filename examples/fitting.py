"""What anode.py and dissecting.py share: training that counts evaluations, the table, the picture, the arguments."""

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

from pynode.demo.data import Dataset
from pynode.nn import NeuralODE

Pair = tuple[Tensor, Tensor]
START = time.perf_counter()


def say(text: str) -> None:
    print(f"[{time.perf_counter() - START:5.0f} s] {text}", file=sys.stderr, flush=True)


@dataclass
class Run:
    """A training, epoch by epoch: mean loss and evaluations of the training solves, accuracy on the test set.

    ``tight``: evaluations of a test batch at 1e-5, in the end.
    """

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


def within(make: Callable[[int], nn.Module], budget: int) -> int:
    """The largest number of filters whose model has at most ``budget`` parameters."""
    filters = 1
    if (least := parameters(make(filters))) > budget:
        raise SystemExit(f"{least} parameters with one filter, the NODE has {budget} in all: give it more --filters")
    while parameters(make(filters + 1)) <= budget:
        filters += 1
    return filters


def spread(values: list[float], digits: int = 1) -> str:
    """The mean and, of several, the standard deviation."""
    deviation = f" +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


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
    head = nn.Identity() if model.output is None else model.output
    eager = model.with_solver(compile=False)  # test batches are of another size, which would be compiled again
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
        run.accuracies.append(100 * tested(eager, test, right)[0])
    run.seconds = time.perf_counter() - began
    run.tight = tested(eager.with_tolerance(1e-5), test, right)[1]
    return run


def tested(model: NeuralODE, test: Pair, right: Callable[[Tensor, Tensor], Tensor]) -> tuple[float, float]:
    """The share of right answers, and the mean number of evaluations of a batch."""
    found, evaluations = 0, []
    head = nn.Identity() if model.output is None else model.output
    with torch.no_grad():
        for x, y in zip(*(whole.split(250) for whole in test), strict=True):
            sol = model.solve(x)
            found += int(right(head(sol.ys[-1]), y).sum())
            evaluations.append(sol.stats.forward.nfe)
    return found / test[1].numel(), statistics.mean(evaluations)


def fit_images(model: NeuralODE, data: Dataset, seed: int, epochs: int, rate: float = 5e-3, batch: int = 64) -> Run:
    """Cross-entropy, shuffled batches; the last, smaller one of an epoch is left out."""
    generator = torch.Generator().manual_seed(1000 + seed)
    batch = min(batch, len(data.train_labels))
    whole = len(data.train_labels) // batch * batch

    def epoch() -> Iterable[Pair]:
        order = torch.randperm(len(data.train_labels), generator=generator)[:whole].to(data.train_labels.device)
        return ((data.train_images[rows], data.train_labels[rows]) for rows in order.split(batch))

    return fit(model, epoch, (data.test_images, data.test_labels), epochs, rate)


def averaged(data: Dataset, side: int) -> Dataset:
    """Images averaged over squares, as many pixels wide as leave about ``side``."""
    window = max(1, data.train_images.shape[-1] // side)
    train, test = (nn.functional.avg_pool2d(x, window) for x in (data.train_images, data.test_images))
    return Dataset(data.name, train, data.train_labels, test, data.test_labels, data.classes)


def image_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """What this script and dissecting.py have in common."""
    parser.add_argument("--quick", action="store_true", help="one seed and few epochs: less than two minutes")
    add_arguments(parser, "digits")
    parser.add_argument("--train", type=int, help="training images; default all, 2000 of data sets other than digits")
    parser.add_argument("--test", type=int, default=1000, help="test images")
    parser.add_argument("--side", type=int, default=8, help="images are averaged to about so many pixels")
    parser.add_argument("--filters", type=int, default=24, help="of the NODE; the others get as many parameters")
    parser.add_argument("--epochs", type=int, help="of the images; default 10, quick 2")
    parser.add_argument("--toy-epochs", type=int, help="of 20 iterations; default 10, quick 3; 0 for no toys")
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
        options.epochs = 2 if options.quick else 10
    if options.toy_epochs is None:
        options.toy_epochs = 3 if options.quick else 10
    count = options.seeds or (1 if options.quick else 3)
    limit = options.train or (None if options.dataset == "digits" else 2000)
    data = averaged(load_images(options.dataset, options.data, train=limit, test=options.test), options.side)
    return list(range(options.seed, options.seed + count)), data.to(torch.device(options.device))


def solver_of(options: argparse.Namespace) -> dict[str, Any]:
    """Tsit5 at 1e-3; whole solves in C++ on a CPU."""
    whole = options.backend == "torch" and options.device == "cpu" and not options.eager
    return {"rtol": 1e-3, "atol": 1e-3, "backend": options.backend} | ({"compile": "solve"} if whole else {})


def row(name: str, runs: list[Run]) -> str:
    """A line of the table."""
    ends = f"{statistics.mean(r.forward[0] for r in runs):.0f} -> {statistics.mean(r.forward[-1] for r in runs):.0f}"
    most, last = max(max(r.forward) for r in runs), statistics.mean(r.backward[-1] for r in runs)
    return (
        f"{name:28} {runs[0].parameters:10d} {spread([r.accuracies[-1] for r in runs]):>13} "
        f"{statistics.mean(r.losses[-1] for r in runs):9.2e} {max(r.rise for r in runs):8.1e} {ends:>12} {most:5.0f} "
        f"{last:8.0f} {statistics.mean(r.tight for r in runs):7.0f} {statistics.mean(r.seconds for r in runs):6.0f}"
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
        from matplotlib.ticker import MaxNLocator
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
        for axes in grid[:, column]:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.savefig(path)
    say(f"{path} written")
