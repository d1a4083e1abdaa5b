"""Latent ODE against a recurrent network on bidirectional spirals (Chen et al. 2018, section 5.1).

There are two spirals, turning in opposite directions; each sample is a stretch of one that begins anywhere on it. Of
its first 100 points 30, 50 or 100 noisy ones are observed, at times that differ from sample to sample; what is scored
is the next 100 points of samples that were not learned from. The network is a GRU of about the same number of
parameters that reads (value, time since the last one) and predicts the next value at a given distance in time; beyond
the data it feeds on its own predictions, either at every point, or at the mean distance of its training data, which
is what it has learned best and makes it a much stronger opponent.

Differences from the paper: fewer samples and iterations, a GRU in place of the vanilla RNN in both models, minibatches,
KL annealing, tanh for ELU and ReLU. Errors are against the spirals without noise. The paper's figures are not quoted.

    python examples/latent_ode.py --quick
    python examples/latent_ode.py --seeds 3
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

import pynode
from pynode.nn import ODERNN, LatentODE, Recognition

POINTS = 100  # observed part, and as many beyond it
NOISE = 0.3
SCALE = 5.0  # models see the data divided by it
FAR, NEAR = "RNN, fed back at the data's mean distance", "RNN, fed back at every point"


def spirals(count: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Times (length,) and noiseless stretches (count, length, 2) of the two spirals, beginning anywhere on them."""
    total = 1000
    angle = torch.linspace(0, 6 * math.pi, total)
    outward, inward = 0.3 * angle, 15.0 / (6 * math.pi + 1 - angle)
    out = torch.stack([outward * torch.cos(angle) + 5, outward * torch.sin(angle)], -1)
    back = torch.stack([inward * torch.cos(-angle + 6 * math.pi) - 5, inward * torch.sin(-angle + 6 * math.pi)], -1)
    starts = torch.randint(POINTS, total - length, (count,), generator=generator)
    stretches = [(out if i % 2 else back)[start : start + length] for i, start in enumerate(starts.tolist())]
    return torch.arange(length) / 20, torch.stack(stretches)


def observed(truth: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Noisy values at ``count`` random rows of each sample's first POINTS, the first always, NaN elsewhere."""
    noisy = truth[:, :POINTS] + NOISE * torch.randn(truth[:, :POINTS].shape, generator=generator)
    ranks = torch.rand(len(truth), POINTS, generator=generator)
    ranks[:, 0] = -1.0
    kept = ranks.argsort(1).argsort(1) < count
    return torch.where(kept.unsqueeze(-1), noisy, torch.nan)


class Dynamics(nn.Module):
    def __init__(self, latent: int, width: int = 32) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(latent, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, latent)
        )

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.net(z)


def latent_ode(latent: int = 6, hidden: int = 25) -> LatentODE:
    rnn = ODERNN(None, nn.GRUCell(5, hidden), hidden, gap=True, reverse=True)
    decoder = nn.Sequential(nn.Linear(latent, 32), nn.Tanh(), nn.Linear(32, 2))
    readout = nn.Linear(hidden, 2 * latent)
    with torch.no_grad():
        readout.bias[latent:] -= 3.0  # begin with narrow posteriors: fields learn little from random states
    encoder = Recognition(rnn, readout)
    return LatentODE(encoder, Dynamics(latent), decoder, NOISE / SCALE, rtol=1e-4, atol=1e-5)


class Recurrent(nn.Module):
    """Predicts the next value from a GRU's state and the time until it."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.rnn = ODERNN(None, nn.GRUCell(5, hidden), hidden, gap=True)
        self.head = nn.Sequential(nn.Linear(hidden + 1, 20), nn.Tanh(), nn.Linear(20, 2))

    def next(self, state: Tensor, gap: Tensor) -> Tensor:
        return self.head(torch.cat([state, gap], -1))

    def loss(self, ts: Tensor, x: Tensor) -> Tensor:
        """Squared error of one-step predictions over the observed rows."""
        states = self.rnn(ts, x).after
        seen = x.isnan().logical_not().all(-1)
        rows = torch.arange(len(ts)).expand_as(seen)
        last = torch.where(seen, rows, 0).cummax(1).values[:, :-1]
        ahead = self.next(states[:, :-1], (ts[1:] - ts[last]).unsqueeze(-1))
        error = (torch.where(seen.unsqueeze(-1), x, 0.0)[:, 1:] - ahead) * seen[:, 1:, None]
        return error.pow(2).sum() / seen[:, 1:].sum()

    def extrapolate(self, ts: Tensor, x: Tensor, at: Tensor, stride: int) -> Tensor:
        """Predictions at ``at``, beyond ``ts``; every ``stride``-th is fed back as the next observation."""
        state = self.rnn(ts, x).after[:, -1]
        seen = x.isnan().logical_not().all(-1)
        last = ts[torch.where(seen, torch.arange(len(ts)), 0).amax(1)].unsqueeze(-1)
        predicted = []
        for row, t in enumerate(at):
            gap = t - last
            predicted.append(self.next(state, gap))
            if (row + 1) % stride == 0:
                state = self.rnn.cell(torch.cat([predicted[-1], torch.ones_like(predicted[-1]), gap], -1), state)
                last = t.expand_as(last)
        return torch.stack(predicted, 1)


def train(model: nn.Module, ts: Tensor, x: Tensor, iterations: int, batch: int, say: str) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations, 1e-4)
    for i in range(iterations):
        chosen = x[torch.randint(len(x), (batch,))]
        if isinstance(model, LatentODE):
            loss = -model.elbo(ts, chosen).value(min(1.0, i / (0.2 * iterations))).mean()
        else:
            loss = model.loss(ts, chosen)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        if (i + 1) % max(1, iterations // 4) == 0:
            print(f"  {say} iteration {i + 1}/{iterations}: loss {loss.item():.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, 30 observations, few iterations")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--observations", type=int, nargs="+", default=[30, 50, 100])
    parser.add_argument("--spirals", type=int, default=500)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("latent_ode.png"))
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.iterations, options.observations = 1, 250, [30]
    begun = time.perf_counter()
    sizes = [sum(p.numel() for p in m.parameters()) for m in (latent_ode(), Recurrent())]
    print(f"pynode {pynode.__version__}; parameters: latent ODE {sizes[0]}, RNN {sizes[1]}")
    errors: dict[tuple[int, str], list[float]] = {}
    shown: dict[str, Tensor] = {}
    for seed in range(options.seed, options.seed + options.seeds):
        for count in options.observations:
            generator = torch.Generator().manual_seed(seed)
            ts, known = spirals(options.spirals, POINTS, generator)
            grid, truth = spirals(200, 2 * POINTS, generator)
            learn, test = (observed(v, count, generator) / SCALE for v in (known, truth))
            for name, make in (("latent ODE", latent_ode), ("RNN", Recurrent)):
                torch.manual_seed(seed)
                model = make()
                train(model, ts, learn, options.iterations, options.batch, f"seed {seed}, {count} points, {name}:")
                with torch.no_grad():
                    if isinstance(model, LatentODE):
                        whole = {name: SCALE * model(ts, test, grid)}
                    else:
                        strides = {FAR: round(POINTS / count), NEAR: 1}
                        whole = {k: SCALE * model.extrapolate(ts, test, grid[POINTS:], n) for k, n in strides.items()}
                for label, path in whole.items():
                    error = (path[:, -POINTS:] - truth[:, POINTS:]).pow(2).sum(-1).mean().sqrt().item()
                    errors.setdefault((count, label), []).append(error)
                    print(f"seed {seed}, {count} observations, {label}: extrapolation error {error:.3f}", flush=True)
                if seed == options.seed and count == options.observations[0]:
                    shown |= {"truth": truth, "x": SCALE * test, **whole}
    print(f"\nextrapolation error (root mean squared distance to the noiseless spiral), {options.seeds} seed(s)")
    print(f"observations | latent ODE | {FAR} | {NEAR} | seeds in which the latent ODE is better than each")
    for count in options.observations:
        found = [errors[count, label] for label in ("latent ODE", FAR, NEAR)]
        better = [sum(a < b for a, b in zip(found[0], theirs, strict=True)) for theirs in found[1:]]
        text = [f"{torch.tensor(v).mean():.3f} ({min(v):.3f} to {max(v):.3f})" for v in found]
        print(f"{count:12d} | {' | '.join(text)} | {better[0]} and {better[1]} of {options.seeds}")
    figure, axes = plt.subplots(1, 4, figsize=(16, 4))
    for i, ax in enumerate(axes):
        ax.plot(*shown["truth"][i].T, "k-", lw=0.8, label="truth")
        ax.plot(*shown["x"][i].T, "k.", ms=4, label="observed")
        ax.plot(*shown["latent ODE"][i].T, "C0-", label="latent ODE")
        ax.plot(*shown[FAR][i].T, "C3-", label=FAR)
        ax.plot(*shown[NEAR][i].T, "C3:", label=NEAR)
        ax.set_aspect("equal")
    axes[0].legend(fontsize=7)
    figure.suptitle(f"{options.observations[0]} observations of the first half of each stretch")
    figure.savefig(options.out, dpi=120, bbox_inches="tight")
    print(f"picture: {options.out}; {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
