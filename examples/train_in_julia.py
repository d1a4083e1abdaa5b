"""Torch to Lux to DiffEqFlux and back: start training in torch, go on in Julia, use the weights in torch.

1. A torch field is trained for some steps by pynode on a spiral (Chen et al. 2018).
2. ``pynode.julia.neural_ode`` makes a ``DiffEqFlux.NeuralODE`` of it, weights included; Zygote and Optimisers train it
   in Julia, through SciMLSensitivity's GaussAdjoint (Rackauckas et al. 2020), and no Python runs meanwhile.
3. ``load_into`` brings the weights back; pynode solves with them, and trains on.

The table holds the loss at each hand-over, evaluated on both sides of it: they agree to the solvers' tolerance, and
the gradients do too.

It needs Julia: ``pip install 'pynode[julia]' && pynode julia setup --with flux && pynode doctor``. Without it the
script says so and ends with status 2. How it differs from the papers: a toy, to show the way there and back; Zygote
compiles for minutes at the first gradient.

    python examples/train_in_julia.py [--quick] [--seed 0] [--plot train_in_julia.png]
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
from torch import Tensor, nn

import pynode
import pynode.julia
from pynode.backends import backend_from_name

INSTALL = "pip install 'pynode[julia]' && pynode julia setup --with flux && pynode doctor"
TOLERANCE = 1e-7
TIMES = torch.linspace(0.0, 3.0, 16, dtype=torch.float64)

#: Training in Julia. ``layer(y, p, st)`` is the solution with the states; arrays are (features, batch, times).
TRAIN = """
begin
    import Optimisers, Zygote
    function pynode_example_train(layer, p, st, y0, data, steps, rate)
        loss(p) = sum(abs2, stack(first(layer(y0, p, st)).u) .- data) / length(data)
        first_gradient = Zygote.gradient(loss, p)[1]
        optimiser = Optimisers.setup(Optimisers.Adam(rate), p)
        losses = [loss(p)]
        begun = time()
        for step in 1:steps
            slope = Zygote.gradient(loss, p)[1]
            optimiser, p = Optimisers.update(optimiser, p, slope)
            push!(losses, loss(p))
        end
        return p, losses, first_gradient, time() - begun
    end
end
"""


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y**3)


def spiral(t: Tensor, y: Tensor) -> Tensor:
    return y**3 @ torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=y.dtype)


def loss_of(field: nn.Module, y0: Tensor, data: Tensor) -> Tensor:
    return (pynode.solve(field, y0, TIMES, rtol=TOLERANCE, atol=TOLERANCE).ys - data).square().mean()


def train_in_torch(field: nn.Module, y0: Tensor, data: Tensor, steps: int) -> list[float]:
    optimizer = torch.optim.Adam(field.parameters(), lr=1e-2)
    losses = []
    for i in range(steps):
        loss = loss_of(field, y0, data)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        print(f"\r  torch: step {i + 1}/{steps}, loss {losses[-1]:.4f} ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return losses


def draw(parts: dict[str, list[float]], out: str) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no picture: it needs matplotlib (pip install 'pynode[plot]')", file=sys.stderr)
        return
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes, start = figure.subplots(), 0
    for label, losses in parts.items():
        axes.semilogy(range(start, start + len(losses)), losses, label=label)
        start += len(losses) - 1  # each part ends where the next begins
    axes.set(xlabel="step", ylabel="mean square error", title="One model, two languages")
    axes.legend()
    figure.savefig(out, dpi=120)
    print(f"picture: {out}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps (Julia's compilation takes its minutes)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of training in each of the three parts (50, with --quick 5)")
    parser.add_argument("--plot", default="train_in_julia.png", metavar="FILE")
    options = parser.parse_args()
    steps = options.steps or (5 if options.quick else 50)
    torch.set_num_threads(1)
    begun = time.perf_counter()
    lacking = backend_from_name("julia").absent()
    if lacking is not None:
        print(
            f"This example needs Julia with Lux and DiffEqFlux: {lacking}.\nTo install them: {INSTALL}", file=sys.stderr
        )
        raise SystemExit(2)

    torch.manual_seed(options.seed)
    field = Field().double()
    y0 = torch.tensor([[2.0, 0.0], [1.5, 0.5], [0.0, -1.8]], dtype=torch.float64)
    with torch.no_grad():
        data = pynode.solve(spiral, y0, TIMES, rtol=1e-9, atol=1e-9).ys
    before = train_in_torch(field, y0, data, steps)

    print("  Julia: Zygote compiles ...", file=sys.stderr, flush=True)
    handed_over = loss_of(field, y0, data)
    slopes = torch.autograd.grad(handed_over, list(field.parameters()))
    start = time.perf_counter()
    ode = pynode.julia.neural_ode(field, TIMES, rtol=TOLERANCE, atol=TOLERANCE)

    import juliacall  # after Julia has been started with pynode's packages

    train = juliacall.Main.seval(TRAIN)
    array = [juliacall.Main.Array(x.numpy().T) for x in (y0, data)]
    trained, losses, first_gradient, stepping = train(ode.layer, ode.parameters, ode.states, *array, steps, 1e-2)
    within = [float(loss) for loss in losses]
    seconds = time.perf_counter() - start

    holder = Field().double()
    ode.load_into(holder, first_gradient)
    gap = torch.cat([(a - b).flatten() for a, b in zip(slopes, holder.parameters(), strict=True)]).norm()
    ode.load_into(field, trained)
    back = loss_of(field, y0, data).item()
    after = train_in_torch(field, y0, data, steps)

    print(f"{'':44} {'torch':>14} {'Julia':>14} {'difference':>11}")
    for label, ours, theirs in (
        ("loss, torch -> Lux -> DiffEqFlux", handed_over.item(), within[0]),
        ("loss, DiffEqFlux -> torch", back, within[-1]),
    ):
        print(f"{label:44} {ours:14.10f} {theirs:14.10f} {abs(ours - theirs):11.1e}")
    relative = (gap / torch.cat([s.flatten() for s in slopes]).norm()).item()
    print(f"{'gradient at the first, relative distance':44} {'':14} {'':14} {relative:11.1e}")
    parts = {"torch": before, "Julia": within, "torch again": after}
    print(f"loss over {steps} steps each: " + ", ".join(f"{k} {v[0]:.4f} to {v[-1]:.4f}" for k, v in parts.items()))
    print(f"Julia: {seconds:.0f} s, of which {float(stepping):.2f} s are the {steps} steps; the rest compiles")
    before.append(handed_over.item())
    draw(parts, options.plot)
    print(f"seed {options.seed}; run time {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
