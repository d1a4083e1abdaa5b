"""Neural CDE on JapaneseVowels with 0, 30, 50 and 70 % of the rows dropped (after Kidger et al. 2020, section 4.1).

Nine speakers say a vowel; 12 channels, 7 to 29 rows, 270 series to learn from and 370 to test on. Whole rows are
dropped at random from every series, of both sets alike. The path is a cubic Hermite spline of (time, channels) with
backward differences, and stops where a series ends.

The data are the files JapaneseVowels_TRAIN.ts and JapaneseVowels_TEST.ts of the UEA archive; data.py finds them in
--data, in the folders of PYNODE_DATA, or in the package aeon, which carries them (pip install aeon).

Differences from the paper: another data set of the same archive, smaller networks, one step of Heun's method from knot
to knot in training. The table also tells the accuracy of the same models solved by Tsit5 with tolerances of 1e-5: that
they are differential equations, not their discretisation.

    python examples/neural_cde.py --quick
    python examples/neural_cde.py --data DIR --seeds 3
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from data import VOWELS, add_arguments, find_vowels
from torch import Tensor, nn

import pynode
from pynode.controls import Control, HermiteControl, with_time
from pynode.nn import MatrixField, NeuralCDE


def read(path: Path) -> tuple[Tensor, Tensor]:
    """Series (N, 29, 12), NaN behind their ends, and classes (N,), from a file in the archive's format."""
    lines = path.read_text().splitlines()
    rows = lines[lines.index("@data") + 1 :]
    series, classes = [], []
    for row in filter(None, rows):
        *channels, label = row.split(":")
        series.append(torch.tensor([[float(v) for v in channel.split(",")] for channel in channels]).T)
        classes.append(int(label) - 1)
    padded = nn.utils.rnn.pad_sequence(series, batch_first=True, padding_value=torch.nan)
    return nn.functional.pad(padded, (0, 0, 0, 29 - padded.shape[1]), value=torch.nan), torch.tensor(classes)


def dropped(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """``x`` without a share of each series' rows; the first and the last stay."""
    exists = x.isnan().logical_not().all(-1)
    length = exists.sum(1, keepdim=True)
    chance = torch.rand(exists.shape, generator=generator)
    chance[:, 0] = 2.0
    chance.scatter_(1, length - 1, 2.0)
    chance[exists.logical_not()] = 3.0
    rank = chance.argsort(1).argsort(1)
    return torch.where((rank < (share * length).round()).unsqueeze(-1), torch.nan, x)


def path(x: Tensor) -> Control:
    ts = torch.arange(x.shape[1]) / 10.0
    return HermiteControl(ts, with_time(ts, x))


def network(hidden: int = 32) -> NeuralCDE:
    field = MatrixField(hidden, 13, width=64)
    return NeuralCDE(field, nn.Linear(13, hidden), nn.Linear(hidden, 9), algorithm=pynode.Heun())


def train(model: NeuralCDE, x: Tensor, labels: Tensor, epochs: int, batch: int, say: str) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    losses = []
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(x)).split(batch):
            loss = nn.functional.cross_entropy(model(path(x[rows])), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += loss.item() * len(rows)
        schedule.step()
        losses.append(total / len(x))
        if (epoch + 1) % max(1, epochs // 4) == 0:
            print(f"  {say} epoch {epoch + 1}/{epochs}: loss {losses[-1]:.4f}", file=sys.stderr, flush=True)
    return losses


def accuracy(model: NeuralCDE, x: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return 100 * (model(path(x)).argmax(-1) == labels).double().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, 50 % dropped, few epochs")
    add_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--drop", type=int, nargs="+", default=[0, 30, 50, 70], help="percent")
    parser.add_argument("--plot", "--out", dest="out", type=Path, default=Path("neural_cde.png"))
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.epochs, options.drop = 1, 12, [50]
    begun = time.perf_counter()
    try:
        place = find_vowels(options.data)
    except pynode.InputError as error:
        raise SystemExit(str(error)) from None
    print(f"data: JapaneseVowels from {place}", file=sys.stderr)
    (x, labels), (x_test, labels_test) = (read(place / file) for file in VOWELS)
    mean, std = x.nanmean((0, 1)), (x - x.nanmean((0, 1))).pow(2).nanmean((0, 1)).sqrt()
    x, x_test = (x - mean) / std, (x_test - mean) / std
    count = sum(p.numel() for p in network().parameters())
    print(f"pynode {pynode.__version__}; JapaneseVowels, {len(x)} + {len(x_test)} series; {count} parameters")
    found: dict[int, list[tuple[float, float]]] = {}
    figure, ax = plt.subplots(figsize=(5, 3.5))
    for share in options.drop:
        for seed in range(options.seed, options.seed + options.seeds):
            generator = torch.Generator().manual_seed(seed)
            torch.manual_seed(seed)
            learn, test = (dropped(v, share / 100, generator) for v in (x, x_test))
            model = network()
            losses = train(model, learn, labels, options.epochs, options.batch, f"{share} % dropped, seed {seed}:")
            own = accuracy(model, test, labels_test)
            model.algorithm = pynode.Tsit5()
            exact = accuracy(model, test, labels_test)
            found.setdefault(share, []).append((own, exact))
            print(
                f"{share} % dropped, seed {seed}: test accuracy {own:.1f} %, by Tsit5 {exact:.1f} %",
                file=sys.stderr,
                flush=True,
            )
            ax.plot(losses, f"C{options.drop.index(share)}", label=f"{share} %" if seed == options.seed else None)
    print(f"\ntest accuracy in %, mean and range of {options.seeds} seed(s), {options.epochs} epochs")
    print("dropped | Heun, as trained | Tsit5 at 1e-5")
    for share, pairs in found.items():
        text = []
        for column in zip(*pairs, strict=True):
            text.append(f"{sum(column) / len(column):.1f} ({min(column):.1f} to {max(column):.1f})")
        print(f"{share:5d} % | {text[0]} | {text[1]}")
    ax.set(xlabel="epoch", ylabel="training loss", yscale="log", title="JapaneseVowels: rows dropped")
    ax.legend()
    figure.savefig(options.out, dpi=120, bbox_inches="tight")
    print(f"picture: {options.out}; {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
