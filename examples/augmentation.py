"""What a flow cannot represent, and the ways out: augmentation, higher order, data control, depth variance.

    python examples/augmentation.py            # three seeds, some minutes
    python examples/augmentation.py --quick    # one seed, fewer iterations, less than two minutes

Two tasks. The sign flip ``-1 -> 1, 1 -> -1`` (Dupont, Doucet and Teh 2019): a flow on the line keeps the order of
points, so that its mean squared error is at least 1. Concentric annuli: a disc (class -1) in a ring (class 1), to be
separated by a linear output layer; a flow of the plane maps the ring around the image of the disc, so that one
without augmentation has to stretch a thin wedge of the ring across it, and gets that wedge wrong. Parameters that vary
with depth alone (Galerkin, stacked) do not change that: they make the wedge thinner.

Differs from the papers: fields of 16 tanh units (two hidden layers, or one where the parameters vary with depth), Tsit5
at rtol 1e-3, fresh samples in each iteration, Adam from 2e-2 to 0, 200 iterations (Massaroli et al. 2020: 2 000
at 1e-3).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import pynode
from pynode.nn import (
    AdaptiveDepth,
    Augment,
    DataControl,
    Fourier,
    GalerkinLinear,
    HigherOrder,
    InputLayer,
    NeuralODE,
    Stacked,
    TimeSequential,
)

WIDTH = 16
SOLVER = {"rtol": 1e-3, "atol": 1e-4, "sensealg": pynode.DirectAdjoint()}


def net(inputs: int, outputs: int, hidden: int = 2) -> TimeSequential:
    """An autonomous tanh network."""
    layers: list[nn.Module] = []
    for width in (inputs, *[WIDTH] * (hidden - 1)):
        layers += [nn.Linear(width, WIDTH), nn.Tanh()]
    return TimeSequential(*layers, nn.Linear(WIDTH, outputs))


def galerkin(features: int) -> TimeSequential:
    return TimeSequential(
        GalerkinLinear(features, WIDTH, Fourier(2)), nn.Tanh(), GalerkinLinear(WIDTH, features, Fourier(2))
    )


ANNULI: dict[str, Callable[[], NeuralODE]] = {
    "none": lambda: NeuralODE(net(2, 2), output=nn.Linear(2, 1), **SOLVER),
    "0-augmented": lambda: NeuralODE(net(4, 4), input=Augment(2), output=nn.Linear(4, 1), **SOLVER),
    "input layer": lambda: NeuralODE(net(4, 4), input=InputLayer(nn.Linear(2, 4)), output=nn.Linear(4, 1), **SOLVER),
    "second order": lambda: NeuralODE(HigherOrder(net(4, 2)), input=Augment(2), output=nn.Linear(4, 1), **SOLVER),
    "data control": lambda: NeuralODE(
        DataControl(net(4, 2)), condition=nn.Identity(), output=nn.Linear(2, 1), **SOLVER
    ),
    "Galerkin": lambda: NeuralODE(galerkin(2), output=nn.Linear(2, 1), **SOLVER),
    "stacked": lambda: NeuralODE(Stacked([net(2, 2, 1) for _ in range(4)]), output=nn.Linear(2, 1), **SOLVER),
}


#: Needs more iterations than the others: how many times as many.
LONGER = {"stacked": 2.5}


def depth() -> nn.Linear:
    """Depths that start at 0, from where training is easiest."""
    g = nn.Linear(1, 1)
    nn.init.zeros_(g.weight)
    nn.init.zeros_(g.bias)
    return g


def first(y: Tensor) -> Tensor:
    return y[..., :1]


FLIP: dict[str, Callable[[], NeuralODE]] = {
    "none": lambda: NeuralODE(net(1, 1, 1), **SOLVER),
    "0-augmented (1)": lambda: NeuralODE(net(2, 2, 1), input=Augment(1), output=first, **SOLVER),
    "input layer": lambda: NeuralODE(net(2, 2, 1), input=InputLayer(nn.Linear(1, 2)), output=first, **SOLVER),
    "second order": lambda: NeuralODE(HigherOrder(net(2, 1, 1)), input=Augment(1), output=first, **SOLVER),
    "data control": lambda: NeuralODE(DataControl(net(2, 1, 1)), condition=nn.Identity(), **SOLVER),
    "adaptive depth": lambda: NeuralODE(AdaptiveDepth(net(1, 1, 1)), condition=depth(), **SOLVER),
}


def annuli(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points (count, 2), uniform in ``r < 0.5`` (class -1) and in ``1 < r < 1.5`` (class 1), half of them each."""
    inner = count // 2
    u = torch.rand(count, generator=generator)
    radius = torch.cat([0.25 * u[:inner], 1 + 1.25 * u[inner:]]).sqrt()
    angle = 2 * torch.pi * torch.rand(count, generator=generator)
    labels = torch.cat([-torch.ones(inner), torch.ones(count - inner)])
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1), labels[:, None]


@dataclass
class Run:
    """One training. ``reached``: the first iteration looked at with 99 % accuracy; ``curve``: of test losses."""

    model: NeuralODE
    parameters: int
    loss: float
    accuracy: float
    nfe: int
    reached: int | None = None
    curve: list[tuple[int, float]] = field(default_factory=list)


def train(
    model: NeuralODE,
    sample: Callable[[], tuple[Tensor, Tensor]],
    test: tuple[Tensor, Tensor],
    iterations: int,
    rate: float,
    look: int = 20,
) -> Run:
    """Adam with a cosine schedule on the mean squared error, looked at on ``test`` every ``look`` iterations."""
    optimiser = torch.optim.Adam(model.parameters(), rate)
    # To 0: otherwise the last losses are noise of the size of the step.
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations)
    run = Run(model, sum(p.numel() for p in model.parameters()), 0.0, 0.0, 0)
    x_test, labels = test
    for iteration in range(iterations + 1):
        if iteration % look == 0 or iteration == iterations:
            with torch.no_grad():
                out = model(x_test)
                run.nfe = model.solve(x_test).stats.forward.nfe
            run.loss = (out - labels).pow(2).mean().item()
            run.accuracy = ((out > 0) == (labels > 0)).float().mean().item()
            run.curve.append((iteration, run.loss))
            if run.reached is None and run.accuracy >= 0.99:
                run.reached = iteration
        if iteration < iterations:
            x, y = sample()
            optimiser.zero_grad()
            (model(x) - y).pow(2).mean().backward()
            optimiser.step()
            schedule.step()
    return run


def all_runs(
    models: dict[str, Callable[[], NeuralODE]], seeds: list[int], iterations: int, task: str, rate: float
) -> dict[str, list[Run]]:
    runs: dict[str, list[Run]] = {}
    ends = torch.tensor([[-1.0], [1.0]])
    for name, make in models.items():
        for seed in seeds:
            start = time.perf_counter()
            torch.manual_seed(seed)
            model = make()
            data = torch.Generator().manual_seed(1000 + seed)
            if task == "annuli":
                own = int(iterations * LONGER.get(name, 1))
                run = train(model, lambda g=data: annuli(256, g), annuli(2000, data), own, rate)
            else:
                run = train(model, lambda: (ends, -ends), (ends, -ends), iterations, rate)
            runs.setdefault(name, []).append(run)
            print(
                f"  {task}: {name}, seed {seed}: loss {run.loss:.2e}, {time.perf_counter() - start:.0f} s", flush=True
            )
    return runs


def table(runs: dict[str, list[Run]], seeds: list[int], accuracy: bool) -> None:
    losses = "  ".join(f"loss, seed {seed}" for seed in seeds)
    print(f"\n{'':16s} {'parameters':>10s} {'NFE':>5s}  {losses}" + ("  accuracy [%]  99 % at iteration" * accuracy))
    for name, each in runs.items():
        line = f"{name:16s} {each[0].parameters:10d} {statistics.mean(r.nfe for r in each):5.0f}  "
        line += "  ".join(f"{r.loss:12.2e}" for r in each)
        if accuracy:
            line += f"  {100 * min(r.accuracy for r in each):6.2f} (least)"
            line += "  " + ", ".join("never" if r.reached is None else str(r.reached) for r in each)
        print(line)


def ranking(runs: dict[str, list[Run]], seeds: list[int]) -> None:
    """The order of the augmentation strategies by test loss, seed by seed."""
    strategies = ["none", "0-augmented", "input layer", "second order"]
    print("\naugmentation strategies by test loss, worst first:")
    for i, seed in enumerate(seeds):
        order = sorted(strategies, key=lambda name, i=i: -runs[name][i].loss)
        print(f"  seed {seed}: " + " > ".join(f"{name} {runs[name][i].loss:.1e}" for name in order))
    fewest = min(strategies[1:], key=lambda name: runs[name][0].parameters)
    print(f"  fewest parameters of the augmented: {fewest}")


def draw(path: Path, flip: dict[str, list[Run]], runs: dict[str, list[Run]]) -> None:
    """Predictions, the flow of the first two dimensions, and the losses of the first seed."""
    figure = Figure(figsize=(2.5 * len(runs), 8.5), dpi=110, layout="constrained")
    grid = figure.add_gridspec(3, 2 * len(runs))
    points, labels = annuli(300, torch.Generator().manual_seed(7))
    line = torch.linspace(-1.7, 1.7, 81)
    plane = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(-1, 2)
    colors = ["#1f6fb4" if label < 0 else "#d9822b" for label in labels[:, 0].tolist()]
    for column, (name, each) in enumerate(runs.items()):
        model = each[0].model
        with torch.no_grad():
            out = model(plane).reshape(81, 81)
            path_ = model.solve(points[::5], torch.linspace(0, 1, 30)).ys[..., :2]
        above = figure.add_subplot(grid[0, 2 * column : 2 * column + 2])
        above.contourf(
            line, line, out.clamp(-1.5, 1.5), levels=[-1.5, -1, -0.5, 0, 0.5, 1, 1.5], cmap="RdYlBu_r", alpha=0.6
        )
        above.contour(line, line, out, levels=[0.0], colors="black", linewidths=1)
        above.scatter(points[:, 0], points[:, 1], c=colors, s=4)
        above.set_title(f"{name}\n{100 * each[0].accuracy:.2f} %, NFE {each[0].nfe}", fontsize=10)
        below = figure.add_subplot(grid[1, 2 * column : 2 * column + 2])
        for i, color in enumerate(colors[::5]):
            below.plot(path_[:, i, 0], path_[:, i, 1], color=color, lw=0.6, alpha=0.7)
            below.plot(path_[-1, i, 0], path_[-1, i, 1], ".", color=color, ms=4)
        above.set_aspect("equal")
        below.set_aspect("equal", adjustable="datalim")
        for axes in (above, below):
            axes.tick_params(labelsize=6)
    half = len(runs)
    for part, (title, shown) in zip(
        (slice(0, half), slice(half, 2 * half)), (("sign flip", flip), ("annuli", runs)), strict=True
    ):
        axes = figure.add_subplot(grid[2, part])
        for name, each in shown.items():
            axes.semilogy(*zip(*each[0].curve, strict=True), label=name, color="black" if name == "none" else None)
        axes.set_title(f"{title}: test loss", fontsize=10)
        axes.set_xlabel("iteration")
        axes.legend(fontsize=7, ncol=2)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, 100 iterations")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--iterations", type=int, default=200, help="of the annuli; 150 of the flip")
    parser.add_argument("--out", type=Path, default=Path("augmentation.png"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    count, iterations, flips = (1, 100, 100) if options.quick else (options.seeds, options.iterations, 150)
    seeds = list(range(options.seed, options.seed + count))
    runs = all_runs(ANNULI, seeds, iterations, "annuli", 0.02)
    flip = all_runs(FLIP, seeds, flips, "sign flip", 0.05)
    print(f"\nsign flip on two points, {flips} iterations (no flow on the line gets below 1)", end="")
    table(flip, seeds, accuracy=False)
    print(f"\nannuli, {iterations} iterations, ({LONGER} times as many), test set of 2000", end="")
    table(runs, seeds, accuracy=True)
    ranking(runs, seeds)
    draw(options.out, flip, runs)
    print(f"\n{options.out}; {time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
