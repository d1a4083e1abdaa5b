"""A conditional continuous normalising flow: one field, a density for every angle.

Given an angle, points come from two Gaussians at opposite ends of a bar that is turned by it. The flow sees the
angle's cosine and sine (an encoder) beside the state, and is trained by maximum likelihood on angles drawn at random:
with the exact trace, with Hutchinson's estimate (FFJORD, Grathwohl et al. 2019), and, for comparison, without the
angle. The table gives the negative log-likelihood in nats at angles that training may or may not have met, by the
exact trace, beside that of the true density. What the condition is worth is the difference to the flow without it.

Conditional flows: Massaroli, Poli et al. (2020), "Dissecting Neural ODEs" (data-controlled), and FFJORD. How it
differs: neither paper has this target; it is chosen because its true density is known at every condition. One flow of
two hidden layers, some hundred iterations.

    python examples/conditional_cnf.py [--quick] [--seed 0] [--plot conditional_cnf.png]
"""

from __future__ import annotations

import argparse
import math
import sys
import time

import torch
from torch import Tensor, nn

from pynode import DirectAdjoint
from pynode.nn import CNF, ConcatContext, ConcatSquash, ExactTrace, HutchinsonTrace

RADIUS, WIDTH = 2.0, 0.4
ANGLES = (0.0, math.pi / 5, math.pi / 2, 4 * math.pi / 5)


def ends(angle: Tensor) -> Tensor:
    """The bar's ends, (2, batch, 2), for angles (batch, 1)."""
    end = RADIUS * torch.cat([angle.cos(), angle.sin()], -1)
    return torch.stack([end, -end])


def draw_points(angle: Tensor, generator: torch.Generator) -> Tensor:
    which = torch.randint(2, (len(angle),), generator=generator)
    return ends(angle)[which, torch.arange(len(angle))] + WIDTH * torch.randn(len(angle), 2, generator=generator)


def true_log_prob(x: Tensor, angle: Tensor) -> Tensor:
    squares = (x - ends(angle)).square().sum(-1) / WIDTH**2
    return (-squares / 2).logsumexp(0) - math.log(2 * 2 * math.pi * WIDTH**2)


class Encoder(nn.Module):
    """Of twice the angle: a bar turned by half a circle is the same bar."""

    def forward(self, angle: Tensor) -> Tensor:
        return torch.cat([(2 * angle).cos(), (2 * angle).sin()], -1)


class Net(nn.Module):
    """Gated, time-conditioned layers from state and context to the state's derivative."""

    def __init__(self, inputs: int, width: int = 64) -> None:
        super().__init__()
        sizes = [(inputs, width), (width, width), (width, 2)]
        self.layers = nn.ModuleList(ConcatSquash(nn.Linear(*size)) for size in sizes)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        first, second, last = self.layers
        return last(t, torch.tanh(second(t, torch.tanh(first(t, y)))))


def flow(conditional: bool, trace: ExactTrace | HutchinsonTrace, tolerance: float, net: Net | None = None) -> CNF:
    net = Net(4 if conditional else 2) if net is None else net
    options = {"trace": trace, "rtol": tolerance, "atol": tolerance, "sensealg": DirectAdjoint()}
    if conditional:
        return CNF(ConcatContext(net), 2, encoder=Encoder(), **options)
    return CNF(net, 2, **options)


WAYS = {
    "conditional, exact": (True, ExactTrace()),
    "conditional, Hutchinson": (True, HutchinsonTrace("rademacher")),
    "without the angle, exact": (False, ExactTrace()),
}


def train(label: str, options: argparse.Namespace) -> tuple[CNF, float]:
    """The flow, to be evaluated with the exact trace at a tight tolerance, and the seconds of its training."""
    conditional, trace = WAYS[label]
    torch.manual_seed(options.seed)
    generator = torch.Generator(options.device).manual_seed(options.seed)
    cnf = flow(conditional, trace, 1e-3)
    optimizer = torch.optim.Adam(cnf.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=options.steps)
    begun = time.perf_counter()
    for i in range(options.steps):
        angle = math.pi * torch.rand(options.batch, 1, generator=generator)
        x = draw_points(angle, generator)
        loss = -cnf.log_prob(x, angle if conditional else None, generator=generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        print(f"\r  {label}: {i + 1}/{options.steps}, loss {loss.item():.3f} ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    seconds = time.perf_counter() - begun
    field = cnf.field.f
    return flow(conditional, ExactTrace(), 1e-5, field.net if conditional else field), seconds


def picture(flows: dict[str, CNF], out: str) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no picture: it needs matplotlib (pip install 'pynode[plot]')", file=sys.stderr)
        return
    side = torch.linspace(-3.5, 3.5, 60)
    grid = torch.cartesian_prod(side, side)
    figure = Figure(figsize=(2.4 * len(ANGLES), 2.4 * (1 + len(flows))), layout="constrained")
    rows = figure.subplots(1 + len(flows), len(ANGLES))
    for row, (label, cnf) in zip(rows, [("truth", None), *flows.items()], strict=True):
        for axes, value in zip(row, ANGLES, strict=True):
            angle = torch.full((len(grid), 1), value)
            with torch.no_grad():
                if cnf is None:
                    log_p = true_log_prob(grid, angle)
                else:
                    log_p = cnf.log_prob(grid, angle if WAYS[label][0] else None)
            axes.imshow(
                log_p.exp().reshape(60, 60).T.cpu(), origin="lower", extent=(-3.5, 3.5, -3.5, 3.5), vmin=0, vmax=0.5
            )
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"{label}, {math.degrees(value):.0f}°", fontsize=7)
    figure.savefig(out, dpi=120)
    print(f"picture: {out}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few iterations: about a minute of one core")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="iterations of training, for each flow (800, with --quick 100)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--plot", default="conditional_cnf.png", metavar="FILE")
    options = parser.parse_args()
    options.steps, options.batch = options.steps or (100 if options.quick else 800), 128 if options.quick else 256
    torch.set_num_threads(1)
    torch.set_default_device(options.device)
    begun = time.perf_counter()

    flows, seconds = {}, {}
    for label in WAYS:
        flows[label], seconds[label] = train(label, options)
    test = []
    for i, value in enumerate(ANGLES):
        angle = torch.full((1000, 1), value)
        test.append((angle, draw_points(angle, torch.Generator(options.device).manual_seed(options.seed + 1 + i))))

    print(f"negative log-likelihood of 1000 fresh points in nats; {options.steps} iterations of {options.batch}")
    print(
        f"{'flow':26}"
        + "".join(f"{math.degrees(value):7.0f}°" for value in ANGLES)
        + f"{'mean':>8} {'NFE':>5} {'s':>6}"
    )
    truth = [-true_log_prob(x, angle).mean().item() for angle, x in test]
    print(f"{'truth':26}" + "".join(f"{value:8.3f}" for value in [*truth, sum(truth) / len(truth)]))
    for label, cnf in flows.items():
        found, nfe = [], 0
        with torch.no_grad():
            for angle, x in test:
                context = angle if WAYS[label][0] else None
                found.append(-cnf.log_prob(x, context).mean().item())
                nfe = max(nfe, cnf.solve(x, None, context).stats.forward.nfe)
        cells = "".join(f"{value:8.3f}" for value in [*found, sum(found) / len(found)])
        print(f"{label:26}{cells} {nfe:5d} {seconds[label]:6.0f}")
    picture(flows, options.plot)
    print(f"seed {options.seed}; run time {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
