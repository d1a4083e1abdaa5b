"""An ODE-net in the place of a ResNet: as accurate, with about a third of the parameters (Chen et al. 2018, Table 1).

    python examples/odenet_mnist.py --dataset mnist            # --data DIR or PYNODE_DATA: see data.py; for a GPU
    python examples/odenet_mnist.py --dataset fashion-mnist
    python examples/odenet_mnist.py --dataset mnist --channels 16 --pool 3 --batch 64 --lr 1e-2 --epochs 2   # one core
    python examples/odenet_mnist.py --quick                    # scikit-learn's digits, 16 channels, 1 epoch

The architecture of "Neural ODEs for undergraduate students" (Aghaei 2020), after the experiment of Chen et al.: layers
that halve the image twice, then either six residual blocks (normalisation - ReLU - 3 x 3 convolution, twice) or one ODE
block of the same with the time as one more channel, then average pooling and a linear layer. With 64 channels that is
576 778 parameters against 208 266. Few channels, pooled to one number each, learn slowly: ``--pool 3`` keeps 3 x 3.

The ODE-net is trained once for each way to its gradient:

* ``DirectAdjoint``: backpropagation through the solver, whose memory grows with the number of evaluations;
* ``CheckpointedAdjoint``: the same gradient from one state a step, eager or with the solve and its gradient in C++
  (``compile="solve"``, on the CPU);
* ``GaussAdjoint``, ``BacksolveAdjoint``: the continuous adjoint, whose own error is controlled by its tolerance.

Memory is the most that torch holds at one time during one training step, above model and data; what the C++ code holds
is not torch's and not counted: it keeps what the stages computed as long as there is room, and evaluates only the rest
again. Seconds are those of the training, without tests and compilation. "train %" is the accuracy on the first 10 000
training images. Evaluations and pullbacks (VJP, products with the field's Jacobian) are means over the training's
iterations. The continuous adjoints' absolute tolerance is a thousandth of the solve's: the loss is a mean over the
batch, and the adjoint small.

Differs from the originals: group instead of batch normalisation in both networks (batch statistics would make the field
depend on the other images; there are as many parameters), Adam with a one-cycle schedule, Tsit5.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from data import add_arguments, load_images
from torch import Tensor, nn

import pynode
from pynode.demo.data import Dataset
from pynode.demo.memory import peak_memory
from pynode.nn import ConcatTime, NeuralODE, ResNet

#: The papers' figures, in per cent, thousands of parameters and seconds; pynode's are printed beside them.
PAPERS = {
    "MNIST": [
        "Chen 2018, Table 1:  ResNet   test error 0.41 %, 0.60 M parameters, memory O(L)",
        "                     ODE-Net  test error 0.42 %, 0.22 M parameters, memory O(1)",
        "Aghaei 2020:  ResNet          train 99.56 %, test 99.08 %, 576k parameters, 170 s",
        "              NODE            train 99.63 %, test 99.05 %, 208k parameters, 615 s",
        "              NODE + adjoint  train 99.71 %, test 99.16 %, 208k parameters, 855 s",
    ],
    "Fashion-MNIST": [
        "Aghaei 2020:  ResNet          train 94.79 %, test 91.15 %, 576k parameters, 220 s",
        "              NODE            train 94.43 %, test 91.21 %, 208k parameters, 850 s",
        "              NODE + adjoint  train 93.80 %, test 90.81 %, 208k parameters, 1010 s",
    ],
}


def norm(channels: int) -> nn.GroupNorm:
    """Two channels a group, as with 32 groups of 64: alone in its group a channel would lose its mean."""
    return nn.GroupNorm(max(1, min(32, channels // 2)), channels)


class Branch(nn.Module):
    """(B, C, H, W) to the same: normalisation - ReLU - convolution, twice. ``y + Branch(y)`` is a residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [norm(channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1, bias=False)]
        self.layers = nn.Sequential(*layers)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        slope: Tensor = self.layers(y)
        return slope


class Field(nn.Module):
    """The same as the right-hand side of an ODE, each convolution of which sees the time, with a last normalisation."""

    def __init__(self, channels: int, activation: Callable[[], nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.norms = nn.ModuleList(norm(channels) for _ in range(3))
        self.activation = activation()
        self.first = ConcatTime(nn.Conv2d(channels + 1, channels, 3, padding=1), dim=1)
        self.last = ConcatTime(nn.Conv2d(channels + 1, channels, 3, padding=1), dim=1)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        y = self.first(t, self.activation(self.norms[0](y)))
        y = self.last(t, self.activation(self.norms[1](y)))
        slope: Tensor = self.norms[2](y)
        return slope


class Stem(nn.Sequential):
    """Images (B, channels of the image, H, W) to states (B, C, H', W'), about a quarter as high and wide."""

    def __init__(self, inputs: int, channels: int) -> None:
        layers: list[nn.Module] = [nn.Conv2d(inputs, channels, 3)]
        for _ in range(2):
            layers += [norm(channels), nn.ReLU(), nn.Conv2d(channels, channels, 4, stride=2, padding=1)]
        super().__init__(*layers)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] < 16:  # scikit-learn's digits would end as one pixel
            x = nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear")
        y: Tensor = super().forward(x)
        return y


def head(channels: int, classes: int, pool: int) -> nn.Sequential:
    pooling = nn.Sequential(nn.AdaptiveAvgPool2d(pool), nn.Flatten())
    return nn.Sequential(norm(channels), nn.ReLU(), pooling, nn.Linear(channels * pool**2, classes))


def res_net(data: Dataset, channels: int, blocks: int = 6, pool: int = 1) -> nn.Module:
    body = ResNet([Branch(channels) for _ in range(blocks)], t=(0.0, float(blocks)))  # steps of 1: y + Branch(y)
    return nn.Sequential(Stem(data.train_images.shape[1], channels), body, head(channels, data.classes, pool))


def ode_net(
    data: Dataset, channels: int, activation: Callable[[], nn.Module] = nn.ReLU, pool: int = 1, **options: Any
) -> NeuralODE:
    """The ODE-net; ``options`` are those of the solve."""
    stem, last = Stem(data.train_images.shape[1], channels), head(channels, data.classes, pool)
    return NeuralODE(Field(channels, activation), (0.0, 1.0), input=stem, output=last, **options)


@dataclass
class Trained:
    """One line of the table, and what the picture shows."""

    name: str
    parameters: int
    train: float = 0.0
    test: float = 0.0
    seconds: float = 0.0
    megabytes: float | None = None  # not known of C++ code
    nfe: float = 0.0
    backward_nfe: float = 0.0
    backward_nvjp: float = 0.0
    tests: list[float] = field(default_factory=list)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor, device: torch.device) -> float:
    """In per cent."""
    if isinstance(model, NeuralODE):
        model = model.with_solver(compile=False)  # another batch size would be compiled once more
    right = 0
    with torch.no_grad():
        for x, y in zip(images.split(500), labels.split(500), strict=True):
            right += int((model(x.to(device)).argmax(-1).cpu() == y).sum())
    return 100 * right / len(labels)


def train(name: str, model: nn.Module, data: Dataset, epochs: int, options: argparse.Namespace) -> Trained:
    """Trains with Adam; the last, smaller batch of an epoch is left out."""
    device, batch = torch.device(options.device), options.batch
    model.to(device)
    found = Trained(name, sum(p.numel() for p in model.parameters()))
    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr)
    batches = len(data.train_labels) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=epochs * batches)
    solved: list[pynode.Stats] = []  # filled up by the backward pass
    handle = None
    if isinstance(model, NeuralODE):
        handle = model.register_solve_hook(lambda ode, inputs, sol: solved.append(sol.stats))

    def gradient(x: Tensor, y: Tensor) -> None:
        model.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(x), y).backward()

    first = (data.train_images[:batch].to(device), data.train_labels[:batch].to(device))

    def one_step() -> None:
        gradient(*first)
        model.zero_grad(set_to_none=True)

    held = peak_memory(one_step, device) / 2**20  # compiles, too
    found.megabytes = None if isinstance(model, NeuralODE) and model.options.get("compile") else held
    solved.clear()
    generator = torch.Generator().manual_seed(options.seed)
    for epoch in range(epochs):
        begun = time.perf_counter()
        order = torch.randperm(len(data.train_labels), generator=generator)[: batches * batch]
        for i, rows in enumerate(order.split(batch)):
            gradient(data.train_images[rows].to(device), data.train_labels[rows].to(device))
            optimizer.step()
            schedule.step()
            if i % 20 == 0:
                print(
                    f"\r{name}: epoch {epoch + 1}/{epochs}, batch {i + 1}/{batches}",
                    end="",
                    file=sys.stderr,
                    flush=True,
                )
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.seconds += time.perf_counter() - begun
        found.tests.append(accuracy(model, data.test_images, data.test_labels, device))
        print(f"\r{name}: epoch {epoch + 1}/{epochs}, test {found.tests[-1]:.2f} %" + 20 * " ", file=sys.stderr)
    if handle is not None:
        handle.remove()
        found.nfe = sum(s.forward.nfe for s in solved) / len(solved)
        found.backward_nfe = sum(s.backward.nfe for s in solved) / len(solved)
        found.backward_nvjp = sum(s.backward.nvjp for s in solved) / len(solved)
    found.test = found.tests[-1]
    found.train = accuracy(model, data.train_images[:10_000], data.train_labels[:10_000], device)
    return found


def picture(rows: list[Trained], path: Path, title: str) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(13, 4), dpi=120, layout="constrained")
    tests, seconds, memory = figure.subplots(1, 3, width_ratios=(2, 1, 1))
    for i, row in enumerate(rows):
        color, name = f"C{i}", f"{row.name} ({row.parameters / 1000:.0f}k)"
        tests.plot(range(1, len(row.tests) + 1), row.tests, "o-", ms=3, color=color, label=name)
        seconds.barh(i, row.seconds, color=color)
        memory.barh(i, row.megabytes or 0.0, color=color)
        if row.megabytes is None:
            memory.text(0.0, i, " not torch's, not counted", va="center", fontsize=7)
    tests.set(xlabel="epoch", ylabel="test accuracy in %", title=title)
    tests.xaxis.set_major_locator(MaxNLocator(integer=True))
    tests.legend(fontsize=7, title="parameters", title_fontsize=7)
    for axes, label in ((seconds, "seconds of training"), (memory, "MB of a training step")):
        axes.set(xlabel=label, yticks=[])
        axes.invert_yaxis()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "mnist")
    parser.add_argument("--quick", action="store_true", help="scikit-learn's digits, 16 channels, 1 epoch")
    parser.add_argument("--train", type=int, help="training images at most")
    parser.add_argument("--test", type=int, help="test images at most")
    parser.add_argument("--channels", type=int)
    parser.add_argument("--pool", type=int, help="pixels a side that are left for the linear layer")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--lr", type=float, help="the schedule's peak; default 3e-3, quick 1e-2")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="rtol and atol")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="rows whose name contains one of these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--plot", type=Path, default=Path("odenet_mnist.png"), help="also .json")
    options = parser.parse_args()
    begun = time.perf_counter()
    epochs = options.epochs or (1 if options.quick else 10)
    options.lr = options.lr or (1e-2 if options.quick else 3e-3)
    channels = options.channels or (16 if options.quick else 64)
    pool = options.pool or (3 if options.quick else 1)
    dataset = "digits" if options.quick else options.dataset
    data = load_images(dataset, options.data, train=options.train, test=options.test)
    options.batch = min(options.batch or (64 if options.quick else 128), len(data.train_labels))

    exact, small = pynode.CheckpointedAdjoint(), 1e-3 * options.tolerance
    ways: dict[str, dict[str, Any] | None] = {
        "ResNet": None,
        "ODE-net, DirectAdjoint": {"sensealg": pynode.DirectAdjoint()},
        "ODE-net, CheckpointedAdjoint": {"sensealg": exact},
        "ODE-net, Checkpointed, compiled": {"sensealg": exact, "compile": "solve"},
        "ODE-net, GaussAdjoint": {"sensealg": pynode.GaussAdjoint(atol=small)},
        # Warns where the state cannot be integrated backward, and the gradient is not to be trusted.
        "ODE-net, BacksolveAdjoint": {"sensealg": pynode.BacksolveAdjoint(atol=small, on_mismatch="warn")},
    }
    if torch.device(options.device).type != "cpu":
        del ways["ODE-net, Checkpointed, compiled"]
    rows: list[Trained] = []
    for name, how in ways.items():
        if options.only and not any(part.lower() in name.lower() for part in options.only):
            continue
        torch.manual_seed(options.seed)
        tolerances = {"rtol": options.tolerance, "atol": options.tolerance}
        if how is None:
            model: nn.Module = res_net(data, channels, pool=pool)
        else:
            model = ode_net(data, channels, pool=pool, **tolerances, **how)
        rows.append(train(name, model, data, epochs, options))
    if not rows:
        parser.error(f"--only {' '.join(options.only)}: the rows are {', '.join(ways)}")

    print(f"{data.name}, {len(data.train_labels)} + {len(data.test_labels)} images, {epochs} epoch(s) of batches of")
    print(
        f"{options.batch}, {channels} channels, pooled to {pool} x {pool}, tolerance {options.tolerance:g}, seed "
        f"{options.seed}, {options.device}"
    )
    print(f"\n{'':32} {'train %':>8} {'test %':>7} {'param.':>8} {'time s':>8} {'MB':>7} {'NFE':>6}", end="")
    print(f" {'back':>6} {'VJP':>6}")
    for r in rows:
        counts = (
            f"{r.nfe:6.1f} {r.backward_nfe:6.1f} {r.backward_nvjp:6.1f}" if r.nfe else f"{'-':>6} {'-':>6} {'-':>6}"
        )
        held = "-" if r.megabytes is None else f"{r.megabytes:.1f}"
        print(f"{r.name:32} {r.train:8.2f} {r.test:7.2f} {r.parameters:8d} {r.seconds:8.1f} {held:>7} {counts}")
    if rows[0].name == "ResNet" and len(rows) > 1:
        best = max(rows[1:], key=lambda row: row.test)
        print(f"\nparameters of the ODE-net: {rows[1].parameters / rows[0].parameters:.0%} of the ResNet's;")
        print(
            f"test accuracy of its best way to a gradient against the ResNet's: {best.test - rows[0].test:+.2f} points"
        )
    for line in PAPERS.get(data.name, []):
        print(f"  (the paper's)  {line}")
    options.plot.with_suffix(".json").write_text(json.dumps({"data": data.name, "rows": [asdict(r) for r in rows]}))
    try:
        picture(rows, options.plot, data.name)
    except ImportError:
        print("no picture: pip install matplotlib", file=sys.stderr)
    print(f"\n{options.plot}; {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
