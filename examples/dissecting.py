"""Dissecting neural ODEs: NODE, ANODE, IL-NODE and second order on images; depth variance, data control and adaptive
depth on toys (Massaroli, Poli et al. 2020).

    python examples/dissecting.py                     # digits, 3 seeds
    python examples/dissecting.py --quick             # one seed, a few epochs: less than two minutes
    python examples/dissecting.py --dataset cifar10 --data DIR --train 2000

- *images*: the four models of the paper's table with about as many parameters each. NODE flows the image itself; ANODE
  appends ``--p`` channels of zeros; IL-NODE makes the initial state by a learned convolution of as many channels, and
  so does the second order model, half of whose channels are velocities and cost no parameters of the field.
- *flip* (``-1 -> 1, 1 -> -1``): a flow of the line gets no loss below 1. Ways out: more dimensions, a field that knows
  the input (data control: a reflection without augmentation), and a depth of its own for every input.
- *annuli*: a disc in a ring. Parameters that vary with depth (Galerkin: an expansion in Fourier functions; stacked:
  piecewise constant) do not change what a flow can represent; they help it to make the wrong wedge thin.
- *tracking*: points from a square have to follow ``(cos 2 pi t, sin 2 pi t)``, with the loss integrated along the whole
  solution (the generalised adjoint). A constant field cannot tell the phase; and only Fourier functions know what comes
  after the training's span, t in [0, 1].

Columns as in ``anode.py``, whose training this is. Differs from the paper: small images, subsets and few epochs as
there; convolutions of 1 x 1, 3 x 3 and 1 x 1, Tsit5 at 1e-3 (evaluations at 1e-5 beside it), an output layer that reads
the whole state, and tracking by points instead of the paper's signals.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from anode import TOY, convolutions, first, fit_toy, reader, tanh_net
from fitting import (
    START,
    Run,
    fit_images,
    image_arguments,
    parameters,
    picture,
    say,
    settled,
    solver_of,
    spread,
    table,
    within,
)
from torch import Tensor, nn

from pynode.demo.data import Dataset
from pynode.nn import (
    AdaptiveDepth,
    Augment,
    ConcatTime,
    DataControl,
    Fourier,
    GalerkinLinear,
    HigherOrder,
    InputLayer,
    NeuralODE,
    Stacked,
    TimeSequential,
)

PAPER = """the paper's table, its figures, full data sets   NODE          ANODE         IL-NODE       2nd order
MNIST / CIFAR-10, test accuracy, %               96.8 / 58.9   98.9 / 70.8   99.1 / 73.4   99.2 / 72.8
MNIST / CIFAR-10, evaluations                    98 / 93       71 / 169      44 / 65       43 / 59
MNIST / CIFAR-10, parameters, thousands          21.4 / 37.1   20.4 / 35.0   20.7 / 36.1   20.0 / 34.6"""

# Images --------------------------------------------------------------------------------------------------------------


def image_models(data: Dataset, p: int, solver: dict[str, Any]) -> dict[str, Callable[[int], NeuralODE]]:
    """The four models, by the number of their field's filters."""
    own = data.train_images.shape[1]
    more = own + p

    def learned() -> InputLayer:
        return InputLayer(nn.Conv2d(own, more, 3, padding=1))

    def flow(field: nn.Module, channels: int, input_: nn.Module | None) -> NeuralODE:
        return NeuralODE(field, input=input_, output=reader(channels, data), **solver)

    return {
        "NODE": lambda n: flow(convolutions(own, n, own), own, None),
        "ANODE": lambda n: flow(convolutions(more, n, more), more, Augment(p, dim=1)),
        "IL-NODE": lambda n: flow(convolutions(more, n, more), more, learned()),
        "2nd order": lambda n: flow(HigherOrder(convolutions(more, n, more // 2), dim=1), more, learned()),
    }


# Toys ----------------------------------------------------------------------------------------------------------------


def galerkin(features: int, width: int = 16, harmonics: int = 2) -> TimeSequential:
    return TimeSequential(
        GalerkinLinear(features, width, Fourier(harmonics)),
        nn.Tanh(),
        GalerkinLinear(width, features, Fourier(harmonics)),
    )


def depth() -> nn.Linear:
    """Depths that start at 0, from where training is easiest."""
    g = nn.Linear(1, 1)
    nn.init.zeros_(g.weight)
    nn.init.zeros_(g.bias)
    return g


FLIPS: dict[str, Callable[[], NeuralODE]] = {
    "NODE": lambda: NeuralODE(tanh_net(1, 1, 1), **TOY),
    "ANODE, p = 1": lambda: NeuralODE(tanh_net(2, 2, 1), input=Augment(1), output=first, **TOY),
    "IL-NODE": lambda: NeuralODE(tanh_net(2, 2, 1), input=InputLayer(nn.Linear(1, 2)), output=first, **TOY),
    "2nd order": lambda: NeuralODE(HigherOrder(tanh_net(2, 1, 1)), input=Augment(1), output=first, **TOY),
    "data control": lambda: NeuralODE(DataControl(tanh_net(2, 1, 1)), condition=nn.Identity(), **TOY),
    "adaptive depth": lambda: NeuralODE(AdaptiveDepth(tanh_net(1, 1, 1)), condition=depth(), **TOY),
}
ANNULI: dict[str, Callable[[], NeuralODE]] = {
    "NODE": lambda: NeuralODE(tanh_net(2, 2), output=nn.Linear(2, 1), **TOY),
    "ANODE, p = 2": lambda: NeuralODE(tanh_net(4, 4), input=Augment(2), output=nn.Linear(4, 1), **TOY),
    "IL-NODE": lambda: NeuralODE(tanh_net(4, 4), input=InputLayer(nn.Linear(2, 4)), output=nn.Linear(4, 1), **TOY),
    "2nd order": lambda: NeuralODE(HigherOrder(tanh_net(4, 2)), input=Augment(2), output=nn.Linear(4, 1), **TOY),
    "data control": lambda: NeuralODE(
        DataControl(tanh_net(4, 2)), condition=nn.Identity(), output=nn.Linear(2, 1), **TOY
    ),
    "Galerkin": lambda: NeuralODE(galerkin(2), output=nn.Linear(2, 1), **TOY),
    "stacked": lambda: NeuralODE(Stacked([tanh_net(2, 2, 1) for _ in range(4)]), output=nn.Linear(2, 1), **TOY),
}


def circle(t: Tensor) -> Tensor:
    """The signal that is followed, (..., 2)."""
    return torch.stack([torch.cos(2 * math.pi * t), torch.sin(2 * math.pi * t)], -1)


def distance(t: Tensor, y: Tensor) -> Tensor:
    """The running cost: squared distance to the signal, (batch,)."""
    return (y - circle(t)).pow(2).sum(-1)


TRACKERS: dict[str, Callable[[], nn.Module]] = {
    "constant": lambda: tanh_net(2, 2, 1),
    "time as an input": lambda: ConcatTime(tanh_net(3, 2, 1)),
    "stacked, 4 pieces": lambda: Stacked([tanh_net(2, 2, 1) for _ in range(4)]),
    "Galerkin, Fourier": lambda: galerkin(2),
}


def track(field: nn.Module, seed: int, iterations: int) -> tuple[float, float, float]:
    """The integral of the squared distance over [0, 1]; the root mean square distance in [1/2, 1] and in [1, 2]."""
    generator = torch.Generator().manual_seed(1000 + seed)
    model = NeuralODE(field, running_cost=distance, **TOY)
    optimiser = torch.optim.Adam(model.parameters(), 0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations)
    for _ in range(iterations):
        optimiser.zero_grad()
        _, cost = model.output_and_cost(3 * torch.rand(64, 2, generator=generator) - 1.5)
        cost.mean().backward()
        optimiser.step()
        schedule.step()
    starts, ts = 3 * torch.rand(200, 2, generator=generator) - 1.5, torch.linspace(0, 2, 81)
    with torch.no_grad():
        cost = model.output_and_cost(starts)[1].mean().item()
        squared = distance(ts[:, None], model.solve(starts, ts).ys).mean(1)
    return cost, squared[20:41].mean().sqrt().item(), squared[40:].mean().sqrt().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    image_arguments(parser, "dissecting")
    parser.add_argument("--p", type=int, default=5, help="augmented channels; with those of the image an even number")
    options = parser.parse_args()
    seeds, data = settled(options)
    if (data.train_images.shape[1] + options.p) % 2:
        parser.error(f"--p {options.p}: the second order model needs an even number of channels with the image's")
    parts: dict[str, dict[str, list[Run]]] = {}
    for task, models in (("flip", FLIPS), ("annuli", ANNULI)) if options.toy_epochs else ():
        rows = parts.setdefault(task, {})
        for name, make in models.items():
            for seed in seeds:
                torch.manual_seed(seed)
                run = fit_toy(task, make(), seed, options.toy_epochs)
                rows.setdefault(name, []).append(run)
                say(f"{task}, {name}, seed {seed}: loss {run.losses[-1]:.1e}, {run.accuracies[-1]:.1f} %")
    tracked: dict[str, list[tuple[float, float, float]]] = {}
    for name, make_field in TRACKERS.items() if options.toy_epochs else ():
        for seed in seeds:
            torch.manual_seed(seed)
            tracked.setdefault(name, []).append(track(make_field(), seed, 20 * options.toy_epochs))
            say(f"tracking, {name}, seed {seed}: {tracked[name][-1][1]:.3f} in [1/2, 1]")

    four = image_models(data, options.p, solver_of(options))
    budget = parameters(four["NODE"](options.filters))
    rows = parts.setdefault(data.name, {})
    for name, make_image in four.items():
        filters = within(make_image, budget)
        for seed in seeds:
            torch.manual_seed(seed)
            run = fit_images(make_image(filters).to(options.device), data, seed, options.epochs)
            rows.setdefault(f"{name}, {filters} filters", []).append(run)
            say(f"{name}, seed {seed}: {run.accuracies[-1]:.1f} %, {run.forward[-1]:.0f} evaluations")

    iterations = 20 * options.toy_epochs
    if iterations:
        table(f"flip, {iterations} iterations: no flow of the line gets below a loss of 1", parts["flip"])
        table(f"annuli, {iterations} iterations", parts["annuli"])
        print(f"\ntracking, {iterations} iterations")
        print(f"{'':28} {'parameters':>10} {'integral':>17} {'distance, [1/2, 1]':>20} {'beyond, [1, 2]':>17}")
        for name, found in tracked.items():
            cost, inside, beyond = (spread(list(column), 3) for column in zip(*found, strict=True))
            print(f"{name:28} {parameters(TRACKERS[name]()):10d} {cost:>17} {inside:>20} {beyond:>17}")
    height, width = data.train_images.shape[-2:]
    images = f"{len(data.train_labels)} training and {len(data.test_labels)} test images of {height} x {width}"
    table(f"{data.name}: {images}, {options.epochs} epochs, {len(seeds)} seed(s)", rows)
    node = statistics.mean(r.tight for r in next(iter(rows.values())))
    print("evaluations at 1e-5 against NODE's: ", end="")
    print(
        ", ".join(
            f"{name.split(',')[0]} {statistics.mean(r.tight for r in runs) / node - 1:+.0%}"
            for name, runs in rows.items()
        )
    )
    print(f"\n{PAPER}")
    picture(parts, options.plot)
    print(f"\n{time.perf_counter() - START:.0f} s")


if __name__ == "__main__":
    main()
