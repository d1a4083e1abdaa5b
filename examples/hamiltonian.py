"""Energy over long times: symplectic steps against DP5 on a pendulum, a learned Hamiltonian against a plain network.

1. A pendulum, four amplitudes as one batch, over 10 000 periods: the energy error of velocity Verlet and Yoshida's
   sixth-order method stays within a bound, that of DP5 (adaptive, rtol = atol = 1e-6) grows with time.
2. From 200 pairs of states half a time unit apart: a separable HamiltonianODE (74 parameters), trained through Verlet
   steps, and a plain network (82), trained through RK4 steps. Both are then run far beyond the data's time.

It follows the pendulum of Greydanus, Dzamba and Yosinski (2019), "Hamiltonian Neural Networks", with these differences:
no noise, pairs of states in place of derivatives as data, a separable energy, LBFGS, and networks of 12 and 16 units.

    python examples/hamiltonian.py [--quick] [--seed 0] [--plot hamiltonian.png]
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
from torch import Tensor, nn

import pynode
from pynode import DP5, RK4, SaveAt, VelocityVerlet, Yoshida6
from pynode.algorithms import Algorithm
from pynode.nn import HamiltonianODE, NeuralODE

PERIOD = 6.7
"""Of the pendulum swung out to 1 rad, about."""

State = tuple[Tensor, Tensor]


def energy(q: Tensor, p: Tensor) -> Tensor:
    return p**2 / 2 + 1 - torch.cos(q)


def pendulum(t: Tensor, y: State) -> State:
    return y[1], -torch.sin(y[0])


def long_run(algorithm: Algorithm, periods: int) -> tuple[Tensor, Tensor, int, float]:
    """Times in periods, and the largest energy error of four pendulums in windows of two periods there."""
    starts = torch.tensor([0.4, 0.7, 1.0, 1.3], dtype=torch.float64)
    window = torch.arange(40, dtype=torch.float64) * PERIOD / 20
    first = torch.logspace(0.0, torch.tensor(float(periods)).log10().item(), 25, dtype=torch.float64).round().unique()
    first = torch.cat([first[:1], first[2:][first[2:].diff(prepend=first[:1]) > 2]])
    t = torch.cat([window + PERIOD * (n - 1) for n in first])
    begun = time.perf_counter()
    with torch.no_grad():
        sol = pynode.solve(
            pendulum,
            (starts, torch.zeros_like(starts)),
            torch.cat([torch.zeros(1, dtype=torch.float64), t[-1:]]),
            algorithm=algorithm,
            rtol=1e-6,
            atol=1e-6,
            max_steps=10**8,
            saveat=SaveAt(ts=t, dense=False),
        )
    seconds = time.perf_counter() - begun
    values = energy(*sol.ys)
    error = (values - values[0]).abs().amax(-1).reshape(-1, 40).amax(-1)
    return first, error, sol.stats.forward.nfe, seconds


class Plain(nn.Module):
    """A network that knows nothing of energies."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))

    def forward(self, t: Tensor, y: State) -> State:
        dq, dp = self.net(torch.cat(y, dim=-1)).chunk(2, dim=-1)
        return dq, dp


def fitted(field: nn.Module, algorithm: Algorithm, start: State, end: State, iterations: int) -> float:
    """Train ``field`` on pairs of states; the root mean square error in the end."""
    ode = NeuralODE(field, (0.0, 0.5), algorithm=algorithm)
    optimiser = torch.optim.LBFGS(field.parameters(), max_iter=iterations, line_search_fn="strong_wolfe")
    steps = 0

    def closure() -> Tensor:
        nonlocal steps
        optimiser.zero_grad()
        loss = torch.stack([(a - b).square().mean() for a, b in zip(ode(start), end, strict=True)]).mean()
        loss.backward()
        steps += 1
        if steps % 50 == 0:
            print(f"  {type(field).__name__}: evaluation {steps}, loss {loss.item():.3g}", file=sys.stderr, flush=True)
        return loss

    optimiser.step(closure)
    with torch.no_grad():
        return torch.stack([(a - b).square().mean() for a, b in zip(ode(start), end, strict=True)]).mean().sqrt().item()


def learned(seed: int, iterations: int) -> dict[str, tuple[nn.Module, Algorithm, float]]:
    """The two models, what they are run with, and their errors on the training data."""
    torch.manual_seed(seed)
    start = tuple(3.0 * torch.rand(200, 1, dtype=torch.float64) - 1.5 for _ in range(2))
    with torch.no_grad():
        sol = pynode.solve(pendulum, start, [0.0, 0.5], algorithm="vern9", rtol=1e-11, atol=1e-11)
    end = tuple(x[-1] for x in sol.ys)

    def scalar() -> nn.Module:
        return nn.Sequential(nn.Linear(1, 12), nn.Tanh(), nn.Linear(12, 1)).double()

    hamiltonian = HamiltonianODE(kinetic=scalar(), potential=scalar())
    plain = Plain().double()
    verlet = VelocityVerlet(steps=5)
    return {
        "HamiltonianODE, Verlet": (
            hamiltonian,
            VelocityVerlet(dt=0.1),
            fitted(hamiltonian, verlet, start, end, iterations),
        ),
        "plain network, RK4": (plain, RK4(dt=0.1), fitted(plain, RK4(steps=5), start, end, iterations)),
    }


def draw(curves: dict[str, tuple[Tensor, Tensor]], rollouts: dict[str, tuple[Tensor, Tensor]], out: str) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no picture: it needs matplotlib (pip install 'pynode[plot]')", file=sys.stderr)
        return
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, (periods, error) in curves.items():
        left.loglog(periods, error, marker=".", label=name)
    left.set(xlabel="periods", ylabel="largest energy error in two periods", title="The pendulum itself")
    for name, (t, values) in rollouts.items():
        right.plot(t / PERIOD, values, label=name, lw=1)
    right.set(xlabel="periods", ylabel="true energy", title="Learned from pairs of states")
    for axes in (left, right):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    figure.savefig(out, dpi=120)
    print(f"picture: {out}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="300 periods and short training: about a minute")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--periods", type=int, help="of the pendulum (10000, with --quick 300)")
    parser.add_argument("--steps", type=int, help="iterations of training (150, with --quick 40)")
    parser.add_argument("--plot", default="hamiltonian.png", metavar="FILE")
    options = parser.parse_args()
    begun = time.perf_counter()
    torch.set_num_threads(1)

    periods = options.periods or (300 if options.quick else 10_000)
    methods: dict[str, Algorithm] = {
        "VelocityVerlet, 20 steps a period": VelocityVerlet(dt=PERIOD / 20),
        "DP5, rtol = atol = 1e-6": DP5(),
        "Yoshida6, 10 steps a period": Yoshida6(dt=PERIOD / 10),
    }
    curves = {}
    title = f"pendulum, {periods} periods"
    print(f"{title:36} {'evaluations':>12} {'|dH| at start':>14} {'at end':>10} {'s':>6}")
    for name, algorithm in methods.items():
        at, error, nfe, seconds = long_run(algorithm, periods)
        curves[name] = (at, error)
        print(f"{name:36} {nfe:12d} {error[0]:14.2e} {error[-1]:10.2e} {seconds:6.1f}", flush=True)

    models = learned(options.seed, options.steps or (40 if options.quick else 150))
    span = PERIOD * (30 if options.quick else 200)
    rollouts = {}
    title = f"learned, run for {round(span / PERIOD)} periods"
    print(f"{title:36} {'rms on data':>12} {'true energy at start':>21} {'in the last ten periods':>24}")
    for name, (field, algorithm, error) in models.items():
        y0 = (torch.tensor([1.0], dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
        t = torch.arange(int(span / 0.5), dtype=torch.float64) * 0.5
        with torch.no_grad():
            ys = pynode.solve(field, y0, t, algorithm=algorithm, max_steps=10**7, throw=False).ys
        values = energy(*ys)[:, 0]
        rollouts[name] = (t[: len(values)], values)
        last = values[-int(10 * PERIOD / 0.5) :]
        ends = f"{last.min().item():.4f} to {last.max().item():.4f}"
        print(f"{name:36} {error:12.2e} {values[0].item():21.4f} {ends:>24}")
    draw(curves, rollouts, options.plot)
    print(f"seed {options.seed}; run time {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
