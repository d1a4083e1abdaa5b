"""A large adjoint: parameters and initial state of a partial differential equation from noisy observations.

The Brusselator on a periodic grid of N x N points (2 N**2 states; N = 32 by default)::

    du/dt = a + u**2 v - (b + 1) u + alpha Laplace(u),      dv/dt = b u - u**2 v + alpha Laplace(v)

with the start of the SciML tutorials, ``u = 22 (y (1 - y))**1.5``, ``v = 27 (x (1 - x))**1.5``. Three questions, all
of them answered by the gradient of a least-squares loss through the solver:

1. Which sensitivity algorithm? Time, peak memory and error of the gradient in all 2 N**2 initial values and the three
   parameters, beside a tight reference; and the error of the same gradient where the state begins uniform. Nothing in a
   uniform state needs small steps. The gradient of the discretisation, exact for the steps that were taken, then
   carries perturbations that vary from point to point through steps at which they are unstable: it is right about the
   steps and may be off by orders of magnitude about the equation. A continuous adjoint chooses its own steps, by its
   own error. Those that integrate the state backward are asked too: diffusion is unstable that way, and what the
   library says of it is printed.
2. The parameters a, b, alpha from u alone at four times, with noise of 1 % of its largest value.
3. The initial state, 2 N**2 numbers, from both species at ten times with that noise, beginning with their means: a
   uniform state, for which 1. recommends GaussAdjoint. Diffusion wipes out the fast modes before the first of these
   times, so that the search ends where the loss is that of the noise (Morozov's discrepancy principle).

After Ma, Dixit, Innes, Guo and Rackauckas (2021), "A Comparison of Automatic Differentiation and Continuous
Sensitivity Analysis for Derivatives of Differential Equation Solutions", whose largest problem is this Brusselator.
How it differs: an explicit method, without the forcing that their version switches on at t = 1.1, and inverse problems
in place of timings in Julia; times are of one thread of whatever machine runs it, memory is what torch's operations
hold at once.

    python examples/pde_adjoint.py [--quick] [--seed 0] [--plot pde_adjoint.png]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import pynode
from pynode.live_bytes import peak_during

SENSEALGS = {
    "CheckpointedAdjoint()": pynode.CheckpointedAdjoint(),
    "CheckpointedAdjoint(checkpoints=8)": pynode.CheckpointedAdjoint(checkpoints=8),
    "DirectAdjoint()": pynode.DirectAdjoint(),
    "InterpolatingAdjoint()": pynode.InterpolatingAdjoint(),
    "QuadratureAdjoint()": pynode.QuadratureAdjoint(),
    "GaussAdjoint()": pynode.GaussAdjoint(),
    "BacksolveAdjoint()": pynode.BacksolveAdjoint(),
}
SOLVER = pynode.Tsit5()
TRUTH = {"a": 1.0, "b": 3.4, "alpha": 0.02}


class Brusselator(nn.Module):
    """State (2, N, N); the parameters by their logarithms, as they are positive."""

    def __init__(self, a: float, b: float, alpha: float) -> None:
        super().__init__()
        self.logs = nn.Parameter(torch.tensor([a, b, alpha], dtype=torch.float64).log())

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        a, b, alpha = self.logs.exp().unbind()
        u, v = y.unbind(0)
        around = torch.roll(y, 1, 1) + torch.roll(y, -1, 1) + torch.roll(y, 1, 2) + torch.roll(y, -1, 2) - 4.0 * y
        turned = u**2 * v
        reaction = torch.stack([a + turned - (b + 1.0) * u, b * u - turned])
        return reaction + alpha * y.shape[-1] ** 2 * around


def start(size: int) -> Tensor:
    x = torch.arange(size, dtype=torch.float64) / size
    bump = (x * (1.0 - x)) ** 1.5
    ones = torch.ones_like(x)
    return torch.stack([22.0 * torch.outer(ones, bump), 27.0 * torch.outer(bump, ones)])


def distance(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Relative, over all tensors together."""
    gap = sum((a - b).square().sum().item() for a, b in zip(found, exact, strict=True))
    return math.sqrt(gap / sum(b.square().sum().item() for b in exact))


def say(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)


def gradients(size: int, rounds: int, generator: torch.Generator) -> None:
    """The table of sensitivity algorithms. The loss weighs every point at random, as noise in data does."""
    field, bumps = Brusselator(**TRUTH), start(size)
    uniform = bumps.mean((1, 2), keepdim=True).expand_as(bumps).clone()
    weights = torch.randn(bumps.shape, generator=generator, dtype=bumps.dtype)
    span = torch.tensor([0.0, 1.0], dtype=torch.float64)
    last: list[pynode.Solution] = []

    def gradient(
        sensealg: pynode.SensitivityAlgorithm, y0: Tensor, algorithm: pynode.Algorithm = SOLVER, rtol: float = 1e-5
    ) -> list[Tensor]:
        y0 = y0.clone().requires_grad_()
        sol = pynode.solve(field, y0, span, algorithm=algorithm, rtol=rtol, atol=rtol / 10, sensealg=sensealg)
        found = list(torch.autograd.grad((weights * sol.ys[-1]).sum(), [y0, *field.parameters()]))
        last[:] = [sol]
        return found

    say("  reference")
    exact, exact_uniform = (gradient(pynode.GaussAdjoint(), y0, pynode.Vern7(), 1e-9) for y0 in (bumps, uniform))
    print(f"gradient in {bumps.numel()} initial values and 3 parameters; Tsit5, rtol 1e-5, atol 1e-6, t in [0, 1]")
    print(f"{'':36} {'s':>7} {'peak MB':>8} {'f forward':>10} {'f backward':>11} {'products':>9}", end="")
    print(f" {'error':>8} {'if uniform':>10}")
    for name, sensealg in SENSEALGS.items():
        say(f"  {name}")
        try:
            seconds = math.inf
            for _ in range(rounds):
                begun = time.perf_counter()
                found = gradient(sensealg, bumps)
                seconds = min(seconds, time.perf_counter() - begun)
            stats = last[0].stats
            peak = peak_during(functools.partial(gradient, sensealg, bumps))
            errors = distance(found, exact), distance(gradient(sensealg, uniform), exact_uniform)
        except (pynode.GradientError, pynode.SolveError) as error:
            print(f"{name:36} refused: {error}")
            continue
        print(f"{name:36} {seconds:7.2f} {peak / 1e6:8.2f} {stats.forward.nfe:10d}", end="")
        print(f" {stats.backward.nfe:11d} {stats.backward.nvjp:9d} {errors[0]:8.1e} {errors[1]:10.1e}", flush=True)


class Enough(Exception):
    """The loss is where it was to be."""


def recover(
    unknown: list[Tensor], residuals: Callable[[], Tensor], iterations: int, label: str, enough: float = 0.0
) -> tuple[float, int]:
    """Least squares by LBFGS, down to a loss; the last loss and the number of gradients taken."""
    optimizer = torch.optim.LBFGS(unknown, max_iter=iterations, line_search_fn="strong_wolfe", history_size=20)
    taken, last = 0, math.nan

    def closure() -> Tensor:
        nonlocal taken, last
        optimizer.zero_grad()
        loss = residuals().square().mean()
        loss.backward()
        taken, last = taken + 1, loss.item()
        say(f"\r  {label}: gradient {taken}, loss {last:.3e} ", end="")
        if last <= enough:
            raise Enough
        return loss

    with contextlib.suppress(Enough):
        optimizer.step(closure)
    say("")
    return last, taken


def parameters(size: int, iterations: int, generator: torch.Generator) -> None:
    t = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    with torch.no_grad():
        u = pynode.solve(Brusselator(**TRUTH), start(size), t, rtol=1e-8, atol=1e-9).ys[1:, 0]
    noise = 0.01 * u.max()
    data = u + noise * torch.randn(u.shape, generator=generator, dtype=u.dtype)
    guess = {"a": 2.0, "b": 2.0, "alpha": 0.05}
    field = Brusselator(**guess)

    def residuals() -> Tensor:
        ys = pynode.solve(field, start(size), t, rtol=1e-5, atol=1e-6, sensealg=pynode.GaussAdjoint()).ys
        return (ys[1:, 0] - data) / noise

    loss, taken = recover(list(field.parameters()), residuals, iterations, "parameters")
    print(f"\nparameters from u at {len(t) - 1} times, 1 % noise: {taken} gradients, loss {loss:.4f} (noise alone: 1)")
    for (name, true), found in zip(TRUTH.items(), field.logs.detach().exp().tolist(), strict=True):
        print(f"{name:6} true {true:7.4f}  guess {guess[name]:7.4f}  found {found:9.6f}  error {found / true - 1:+.1e}")


def initial_state(size: int, iterations: int, generator: torch.Generator) -> list[Tensor]:
    """True state, first guess, and what was found."""
    t = torch.linspace(0.0, 0.25, 11, dtype=torch.float64)
    field, true = Brusselator(**TRUTH).requires_grad_(False), start(size)
    with torch.no_grad():
        ys = pynode.solve(field, true, t, rtol=1e-8, atol=1e-9).ys[1:]
    noise = 0.01 * ys.amax()
    data = ys + noise * torch.randn(ys.shape, generator=generator, dtype=ys.dtype)
    guess = data[0].mean((1, 2), keepdim=True).expand_as(true).clone()
    y0 = guess.clone().requires_grad_()

    def residuals() -> Tensor:
        ys = pynode.solve(field, y0, t, rtol=1e-5, atol=1e-6, sensealg=pynode.GaussAdjoint()).ys
        return (ys[1:] - data) / noise

    # Fast modes are gone before the first observation: a loss below that of noise alone would be noise, fitted by them.
    loss, taken = recover([y0], residuals, iterations, "initial state", enough=1.0)
    found = y0.detach()
    print(f"\ninitial state, {true.numel()} numbers, from {len(t) - 1} times, 1 % noise: {taken} gradients, ", end="")
    print(f"loss {loss:.4f} (noise alone: 1)")
    first = distance([data[0]], [true])
    print(
        f"relative error: {distance([guess], [true]):.3f} of the guess, {first:.3f} of the first observation,", end=""
    )
    print(f" {distance([found], [true]):.3f} of what was found")
    return [true, guess, found]


def draw(states: list[Tensor], out: str) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        say("no picture: it needs matplotlib (pip install 'pynode[plot]')")
        return
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    for row, species in zip(figure.subplots(2, 3), range(2), strict=True):
        top = states[0][species].max().item()
        for axes, state, title in zip(row, states, ("true", "guess", "found"), strict=True):
            image = axes.imshow(state[species].cpu(), vmin=0, vmax=top, origin="lower")
            axes.set(title=f"{'uv'[species]} at t = 0, {title}", xticks=[], yticks=[])
        figure.colorbar(image, ax=row)
    figure.savefig(out, dpi=120)
    say(f"picture: {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="16 x 16 points and few iterations: about a minute")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, help="points a side (32, with --quick 16)")
    parser.add_argument("--steps", type=int, help="iterations of LBFGS (40, with --quick 12)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--plot", default="pde_adjoint.png", metavar="FILE")
    options = parser.parse_args()
    size, iterations = options.size or (16 if options.quick else 32), options.steps or (12 if options.quick else 40)
    torch.set_num_threads(1)
    begun = time.perf_counter()
    torch.set_default_device(options.device)
    generator = torch.Generator(options.device).manual_seed(options.seed)
    gradients(size, 1 if options.quick else 3, generator)
    parameters(size, iterations, generator)
    draw(initial_state(size, iterations, generator), options.plot)
    print(f"{size} x {size} points, seed {options.seed}; run time {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
