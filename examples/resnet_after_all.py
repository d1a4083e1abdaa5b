"""ResNet after all? Whether a network trained with a solver is a flow, or that solver's discretisation.

    python examples/resnet_after_all.py                     # concentric spheres in the plane, 5 seeds, all parts
    python examples/resnet_after_all.py --quick             # less of everything, below two minutes

``resnet_after_all_images.py`` is the same with images and a convolutional field.

The experiment of Ott, Katiyar, Hennig and Tiemann (2021, "ResNet after all? Neural ODEs and their numerical solution").
Three rings in the plane, the middle one another class than the inner and the outer one: a flow followed by a linear
layer can only stretch thin strands across, but one large Euler step may fold the plane. Parts:

* grid: Euler, midpoint and RK4 with h = 1, 1/2, ..., 1/64, tested with the same solver, with finer and coarser ones and
  with the flow (RK4, 256 steps). The critical step is the largest one from which on the flow keeps the accuracy within
  10 points, in the mean over the seeds and in each of them.
* adapter: the same with ``pynode.training.StepAdapter``, from the paper's rule and three variants of it.
* verdict: ``pynode.training.validity`` on nets of 20 seeds, trained with Euler at h = 1 and with the adapter.
* tolerance: DP5 and Fehlberg2 trained at tolerances from 1e-1 to 1e-4, and with the adapter.

Found (``--seed 100``; settings were chosen on seeds 0 and 1), mean of 5 seeds: Euler at h = 1 has 100 % by itself and
71 % as a flow, h = 1/64 91.4 and 91.3 %; the critical step is 1/16 for Euler, 1/4 for midpoint, 1/2 for RK4. The
adapter ends at 91.3 / 87.0 / 89.9 % (Euler, midpoint, RK4) where h = 1/64 gives 91.4 / 85.0 / 87.9 %, for 16 / 11 / 17
evaluations an iteration, its own included, instead of 64 / 128 / 256. Verdicts: 20 of 20 discretisations at h = 1, 20
of 20 flows adapted. Seeds differ more than methods: some end at 60 %. Of tolerances, in an earlier version: no
critical one for DP5, 1e-3 for Fehlberg2.

Differs from the paper: 2 -> 32 -> 32 -> 2 ReLU units, data scaled by 4, Adam from 1e-2 to 0 (cosine), 400 iterations of
128 samples (paper: convolutions, 1e-4, 10 000), adapter every 25 iterations (paper: 50), tolerances from 1e-3 (1e-6).
The seeds of a grid entry are trained side by side, as one batched product; under adaptive algorithms they share steps,
each of which meets the tolerance of every seed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import pynode
from pynode import DP5, RK4, Euler, Fehlberg2, Midpoint
from pynode.nn import NeuralODE
from pynode.training import StepAdapter, measure, validity

WIDTH, BATCH, SAMPLES, RATE = 32, 128, 1000, 1e-2
SOLVERS: dict[str, type[Any]] = {"Euler": Euler, "Midpoint": Midpoint, "RK4": RK4}
STAGES = {"Euler": 1, "Midpoint": 2, "RK4": 4}
FLOW = RK4(steps=256)
START = time.perf_counter()


def say(text: str) -> None:
    print(f"[{time.perf_counter() - START:5.0f} s] {text}", file=sys.stderr, flush=True)


class Field(nn.Module):
    """An autonomous ReLU network."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)])

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            y = torch.relu(layer(y))
        return self.layers[-1](y)


class Side(nn.Module):
    """Linear layers of several networks side by side: (S, B, in) -> (S, B, out)."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach().T for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers])[:, None])

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)

    def give_back(self, layers: Sequence[nn.Linear]) -> None:
        with torch.no_grad():
            for i, layer in enumerate(layers):
                layer.weight.copy_(self.weight[i].T)
                layer.bias.copy_(self.bias[i, 0])


class Fields(nn.Module):
    """Several :class:`Field`, one for each seed, on states (S, B, 2)."""

    def __init__(self, fields: Sequence[Field]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Side(each) for each in zip(*(f.layers for f in fields), strict=True)])

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            y = torch.relu(layer(y))
        return self.layers[-1](y)


def worst_seed(error: Tensor) -> Tensor:
    """Error norm under which every seed meets the tolerance."""
    return error.pow(2).mean((1, 2)).sqrt().max()


def spheres(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Radii [.1, .15] and [.4, .45], a quarter each, of class 0, and [.25, .3] of class 1; scaled by 4."""
    quarter = count // 4
    low = torch.cat([torch.full((quarter,), 0.1), torch.full((quarter,), 0.4)])
    low = torch.cat([low, torch.full((count - 2 * quarter,), 0.25)])
    radius = low + 0.05 * torch.rand(count, generator=generator)
    direction = torch.nn.functional.normalize(torch.randn(count, 2, generator=generator), dim=1)
    return 4 * radius[:, None] * direction, (low == 0.25).long()


class Seed:
    """Network, data and batches of one seed."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.field, self.head = Field(), nn.Linear(2, 2)
        self.generator = torch.Generator().manual_seed(1000 + seed)
        self.x, self.y = spheres(SAMPLES, self.generator)
        self.test = spheres(SAMPLES, self.generator)

    def batch(self) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(0, SAMPLES, (BATCH,), generator=self.generator)
        return self.x[chosen], self.y[chosen]

    def model(self, algorithm: Any, **options: Any) -> NeuralODE:
        return NeuralODE(self.field, output=self.head, algorithm=algorithm, sensealg=pynode.DirectAdjoint(), **options)


def correct(output: Tensor, target: Tensor) -> Tensor:
    """(S, B, 2) or (B, 2): of every sample whether it is right."""
    return (output.argmax(-1) == target).double()


def loss_of(output: Tensor, target: Tensor) -> Tensor:
    """The sum over the seeds of each one's mean: their gradients do not mix."""
    each = nn.functional.cross_entropy(output.reshape(-1, 2), target.reshape(-1), reduction="none")
    return each.reshape(target.shape).mean(-1).sum()


def train(
    model: nn.Module, batch: Callable[[], tuple[Tensor, Tensor]], iterations: int, adapter: StepAdapter | None = None
) -> float:
    """Adam with a cosine schedule; the mean number of evaluations an iteration."""
    nfe = 0

    def count(ode: NeuralODE, inputs: Any, solution: pynode.Solution) -> None:
        nonlocal nfe
        nfe += solution.stats.forward.nfe

    handles = [part.register_solve_hook(count) for part in model.modules() if isinstance(part, NeuralODE)]
    optimiser = torch.optim.Adam(model.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations)
    for _ in range(iterations):
        x, y = batch()
        optimiser.zero_grad()
        loss_of(model(x), y).backward()
        if adapter is not None:
            adapter.step(x, y)
        optimiser.step()
        schedule.step()
    for handle in handles:
        handle.remove()
    return nfe / iterations


def train_together(seeds: list[Seed], algorithm: Any, iterations: int, **options: Any) -> tuple[NeuralODE, float]:
    """All seeds side by side; their fields hold the result, too."""
    layers = [[*seed.field.layers, seed.head] for seed in seeds]
    model = NeuralODE(
        Fields([seed.field for seed in seeds]),
        output=Side([seed.head for seed in seeds]),
        algorithm=algorithm,
        sensealg=pynode.DirectAdjoint(),
        **options,
    )

    def batch() -> tuple[Tensor, Tensor]:
        xs, ys = zip(*(seed.batch() for seed in seeds), strict=True)
        return torch.stack(xs), torch.stack(ys)

    nfe = train(model, batch, iterations)
    for side, own in zip([*model.f.layers, model.output], zip(*layers, strict=True), strict=True):
        side.give_back(own)
    return model, nfe


def accuracies(model: NeuralODE, seeds: list[Seed], algorithm: Any = None, **options: Any) -> list[float]:
    """On every seed's test set, in per cent."""
    data = [(torch.stack([s.test[0] for s in seeds]), torch.stack([s.test[1] for s in seeds]))]
    values = measure(model, data, correct, algorithm, **options).values
    if not len(values):  # a test solver at which the states overflow
        return [0.0] * len(seeds)
    return (100 * values.reshape(len(seeds), -1).mean(1)).tolist()


@dataclass
class Entry:
    """Nets of one solver at one resolution: per seed accuracies with each test solver."""

    solver: str
    resolution: float
    nfe: float
    accuracy: dict[str, list[float]] = field(default_factory=dict)

    def mean(self, test: str) -> float:
        return statistics.mean(self.accuracy[test])


def grid(numbers: list[int], iterations: int, finest: int) -> list[Entry]:
    found = []
    for name, method in SOLVERS.items():
        for k in range(finest + 1):
            steps = 2**k
            seeds = [Seed(n) for n in numbers]
            model, nfe = train_together(seeds, method(steps=steps), iterations)
            entry = Entry(name, 1 / steps, nfe)
            entry.accuracy["own"] = accuracies(model, seeds)
            for test, other in SOLVERS.items():
                for factor in (0.5, 0.75, 1.0, 1.5, 2.0):
                    count = max(1, round(factor * steps))
                    entry.accuracy[f"{test} x{factor:g}"] = accuracies(model, seeds, other(steps=count))
            for factor in ("0.5", "2"):
                entry.accuracy[f"own x{factor}"] = entry.accuracy[f"{name} x{factor}"]
            entry.accuracy["flow"] = accuracies(model, seeds, FLOW)
            found.append(entry)
            say(f"grid: {name} h = 1/{steps}: own {entry.mean('own'):.1f}, flow {entry.mean('flow'):.1f} %")
    return found


def critical(entries: list[Entry], seed: int | None = None) -> float | None:
    """The largest resolution from which on, towards finer ones, the flow keeps the accuracy within 10 points."""
    found = None
    for entry in sorted(entries, key=lambda e: e.resolution):
        own, flow = entry.accuracy["own"], entry.accuracy["flow"]
        gap = entry.mean("own") - entry.mean("flow") if seed is None else own[seed] - flow[seed]
        if abs(gap) > 10:
            break
        found = entry.resolution
    return found


#: The paper's rule, and what goes beyond it.
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "interval": {"threshold": 0.05, "batches": 4, "confidence": 0.9},
    "defect": {"test": "defect"},
    "no labels": {"metric": None, "threshold": 0.5},
}


@dataclass
class Adapted:
    """One run with the adapter. ``nfe``: evaluations an iteration; ``extra``: those of the adapter, likewise."""

    solver: str
    variant: str
    seed: int
    own: float
    flow: float
    resolution: float
    nfe: float
    extra: float
    verdict: str = ""


def adapt(
    name: str, method: Any, number: int, iterations: int, variant: str = "paper", **options: Any
) -> tuple[Adapted, StepAdapter]:
    seed = Seed(number)
    fixed = name in SOLVERS
    model = seed.model(method(steps=1) if fixed else method(), **options)
    chosen = {"metric": correct, "interval": 25, **VARIANTS[variant], "start": "hairer" if fixed else 1e-3}
    adapter = StepAdapter(model, **chosen)
    nfe = train(model, seed.batch, iterations, adapter)
    adapter.detach()
    own = 100 * measure(model, [seed.test], correct).value
    flow = 100 * measure(model, [seed.test], correct, FLOW).value
    report = validity(model, [seed.test], correct) if fixed else None
    run = Adapted(name, variant, number, own, flow, adapter.resolution, nfe, adapter.evaluations / iterations)
    run.verdict = "" if report is None else report.verdict
    return run, adapter


def adapters(numbers: list[int], iterations: int) -> tuple[list[Adapted], StepAdapter]:
    found, shown = [], None
    pairs = [(name, "paper") for name in SOLVERS] + [("Euler", variant) for variant in VARIANTS if variant != "paper"]
    for name, variant in pairs:
        for number in numbers:
            run, adapter = adapt(name, SOLVERS[name], number, iterations, variant)
            shown = adapter if shown is None else shown
            found.append(run)
            say(
                f"adapter: {name} ({variant}), seed {number}: own {run.own:.1f}, flow {run.flow:.1f} %, "
                f"h = 1/{1 / run.resolution:.1f}, {run.nfe:.1f} + {run.extra:.1f} evaluations an iteration"
            )
    assert shown is not None
    return found, shown


def tolerances(numbers: list[int], iterations: int, tightest: int) -> tuple[list[Entry], list[Adapted]]:
    entries, adapted = [], []
    for name, method in {"DP5": DP5, "Fehlberg2": Fehlberg2}.items():
        for k in range(1, tightest + 1):
            tolerance = 10.0**-k
            seeds = [Seed(n) for n in numbers]
            options = {"rtol": tolerance, "atol": tolerance, "norm": worst_seed}
            model, nfe = train_together(seeds, method(), iterations, **options)
            entry = Entry(name, tolerance, nfe)
            entry.accuracy["own"] = accuracies(model, seeds)
            for other in (DP5(), Fehlberg2()):
                for factor in (0.1, 1.0, 10.0):
                    tol = factor * tolerance
                    entry.accuracy[f"{other.name} x{factor:g}"] = accuracies(model, seeds, other, rtol=tol, atol=tol)
            entry.accuracy["flow"] = accuracies(model, seeds, FLOW)
            entries.append(entry)
            say(f"tolerance: {name} {tolerance:g}: own {entry.mean('own'):.1f}, flow {entry.mean('flow'):.1f} %")
        for number in numbers:
            run, _ = adapt(name, method, number, iterations)
            adapted.append(run)
            say(
                f"tolerance: {name} adapted, seed {number}: own {run.own:.1f}, flow {run.flow:.1f} %, "
                f"tolerance {run.resolution:.1e}, {run.nfe:.0f} + {run.extra:.0f} evaluations an iteration"
            )
    return entries, adapted


def verdicts(first: int, count: int, iterations: int, known: list[Adapted]) -> dict[str, list[str]]:
    """Of Euler with h = 1 and of Euler with the adapter, over ``count`` seeds."""
    seeds = [Seed(first + i) for i in range(count)]
    train_together(seeds, Euler(steps=1), iterations)
    found: dict[str, list[str]] = {"Euler, h = 1": []}
    for seed in seeds:
        report = validity(seed.model(Euler(steps=1)), [seed.test], correct)
        found["Euler, h = 1"].append(report.verdict)
    say(f"verdict: Euler, h = 1: {found['Euler, h = 1'].count('discretisation')} of {count} discretisations")
    done = {(run.seed, run.variant): run for run in known if run.solver == "Euler"}
    for variant in ("paper", "interval"):
        key = f"Euler, adapted ({variant})"
        for number in range(first, first + count):
            run = done.get((number, variant)) or adapt("Euler", Euler, number, iterations, variant)[0]
            found.setdefault(key, []).append(run.verdict)
            say(f"verdict: {key}, seed {number}: {run.verdict} (own {run.own:.1f}, flow {run.flow:.1f} %)")
    return found


def show_entries(entries: list[Entry], tests: list[str], unit: str) -> Iterator[str]:
    yield f"{'trained with':12s} {unit:>8s} {'NFE':>6s}  " + "  ".join(f"{test:>13s}" for test in tests)
    for entry in entries:
        shown = f"1/{1 / entry.resolution:.0f}" if unit == "h" else f"{entry.resolution:.0e}"
        cells = []
        for test in tests:
            values = entry.accuracy[test]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):6.1f} +-{spread:5.1f}")
        yield f"{entry.solver:12s} {shown:>8s} {entry.nfe:6.1f}  " + "  ".join(cells)


def show_adapted(runs: list[Adapted], entries: list[Entry]) -> Iterator[str]:
    yield (
        f"{'adapted':10s} {'variant':10s} {'own %':>13s} {'flow %':>13s} {'finest grid %':>14s} "
        f"{'NFE/iteration':>14s} {'finest grid':>12s}  at the end"
    )
    keys = list(dict.fromkeys((run.solver, run.variant) for run in runs))
    for solver, variant in keys:
        own = [run for run in runs if (run.solver, run.variant) == (solver, variant)]
        finest = min((e for e in entries if e.solver == solver), key=lambda e: e.resolution, default=None)
        values = [[run.own for run in own], [run.flow for run in own]]
        cells = " ".join(f"{statistics.mean(v):6.1f} +-{statistics.stdev(v) if len(v) > 1 else 0:5.1f}" for v in values)
        beside = ("", "") if finest is None else (f"{finest.mean('own'):.1f}", f"{finest.nfe:.0f}")
        cost = statistics.mean(run.nfe + run.extra for run in own)
        fixed = solver in SOLVERS
        ends = ", ".join(f"1/{1 / run.resolution:.0f}" if fixed else f"{run.resolution:.0e}" for run in own)
        flows = "" if not fixed else f"; {sum(run.verdict == 'flow' for run in own)} of {len(own)} flows"
        yield f"{solver:10s} {variant:10s} {cells} {beside[0]:>14s} {cost:14.1f} {beside[1]:>12s}  {ends}{flows}"


def draw_entries(axes: Axes, entries: list[Entry], tests: list[str], unit: str) -> None:
    """Accuracy over the resolution of the training, a line a test solver."""
    colors = ("black", "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
    for test, color in zip(tests, colors, strict=False):
        at = [entry.resolution for entry in entries]
        style = {"lw": 2.2, "ls": ":", "zorder": 3} if test == "own" else {"lw": 1.3}
        axes.plot(at, [entry.mean(test) for entry in entries], marker="o", ms=3.5, color=color, label=test, **style)
        for i in range(len(entries[0].accuracy[test])):
            values = [entry.accuracy[test][i] for entry in entries]
            axes.plot(at, values, ".", ms=2.5, color=color, alpha=0.5)
    limit = critical(entries)
    if limit is not None:
        axes.axvline(limit, color="#777777", lw=1, ls="--")
    axes.set_xscale("log", base=2 if unit == "h" else 10)
    axes.invert_xaxis()
    axes.set_ylim(20, 103)
    axes.set_xlabel(f"{unit} of the training")
    axes.set_title(f"trained with {entries[0].solver}", fontsize=10)
    axes.legend(fontsize=6, title="tested with", title_fontsize=6, loc="lower right")


def by_solver(entries: list[Entry]) -> list[list[Entry]]:
    return [list(group) for _, group in itertools.groupby(entries, key=lambda e: e.solver)]


def draw(path: Path, results: dict[str, Any], adapter: StepAdapter | None) -> None:
    rows: list[list[tuple[list[Entry], list[str], str]]] = []
    if results.get("grid"):
        tests = ["own", "Euler x1", "Midpoint x1", "RK4 x1", "flow"]
        rows.append([(group, tests, "h") for group in by_solver(results["grid"])])
    if results.get("tolerance"):
        tests = ["own", "DP5 x0.1", "DP5 x1", "Fehlberg2 x1", "flow"]
        rows.append([(group, tests, "tolerance") for group in by_solver(results["tolerance"])])
    extra = adapter is not None and bool(adapter.log)
    if not rows and not extra:
        return
    figure = Figure(figsize=(12, 3.6 * max(1, len(rows))), dpi=110, layout="constrained")
    axes = figure.subplots(max(1, len(rows)), 3, squeeze=False)
    for line, row in zip(axes, rows, strict=False):
        for ax, part in zip(line, row, strict=False):
            draw_entries(ax, *part)
        line[0].set_ylabel("test accuracy [%]")
    free = [ax for ax in axes.flat if not ax.has_data()]
    if extra and adapter is not None and free:
        adapter.plot(free[0])
        free[0].set_title("Euler with the adapter, first seed: h", fontsize=10)
        free = free[1:]
    for ax in free:
        ax.axis("off")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 seeds, 100 iterations, h down to 1/8, 2 verdicts")
    parser.add_argument("--parts", default="grid,adapter,verdict,tolerance", help="some of %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=5, help="how many (20 for the verdicts)")
    parser.add_argument("--verdicts", type=int, default=20, help="seeds of the verdicts")
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument(
        "--plot",
        "--out",
        dest="out",
        type=Path,
        default=Path("resnet_after_all.png"),
        help="also .json, with all numbers",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    count, iterations, finest, tightest, judged = (
        (2, 100, 3, 2, 2) if options.quick else (options.seeds, options.iterations, 6, 4, options.verdicts)
    )
    numbers = list(range(options.seed, options.seed + count))
    parts = options.parts.split(",")
    results: dict[str, Any] = {}
    adapter: StepAdapter | None = None

    def finish(lines: list[str]) -> None:
        """After each part: its table, and picture and numbers of all so far."""
        print("\n".join(["", *lines, ""]), flush=True)
        draw(options.out, results, adapter)
        plain = {k: [asdict(x) for x in v] if isinstance(v, list) else v for k, v in results.items()}
        options.out.with_suffix(".json").write_text(json.dumps(plain, indent=1))

    if "grid" in parts:
        results["grid"] = grid(numbers, iterations, finest)
        tests = ["own", "Euler x1", "Midpoint x1", "RK4 x1", "own x0.5", "own x2", "flow"]
        lines = [f"test accuracy [%], mean +- deviation of {count} seeds", *show_entries(results["grid"], tests, "h")]
        for group in by_solver(results["grid"]):
            each = [critical(group, i) for i in range(count)]
            shown = ["none" if h is None else f"1/{1 / h:.0f}" for h in (critical(group), *each)]
            lines.append(f"critical step of {group[0].solver}: {shown[0]} (seed by seed: {', '.join(shown[1:])})")
        finish(lines)
    if "adapter" in parts:
        results["adapter"], adapter = adapters(numbers, iterations)
        finish([*show_adapted(results["adapter"], results.get("grid", []))])
    if "verdict" in parts:
        results["verdict"] = verdicts(options.seed, judged, iterations, results.get("adapter", []))
        counted = results["verdict"].items()
        finish(
            [f"verdict on {k}: {v.count('flow')} flow, {v.count('discretisation')} discretisation" for k, v in counted]
        )
    if "tolerance" in parts:
        results["tolerance"], results["tolerance adapter"] = tolerances(numbers, iterations, tightest)
        tests = ["own", "DP5 x0.1", "DP5 x1", "Fehlberg2 x1", "flow"]
        lines = [*show_entries(results["tolerance"], tests, "rtol")]
        for group in by_solver(results["tolerance"]):
            limit = critical(group)
            lines.append(f"critical tolerance of {group[0].solver}: {'none' if limit is None else f'{limit:.0e}'}")
        finish([*lines, "", *show_adapted(results["tolerance adapter"], results["tolerance"])])
    say(f"{options.out}, {options.out.with_suffix('.json')}")


if __name__ == "__main__":
    main()
