"""Densities of two circles and of eight Gaussians by continuous normalising flows (FFJORD, Grathwohl et al. 2019).

For each target and trace estimator a flow is trained by maximum likelihood; the table gives the negative log-likelihood
of fresh data in nats, evaluated with the exact trace, beside that of the true density, which no model can beat.

How it differs from the original: two hidden layers of gated, time-conditioned units ("concatsquash") in one flow, a
fixed end time, 1500 iterations (150 with --quick, which leaves the circles half done) instead of ten thousand, larger
initial weights, a looser tolerance in training; and the targets are such that their own density is known.

    python examples/cnf.py [--quick] [--seed 0] [--plot cnf.png]
"""

from __future__ import annotations

import argparse
import math
import sys
import time

import torch
from torch import Tensor, nn

from pynode import DirectAdjoint
from pynode.nn import CNF, ExactTrace, HutchinsonTrace

TRACES = {
    "exact": ExactTrace(),
    "Rademacher": HutchinsonTrace("rademacher"),
    "Gaussian": HutchinsonTrace("gaussian"),
}


class Mixture:
    """Gaussians of one width around points, all as likely: a target with a density."""

    def __init__(self, centres: Tensor, width: float) -> None:
        self.centres, self.width = centres, width

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        which = torch.randint(len(self.centres), (n,), generator=generator)
        return self.centres[which] + self.width * torch.randn(n, 2, generator=generator)

    def log_prob(self, x: Tensor) -> Tensor:
        squares = (x[:, None] - self.centres).square().sum(-1) / self.width**2
        return (-squares / 2).logsumexp(1) - math.log(len(self.centres) * 2 * math.pi * self.width**2)


def circle(radius: float, points: int) -> Tensor:
    angles = torch.arange(points) * (2 * math.pi / points)
    return radius * torch.stack([angles.cos(), angles.sin()], -1)


#: The circles are of so many Gaussians that they overlap to rings.
TARGETS = {
    "two circles": Mixture(torch.cat([circle(1.2, 200), circle(2.6, 200)]), 0.2),
    "eight Gaussians": Mixture(circle(2.6, 8), 0.33),
}


class ConcatSquash(nn.Module):
    """``(W y + b) * sigmoid(g t + c) + h t``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.gate = nn.Linear(1, outputs)
        self.shift = nn.Linear(1, outputs, bias=False)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        t = t.reshape(1)
        return self.linear(y) * torch.sigmoid(self.gate(t)) + self.shift(t)


class Field(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([ConcatSquash(2, width), ConcatSquash(width, width), ConcatSquash(width, 2)])
        with torch.no_grad():  # the gaps between the circles are narrow: torch's weights give functions far smoother
            for layer in self.layers[:2]:
                layer.linear.weight *= 4
                layer.linear.bias *= 4

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        first, second, last = self.layers
        return last(t, torch.tanh(second(t, torch.tanh(first(t, y)))))


def train(target: Mixture, trace: ExactTrace | HutchinsonTrace, options: argparse.Namespace, label: str) -> CNF:
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    cnf = CNF(Field(options.width), 2, trace=trace, rtol=1e-3, atol=1e-3, sensealg=DirectAdjoint())
    optimizer = torch.optim.Adam(cnf.parameters(), lr=options.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=options.iterations)
    for i in range(1, options.iterations + 1):
        loss = -cnf.log_prob(target.sample(options.batch, generator), generator=generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if i % max(1, options.iterations // 4) == 0:
            print(f"  {label}: iteration {i}, loss {loss.item():.3f}", file=sys.stderr, flush=True)
    return cnf


def evaluated(cnf: CNF) -> CNF:
    """The same flow with the exact trace and a tolerance below the digits that are shown."""
    return CNF(cnf.field.f, 2, rtol=1e-5, atol=1e-5)


def draw(target: Mixture, flows: dict[str, CNF], axes, title: str, options: argparse.Namespace) -> None:
    """A row: the target's points and density, then samples and density of each flow."""
    side = torch.linspace(-4, 4, options.pixels)
    grid = torch.cartesian_prod(side, side)
    models = {title: target, **flows}
    top = target.log_prob(grid).exp().max().item()
    for k, (name, model) in enumerate(models.items()):
        generator = torch.Generator().manual_seed(options.seed + 2)
        with torch.no_grad():
            points = model.sample(1500, generator=generator)
            density = model.log_prob(grid).exp().reshape(options.pixels, options.pixels)
        axes[2 * k].plot(*points.T, ".", markersize=1.5, color="tab:blue")
        axes[2 * k].set_title(f"{name}: samples", fontsize=8)
        axes[2 * k + 1].imshow(density.T, origin="lower", extent=(-4, 4, -4, 4), vmin=0, vmax=top, cmap="viridis")
        axes[2 * k + 1].set_title(f"{name}: density", fontsize=8)
    for axis in axes:
        axis.set(xlim=(-4, 4), ylim=(-4, 4), xticks=[], yticks=[], aspect="equal")


def picture(drawn: list[tuple[Mixture, dict[str, CNF], str]], options: argparse.Namespace) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no picture: it needs matplotlib (pip install 'pynode[plot]')", file=sys.stderr)
        return
    columns = 2 * (1 + len(drawn[0][1]))
    figure = Figure(figsize=(2 * columns, 2.2 * len(drawn)), layout="constrained")
    for row, (target, flows, name) in zip(figure.subplots(len(drawn), columns), drawn, strict=True):
        draw(target, flows, row, name, options)
    figure.savefig(options.plot, dpi=130)
    print(f"picture: {options.plot}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="two estimators, few iterations: about a minute of one core"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", "--iterations", dest="iterations", type=int, help="of training, for each flow")
    parser.add_argument("--plot", default="cnf.png", metavar="FILE")
    options = parser.parse_args()
    options.iterations = options.iterations or (150 if options.quick else 1500)
    options.width, options.batch = 64, 128 if options.quick else 256
    options.lr, options.pixels = 2e-2, 60 if options.quick else 120
    torch.set_num_threads(1)
    start = time.perf_counter()

    traces = {name: TRACES[name] for name in (("exact", "Rademacher") if options.quick else TRACES)}
    rows, drawn = [], []
    for name, target in TARGETS.items():
        test = target.sample(2000, torch.Generator().manual_seed(options.seed + 1))
        truth = -target.log_prob(test).mean().item()
        flows = {}
        for label, trace in traces.items():
            began = time.perf_counter()
            cnf = train(target, trace, options, f"{name}, {label} trace")
            seconds = time.perf_counter() - began
            flows[label] = evaluated(cnf)
            with torch.no_grad():
                nll = -flows[label].log_prob(test).mean().item()
                nfe = flows[label].solve(test).stats.forward.nfe
            rows.append((name, label, nll, truth, nfe, seconds))
        drawn.append((target, flows, name))

    print(f"\n{'target':<16} {'trace':<11} {'NLL':>7} {'truth':>7} {'excess':>7} {'NFE':>5} {'training':>9}")
    for name, label, nll, truth, nfe, seconds in rows:
        print(f"{name:<16} {label:<11} {nll:7.3f} {truth:7.3f} {nll - truth:7.3f} {nfe:5d} {seconds:7.1f} s")
    print(
        f"NLL of {len(test)} fresh points in nats, exact trace, rtol = atol = 1e-5; {options.iterations} iterations of "
        f"{options.batch} points, width {options.width}, seed {options.seed}."
    )
    picture(drawn, options)
    print(f"run time {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
