"""A universal ODE on stiff chemistry: an unknown rate law, learned through implicit solvers.

Robertson's three species A, B, C react at rates that differ by nine orders of magnitude::

    A -> B      0.04 A              known
    B + C -> A  1e4 B C             known
    2 B -> B+C  r(B)                unknown: B * exp(net(log B)), a network of 34 parameters

The network stands inside the known equations (a *universal differential equation*, Rackauckas et al. 2020, "Universal
Differential Equations for Scientific Machine Learning"; stiff training as in Kim, Ji, Deng, Ma, Rackauckas 2021,
"Stiff Neural Ordinary Differential Equations"). It is trained on noisy measurements of all three species over eight
decades of time, by the gradient through RadauIIA5, Rodas5P and KenCarp4. The truth is ``r(B) = 3e7 B**2``; the table
shows how far the learned law is from it over the range of B that the data visits. Then Tsit5 is given the same problem
and 5 000 steps, and the library says what became of it.

How it differs from the papers: one rate law is unknown and the other two are given; Kim et al. learn the whole field,
with scaled equations and Adam; data and network are synthetic and small, and there is no sparse regression on the
learned law.

    python examples/stiff_chemistry.py [--quick] [--seed 0] [--plot stiff_chemistry.png]
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
from torch import Tensor, nn

import pynode
from pynode.nn import UniversalODE

METHODS = {"RadauIIA5": pynode.RadauIIA5, "Rodas5P": pynode.Rodas5P, "KenCarp4": pynode.KenCarp4}
SCALE = torch.tensor([1.0, 4e-5, 1.0], dtype=torch.float64)
"""Largest amounts of the species, by which errors are weighed."""

RTOL, ATOL = 1e-3, 1e-8
MOST = 5_000
"""Steps that Tsit5 may take: a hundred times what the implicit methods need."""


def known(t: Tensor, y: Tensor, rate: Tensor) -> Tensor:
    """What is known of the chemistry, with the unknown rate beside it."""
    a, b, c = y.unbind(-1)
    slow, back = 0.04 * a, 1e4 * b * c
    return torch.stack([back - slow, slow - back - rate, rate], -1)


def truth(y: Tensor) -> Tensor:
    return 3e7 * y[..., 1] ** 2


class RateLaw(nn.Module):
    """``B * exp(net(log B))``: positive, and none without its reactant."""

    def __init__(self, width: int = 11) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1)).double()
        with torch.no_grad():
            self.net[-1].bias += 4.0  # somewhere between the other two rates, a factor of 20 off

    def forward(self, y: Tensor) -> Tensor:
        b = y[..., 1]
        # Newton's iterates may leave b below zero by rounding; the law is continued by its value at 1e-9 there.
        magnitude = torch.log(b.clamp(min=1e-9) / 1e-5)
        return b * torch.exp(self.net(magnitude.unsqueeze(-1)).squeeze(-1))


def measurements(t: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """The species at the times, with an error relative to their largest amounts."""
    field = UniversalODE(known, truth, inside=True)
    with torch.no_grad():
        y = pynode.solve(field, START, t, algorithm=pynode.RadauIIA9(), rtol=1e-9, atol=1e-14).ys
    return y + noise * SCALE * torch.randn(y.shape, generator=generator, dtype=y.dtype)


START = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)


def trained(name: str, t: Tensor, data: Tensor, options: argparse.Namespace) -> tuple[RateLaw, dict[str, float]]:
    """A law fitted through one method, and what it cost."""
    torch.manual_seed(options.seed)
    law = RateLaw()
    field = UniversalODE(known, law, inside=True)
    optimizer = torch.optim.LBFGS(law.parameters(), max_iter=options.steps, line_search_fn="strong_wolfe")
    cost = dict.fromkeys(("first", "loss", "gradients", "steps", "forward", "jacobians", "backward"), 0.0)
    begun = time.perf_counter()

    def closure() -> Tensor:
        sol = pynode.solve(field, START, t, algorithm=METHODS[name](), rtol=RTOL, atol=ATOL, backend=options.backend)
        loss = ((sol.ys - data) / SCALE)[1:].square().mean()
        optimizer.zero_grad()
        loss.backward()
        cost["first"] = cost["first"] or loss.item()
        cost["loss"] = loss.item()
        cost["gradients"] += 1
        cost["steps"] = max(cost["steps"], sol.stats.forward.accepted + sol.stats.forward.rejected)
        cost["forward"] += sol.stats.forward.nfe
        cost["jacobians"] += sol.stats.forward.njac
        cost["backward"] += sol.stats.backward.nfe
        progress = f"gradient {cost['gradients']:.0f}, loss {loss.item():.2e}"
        print(f"\r  {name}: {progress} ", end="", file=sys.stderr, flush=True)
        return loss

    optimizer.step(closure)
    print(file=sys.stderr)
    cost["seconds"] = time.perf_counter() - begun
    return law, cost


def deviation(law: RateLaw, b: Tensor) -> tuple[float, float]:
    """Median and largest relative error of the law over a range of B."""
    y = torch.stack([torch.zeros_like(b), b, torch.zeros_like(b)], -1)
    with torch.no_grad():
        error = (law(y) / truth(y) - 1).abs()
    return error.median().item(), error.max().item()


def explicit(law: RateLaw, t: Tensor, most: int) -> tuple[float, str]:
    """How far Tsit5 comes in so many steps, and what the library says."""
    field = UniversalODE(known, law, inside=True)
    with torch.no_grad():
        sol = pynode.solve(field, START, t, algorithm=pynode.Tsit5(), rtol=RTOL, atol=ATOL, max_steps=most, throw=False)
    return sol.span[1], sol.message or "none: it succeeded"


def draw(laws: dict[str, RateLaw], b: Tensor, t: Tensor, data: Tensor, out: str) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no picture: it needs matplotlib (pip install 'pynode[plot]')", file=sys.stderr)
        return
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    fine = torch.cat([torch.zeros(1), torch.logspace(t[1].log10().item(), t[-1].log10().item(), 100)]).double()
    y = torch.stack([torch.zeros_like(b), b, torch.zeros_like(b)], -1)
    left.loglog(b, truth(y), "k", lw=9, alpha=0.3, label="3e7 B²")
    # The methods agree: the later lines are thinner, for all of them to be seen.
    for i, (name, law) in enumerate(laws.items()):
        width = 5.0 - 1.8 * i
        with torch.no_grad():
            left.loglog(b, law(y), color=f"C{i}", lw=width, label=name)
            field = UniversalODE(known, law, inside=True)
            ys = pynode.solve(field, START, fine, algorithm=pynode.RadauIIA5(), rtol=RTOL, atol=ATOL).ys / SCALE
        for k in range(3):
            right.semilogx(fine[1:], ys[1:, k], "-", color=f"C{i}", lw=width, label=name if k == 0 else None)
    for k, marker in enumerate("osv"):
        right.semilogx(t[1:], data[1:, k] / SCALE[k], f"k{marker}", ms=4, mfc="none", label=f"data, {'ABC'[k]}")
    left.set(xlabel="B", ylabel="rate", title="The learned law")
    right.set(xlabel="t", ylabel="amount / largest", title="Robertson's species")
    for axes in (left, right):
        axes.legend(fontsize=8)
    figure.savefig(out, dpi=120)
    print(f"picture: {out}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer iterations: under two minutes of one core")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="iterations of LBFGS (40, with --quick 10)")
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=list(METHODS))
    parser.add_argument("--backend", default="torch", choices=("torch", "julia"))
    parser.add_argument("--plot", default="stiff_chemistry.png", metavar="FILE")
    options = parser.parse_args()
    options.steps = options.steps or (10 if options.quick else 40)
    torch.set_num_threads(1)
    begun = time.perf_counter()

    t = torch.cat([torch.zeros(1), torch.logspace(-3, 5, 25)]).double()
    data = measurements(t, 0.01, torch.Generator().manual_seed(options.seed))
    clean = measurements(t, 0.0, torch.Generator())
    visited = clean[1:, 1]
    b = torch.logspace(visited.min().log10().item(), visited.max().log10().item(), 200, dtype=torch.float64)
    laws, costs = {}, {}
    for name in options.methods:
        laws[name], costs[name] = trained(name, t, data, options)
    print("  Tsit5 ...", file=sys.stderr)
    reached, message = explicit(laws[options.methods[0]], t, MOST)

    print("Robertson with a learned rate law, t in [0, 1e5], 25 times, 1 % noise; ", end="")
    print(f"at most {options.steps} iterations of LBFGS")
    print(f"{'method':10} {'first loss':>10} {'last loss':>10} {'error of r(B): median':>22} {'largest':>8}", end="")
    print(f" {'gradients':>9} {'steps, most':>12} {'f forward':>10} {'Jacobians':>10} {'f backward':>11} {'s':>6}")
    for name, cost in costs.items():
        median, largest = deviation(laws[name], b)
        print(f"{name:10} {cost['first']:10.2e} {cost['loss']:10.2e} {median:22.1%} {largest:8.1%}", end="")
        print(f" {cost['gradients']:9.0f} {cost['steps']:12.0f} {cost['forward']:10.0f}", end="")
        print(f" {cost['jacobians']:10.0f} {cost['backward']:11.0f} {cost['seconds']:6.0f}")
    noise = ((data - clean) / SCALE)[1:].square().mean()
    print(
        f"(evaluations for Jacobians are not among f; noise alone: loss {noise:.2e}; B from {b[0]:.1e} to {b[-1]:.1e})"
    )
    print(f"\nTsit5 with {MOST} steps reached t = {reached:.3g} of 1e5. The library's message:\n  {message}")
    draw(laws, b, t, data, options.plot)
    print(f"seed {options.seed}, backend {options.backend}; run time {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
