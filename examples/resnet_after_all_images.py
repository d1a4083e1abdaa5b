"""ResNet after all, on images: is a convolutional neural ODE a flow, or its solver's discretisation?

    python examples/resnet_after_all_images.py --data FOLDER   # IDX files of Fashion-MNIST or MNIST (data.py): 3 seeds
    python examples/resnet_after_all_images.py                 # scikit-learn's digits
    python examples/resnet_after_all_images.py --quick         # one seed, three step sizes, Euler alone

The experiment of ``resnet_after_all.py`` (Ott et al. 2021) with images: those of 28 x 28 pixels are averaged to
14 x 14, padded with channels of zeros to 8 (no layer is learned before the flow), flow along conv(8, 16) - ReLU -
conv(16, 8), and are classified by a linear layer on what is left after averaging to 3 x 3. Trained with Euler, midpoint
and RK4 at h = 1, 1/2, ..., 1/16, tested with the same solver, with half and twice its step, and with the flow (RK4, 64
steps); then Euler with ``pynode.training.StepAdapter``, which starts at h = 1.

The critical step is the largest one from which on the flow keeps the accuracy within 5 points, in the seeds' mean.

Differs from the paper: one small flow, 4 000 training and 1 000 test images, Adam from 3e-3 to 0 (cosine), 400
iterations of 64, adapter every 25 iterations with an interval of confidence instead of one batch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from data import add_arguments, load_images
from matplotlib.figure import Figure
from torch import Tensor, nn

import pynode
from pynode import RK4, Euler, Midpoint
from pynode.demo.data import Dataset
from pynode.nn import NeuralODE
from pynode.training import StepAdapter, measure, validity

CHANNELS, HIDDEN, BATCH = 8, 16, 64
FLOW = RK4(steps=64)
SOLVERS: dict[str, type[Any]] = {"Euler": Euler, "Midpoint": Midpoint, "RK4": RK4}
START = time.perf_counter()


def say(text: str) -> None:
    print(f"[{time.perf_counter() - START:5.0f} s] {text}", flush=True)


class Field(nn.Module):
    """An autonomous convolutional network on (B, CHANNELS, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(CHANNELS, HIDDEN, 3, padding=1)
        self.last = nn.Conv2d(HIDDEN, CHANNELS, 3, padding=1)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        slope: Tensor = self.last(torch.relu(self.first(y)))
        return slope


class Pad(nn.Module):
    """(B, 1, H, W) to (B, CHANNELS, H', W'), large images halved."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] >= 28:
            x = nn.functional.avg_pool2d(x, 2)
        return nn.functional.pad(x, (0, 0, 0, 0, 0, CHANNELS - x.shape[1]))


def network(algorithm: Any, seed: int) -> NeuralODE:
    torch.manual_seed(seed)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(9 * CHANNELS, 10))
    return NeuralODE(Field(), input=Pad(), output=head, algorithm=algorithm, sensealg=pynode.DirectAdjoint())


def train(model: NeuralODE, data: Dataset, seed: int, iterations: int, adapter: StepAdapter | None = None) -> float:
    """The mean number of evaluations an iteration."""
    generator = torch.Generator().manual_seed(1000 + seed)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations)
    evaluations = 0

    def count(ode: NeuralODE, inputs: Any, solution: pynode.Solution) -> None:
        nonlocal evaluations
        evaluations += solution.stats.forward.nfe

    handle = model.register_solve_hook(count)
    for _ in range(iterations):
        chosen = torch.randint(0, len(data.train_labels), (BATCH,), generator=generator)
        x, y = data.train_images[chosen], data.train_labels[chosen]
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        if adapter is not None:
            adapter.step(x, y)
        optimiser.step()
        schedule.step()
    handle.remove()
    return evaluations / iterations


def accuracy_of(model: NeuralODE, data: Dataset, algorithm: Any = None) -> float:
    """Accuracy on the test images, in per cent; 0 where the states overflow."""
    value = measure(model, batches(data), "accuracy", algorithm).value
    return 100 * value if value == value else 0.0


def batches(data: Dataset) -> list[tuple[Tensor, Tensor]]:
    return list(zip(data.test_images.split(250), data.test_labels.split(250), strict=True))


def critical(rows: list[dict[str, Any]]) -> str:
    """The largest step from which on the flow is within 5 points of the solver itself."""
    found = "none"
    for row in sorted(rows, key=lambda row: row["steps"], reverse=True):
        if abs(statistics.mean(row["own"]) - statistics.mean(row["flow"])) > 5:
            break
        found = f"1/{row['steps']}"
    return found


def picture(rows: list[dict[str, Any]], runs: list[dict[str, Any]], path: Path, name: str) -> None:
    figure = Figure(figsize=(4 * len({row["solver"] for row in rows}), 3.8), dpi=110, layout="constrained")
    names = list(dict.fromkeys(row["solver"] for row in rows))
    for axes, solver in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        own = [row for row in rows if row["solver"] == solver]
        shown = {"own": ("own", "black"), "half": ("h twice", "#4477aa"), "double": ("h half", "#ee6677")}
        for test, (label, color) in (shown | {"flow": ("flow", "#228833")}).items():
            at = [1 / row["steps"] for row in own]
            axes.plot(at, [statistics.mean(row[test]) for row in own], "o-", ms=4, color=color, label=label)
            for seed in range(len(own[0][test])):
                axes.plot(at, [row[test][seed] for row in own], ".", ms=2.5, color=color, alpha=0.5)
        for run in runs if solver == "Euler" else ():
            axes.plot(run["h"], run["flow"], "*", ms=10, color="#aa3377", label="adapted, flow" * (run is runs[0]))
        axes.set_xscale("log", base=2)
        axes.invert_xaxis()
        axes.set(xlabel="h of the training", title=f"{name}: trained with {solver}", ylim=(0, 100))
        axes.legend(fontsize=7, title="tested with", title_fontsize=7, loc="lower right")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--quick", action="store_true", help="1 seed, 100 iterations, Euler at h = 1, 1/2, 1/4")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--solvers", nargs="+", choices=SOLVERS, default=list(SOLVERS), help="of the grid")
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument(
        "--plot", "--out", dest="out", type=Path, default=Path("resnet_after_all_images.png"), help="also .json"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    count, iterations, finest = (1, 100, 2) if options.quick else (options.seeds, options.iterations, 4)
    solvers = {name: SOLVERS[name] for name in (["Euler"] if options.quick else options.solvers)}
    data = load_images(None, options.data, train=4000, test=1000)
    say(f"{data.name}: {len(data.train_labels)} training and {len(data.test_labels)} test images")
    seeds = range(options.seed, options.seed + count)

    rows: list[dict[str, Any]] = []
    for name, method in solvers.items():
        for k in range(finest + 1):
            steps = 2**k
            row: dict[str, Any] = {"solver": name, "steps": steps, "own": [], "half": [], "double": [], "flow": []}
            for seed in seeds:
                model = network(method(steps=steps), seed)
                row["nfe"] = train(model, data, seed, iterations)
                row["own"].append(accuracy_of(model, data))
                row["half"].append(accuracy_of(model, data, method(steps=max(1, steps // 2))))
                row["double"].append(accuracy_of(model, data, method(steps=2 * steps)))
                row["flow"].append(accuracy_of(model, data, FLOW))
            rows.append(row)
            own, flow = statistics.mean(row["own"]), statistics.mean(row["flow"])
            say(f"{name} h = 1/{steps}: own {own:.1f}, flow {flow:.1f} %")

    runs: list[dict[str, Any]] = []
    for seed in seeds:
        model = network(Euler(steps=1), seed)
        adapter = StepAdapter(model, "accuracy", interval=25, threshold=0.05, confidence=0.9, batches=4)
        nfe = train(model, data, seed, iterations, adapter)
        adapter.detach()
        run = {"h": adapter.resolution, "own": accuracy_of(model, data), "flow": accuracy_of(model, data, FLOW)}
        run |= {"nfe": nfe, "extra": adapter.evaluations / iterations}
        run["verdict"] = validity(model, batches(data), "accuracy").verdict
        runs.append(run)
        say(f"adapted, seed {seed}: {run}")

    print(f"\n{data.name}, accuracy in % (mean of {count} seed(s)); evaluations an iteration")
    print(f"{'trained with':12} {'h':>6} {'NFE':>6} {'own':>6} {'h twice':>8} {'h half':>7} {'flow':>6}")
    for row in rows:
        own, half, double, flow = (statistics.mean(row[key]) for key in ("own", "half", "double", "flow"))
        h = f"1/{row['steps']}"
        print(f"{row['solver']:12} {h:>6} {row['nfe']:6.1f} {own:6.1f} {half:8.1f} {double:7.1f} {flow:6.1f}")
    for name in solvers:
        print(f"critical step of {name}: {critical([row for row in rows if row['solver'] == name])}")
    own, flow, nfe = (statistics.mean(run[key] for run in runs) for key in ("own", "flow", "nfe"))
    extra = statistics.mean(run["extra"] for run in runs)
    print(
        f"Euler, adapted: own {own:.1f}, flow {flow:.1f}, {nfe:.1f} + {extra:.1f} evaluations, at the end h = "
        + ", ".join(f"1/{1 / run['h']:.1f}" for run in runs)
        + f"; {sum(run['verdict'] == 'flow' for run in runs)} of {count} judged flows"
    )
    picture(rows, runs, options.out, data.name)
    options.out.with_suffix(".json").write_text(
        json.dumps({"data": data.name, "grid": rows, "adapted": runs}, indent=1)
    )
    say(f"{options.out}, {options.out.with_suffix('.json')}")


if __name__ == "__main__":
    main()
