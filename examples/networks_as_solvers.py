"""Which network is which solver: Table 1 of "Neural ODEs for undergraduate students" (Aghaei 2020) as running code.

    python examples/networks_as_solvers.py

The same branch ``f(t, y)``, a tanh network in double precision, goes into a discrete network of depth N and into the
solver that the table names for it; the largest difference of their outputs is printed for a batch of 16 states, and
both errors against the flow solved at 1e-12. Where the two are the same scheme the difference is rounding; PolyNet
approaches backward Euler with its order; a RevNet is Euler's method for each half, with the newest other half, and of
the same order. A picture shows the errors against the flow over N.

Differs from the report, which states the correspondence: blocks here have no normalisation and share their weights.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import pynode
from pynode.nn import ConcatTime, NeuralODE, PolyNet, ResNet, RevNet, RungeKuttaNet, TimeSequential


def branch(features: int) -> TimeSequential:
    return TimeSequential(ConcatTime(nn.Linear(features + 1, 16)), nn.Tanh(), nn.Linear(16, features)).double()


def backward_euler(f: nn.Module, y: Tensor, steps: int) -> Tensor:
    """Backward Euler over [0, 1], each step's equation solved by 100 fixed-point iterations."""
    h = 1 / steps
    for k in range(steps):
        z = y
        for _ in range(100):
            z = y + h * f(torch.tensor((k + 1) * h, dtype=y.dtype), z)
        y = z
    return y


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="accepted like in the other examples: this one is quick")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--plot", "--out", dest="out", type=Path, default=Path("networks_as_solvers.png"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    torch.manual_seed(options.seed)
    f, branches, y0, n = branch(4), [branch(4) for _ in range(3)], torch.randn(16, 4).double(), options.depth
    u, v = branch(2), branch(2)

    def halves(t: Tensor, y: Tensor) -> Tensor:
        return torch.cat([u(t, y[:, 2:]), v(t, y[:, :2])], -1)

    def aggregated(t: Tensor, y: Tensor) -> Tensor:
        return sum((g(t, y) for g in branches), torch.zeros_like(y))

    def revnet(y: Tensor, steps: int) -> Tensor:
        return torch.cat(RevNet(u, v, steps)((y[:, :2], y[:, 2:])), -1)

    # network, solver, the field, and both as functions of the state and the depth
    heun = pynode.Heun
    rows = [
        ("ResNet", "forward Euler", f, lambda y, k: ResNet(f, k)(y), pynode.Euler),
        ("ResNeXt (three branches)", "forward Euler", aggregated, lambda y, k: ResNet(aggregated, k)(y), pynode.Euler),
        ("RevNet", "forward Euler by halves", halves, revnet, pynode.Euler),
        ("PolyNet, order 2", "backward Euler", f, lambda y, k: PolyNet(f, k)(y), None),
        ("PolyNet, order 6", "backward Euler", f, lambda y, k: PolyNet(f, k, order=6)(y), None),
        ("dense connections, 2 branches", "Heun", f, lambda y, k: RungeKuttaNet(f, k, algorithm=heun())(y), heun),
        ("dense connections, 4 branches", "RK4", f, lambda y, k: RungeKuttaNet(f, k)(y), pynode.RK4),
    ]  # fmt: skip
    print(f"depth {n}\n{'network':30s} {'solver':24s} {'difference':>10s} {'network':>10s} {'solver':>10s}  (errors)")
    figure = Figure(figsize=(7, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    with torch.no_grad():
        for i, (name, solver, field, network, algorithm) in enumerate(rows):
            flow = NeuralODE(field, algorithm=pynode.Vern9(), rtol=1e-12, atol=1e-12)(y0)
            if algorithm is None:
                other = backward_euler(field, y0, n)
            else:
                other = NeuralODE(field, algorithm=algorithm(steps=n))(y0)
            out = network(y0, n)
            numbers = [(a - b).abs().max().item() for a, b in ((out, other), (out, flow), (other, flow))]
            print(f"{name:30s} {solver:24s} {numbers[0]:10.1e} {numbers[1]:10.1e} {numbers[2]:10.1e}", flush=True)
            depths = [2, 4, 8, 16, 32, 64]
            errors = [(network(y0, k) - flow).abs().max().item() for k in depths]
            axes.loglog(depths, errors, "-" + "os^Dv<>"[i], label=f"{name} ({solver})", ms=11 - i, mfc="none")
    axes.set_xticks(depths, [str(k) for k in depths])
    axes.minorticks_off()
    axes.set_xlabel("depth")
    axes.set_ylabel("distance from the flow")
    axes.legend(fontsize=7)
    figure.savefig(options.out)
    print(f"{options.out}; {time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
