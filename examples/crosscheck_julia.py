"""One model, two worlds: solved and differentiated by torch, and by SciML in Julia.

The same ``torch.nn.Module`` goes to pynode's own solver and, as a generated Julia program, to OrdinaryDiffEq.jl with
SciMLSensitivity.jl. The table holds the final state and the gradients in y0 and all parameters of every sensitivity
algorithm of either side against a reference (torch, Vern9 at 1e-12, exact discrete adjoint), and a finite difference
of SciPy's solution along a random direction holds the reference itself. Chen et al. (2018) for the model, Rackauckas
et al. (2020) for SciML's side.

Without Julia the torch half runs, and the script says what to install: ``pip install 'pynode[julia]' && pynode julia
setup``.

How it differs from ``pynode crosscheck``, which does this for any model of yours with more oracles and a verdict: it
is short enough to be read. The first solve and gradient in Julia compile for seconds to minutes; times are of the
second.

    python examples/crosscheck_julia.py [--quick] [--seed 0] [--plot crosscheck_julia.png]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import pynode
from pynode.backends import backend_from_name

INSTALL = "pip install 'pynode[julia]' && pynode julia setup && pynode doctor"
SENSEALGS = {
    "torch": ("CheckpointedAdjoint", "GaussAdjoint", "InterpolatingAdjoint", "QuadratureAdjoint", "BacksolveAdjoint"),
    "julia": ("GaussAdjoint", "InterpolatingAdjoint", "QuadratureAdjoint", "BacksolveAdjoint"),
}
TOLERANCE = 1e-7


class Field(nn.Module):
    """The spiral's network of torchdiffeq's demo, with the time as an input."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 50), nn.Tanh(), nn.Linear(50, 2))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(torch.cat([y**3, t.expand(*y.shape[:-1], 1)], -1)) - 0.1 * y


def gradient(field: nn.Module, y0: Tensor, t: Tensor, tolerance: float, **options) -> tuple[Tensor, list[Tensor], str]:
    """Final state, gradients of a loss in y0 and the parameters, and evaluations forward + backward and pullbacks."""
    y0 = y0.clone().requires_grad_()
    sol = pynode.solve(field, y0, t, rtol=tolerance, atol=tolerance, **options)
    found = torch.autograd.grad(sol.ys.square().sum(), [y0, *field.parameters()])
    back = sol.stats.backward
    return sol.ys[-1].detach(), list(found), f"{sol.stats.forward.nfe:4d} + {back.nfe:4d} {back.nvjp:9d}"


def distance(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    gap = torch.cat([(a - b).flatten() for a, b in zip(found, exact, strict=True)]).norm()
    return (gap / torch.cat([b.flatten() for b in exact]).norm()).item()


def against_scipy(field: nn.Module, y0: Tensor, t: Tensor, exact: Tensor) -> float | None:
    """Relative gap between the gradient in y0 along a direction and SciPy's central difference; None without SciPy."""
    try:
        from scipy.integrate import solve_ivp
    except ImportError:
        return None

    def loss(start: Tensor) -> float:
        def f(time: float, y):
            with torch.no_grad():
                return (
                    field(torch.tensor(time, dtype=y0.dtype), torch.from_numpy(y).reshape(y0.shape)).flatten().numpy()
                )

        found = solve_ivp(
            f, (t[0].item(), t[-1].item()), start.flatten().numpy(), "DOP853", t.numpy(), rtol=1e-12, atol=1e-12
        )
        return float((found.y**2).sum())

    direction = torch.randn(y0.shape, dtype=y0.dtype)
    h = 1e-4
    difference = (loss(y0 + h * direction) - loss(y0 - h * direction)) / (2 * h)
    return abs(difference / (exact * direction).sum().item() - 1)


def draw(rows: list[tuple[str, float, float]], out: str) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no picture: it needs matplotlib (pip install 'pynode[plot]')", file=sys.stderr)
        return
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    names, states, slopes = zip(*rows, strict=True)
    axes.semilogx(states, range(len(rows)), "o", label="final state")
    axes.semilogx(slopes, range(len(rows)), "s", label="gradient")
    axes.axvline(TOLERANCE, color="k", lw=1, ls=":", label="tolerance")
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.set(xlabel="relative distance from the reference", title="torch and SciML")
    axes.legend(fontsize=8)
    figure.savefig(out, dpi=120)
    print(f"picture: {out}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one sensitivity algorithm of each side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", default="crosscheck_julia.png", metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.perf_counter()

    torch.manual_seed(options.seed)
    field, y0 = Field().double(), torch.randn(8, 2, dtype=torch.float64)
    t = torch.linspace(0.0, 3.0, 7, dtype=torch.float64)
    end, exact, _ = gradient(field, y0, t, 1e-12, algorithm=pynode.Vern9())
    gap = against_scipy(field, y0, t, exact[0])

    lacking = backend_from_name("julia").absent()
    if lacking is None:
        print("  Julia starts ...", file=sys.stderr, flush=True)  # now, so that its messages stay out of the table
        pynode.solve(field, y0, t, backend="julia", algorithm=pynode.Tsit5())
    count = sum(p.numel() for p in field.parameters())
    print(f"network of {count} parameters, 8 samples, Tsit5 at {TOLERANCE:g}, float64; relative distances")
    print(f"{'':30} {'final state':>12} {'gradient':>9} {'evaluations':>11} {'pullbacks':>9} {'ms':>8}")
    rows = []
    for backend, names in SENSEALGS.items():
        if backend == "julia" and lacking is not None:
            continue
        for name in names[: 1 if options.quick else None]:
            print(f"  {backend} {name} ...", file=sys.stderr)
            how = {"backend": backend, "sensealg": getattr(pynode, name)(), "algorithm": pynode.Tsit5()}
            gradient(field, y0, t, TOLERANCE, **how)
            start = time.perf_counter()
            state, found, evaluations = gradient(field, y0, t, TOLERANCE, **how)
            ms = 1e3 * (time.perf_counter() - start)
            rows.append((f"{backend} {name}", distance([state], [end]), distance(found, exact)))
            print(f"{rows[-1][0]:30} {rows[-1][1]:12.1e} {rows[-1][2]:9.1e} {evaluations} {ms:8.1f}", flush=True)
    note = "SciPy is not installed" if gap is None else f"{gap:.1e} from SciPy's finite difference"
    print(f"the reference's gradient in y0: {note} along a random direction")
    if lacking is not None:
        print(f"\nThe Julia half did not run: {lacking}.\nTo install it: {INSTALL}")
    draw(rows, options.plot)
    print(f"seed {options.seed}; run time {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
