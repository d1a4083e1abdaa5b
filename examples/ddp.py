"""Data-parallel training: the gradient of several processes is that of one.

A neural ODE under ``torch.nn.parallel.DistributedDataParallel`` over gloo: every process solves its share of the
batch, and the gradients are averaged while the backward solves run. Each process also takes the gradient of the whole
batch by itself, and the table holds the two against one another, for three ways to choose steps::

    fixed steps           the same steps whatever the batch
    independent rows      adaptive, every row its own steps (batching="independent")
    joint adaptive steps  adaptive, one error norm over the batch: another batch has other steps

The first two agree to rounding; the third to the tolerance, as it is another discretisation, not another gradient.
Then the model is trained for some steps, and the parameters of all processes are compared bit by bit.

    torchrun --nproc-per-node 2 examples/ddp.py [--quick] [--seed 0]
    python examples/ddp.py --processes 2       # the same: starts torchrun itself

How it differs from a real run: toy data, processes of one machine; on GPUs, ``init_process_group("nccl")``, one a
process. No paper is reproduced.
"""

from __future__ import annotations

import argparse
import copy
import gc
import os
import sys
import time

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import pynode
from pynode.nn import Augment, ConcatTime, NeuralODE

WAYS = {
    "fixed steps": {"algorithm": pynode.RK4(steps=10)},
    "independent rows": {"algorithm": pynode.Tsit5(), "batching": "independent"},
    "joint adaptive steps": {"algorithm": pynode.Tsit5()},
}
TOLERANCE = 1e-6


def model(seed: int, **options) -> NeuralODE:
    """From points of the plane to two classes, float64."""
    torch.manual_seed(seed)
    field = ConcatTime(nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3)))
    ode = NeuralODE(field, input=Augment(1), output=nn.Linear(3, 2), rtol=TOLERANCE, atol=TOLERANCE, **options)
    return ode.double()


def points(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two classes: within and around a ring."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return x, (x.norm(dim=1) > 1.2).long()


def gradient(net: nn.Module, x: Tensor, labels: Tensor) -> list[Tensor]:
    net.zero_grad()
    nn.functional.cross_entropy(net(x), labels).backward()
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


def distance(found: list[Tensor], exact: list[Tensor]) -> float:
    gap = torch.cat([(a - b).flatten() for a, b in zip(found, exact, strict=True)]).norm()
    return (gap / torch.cat([b.flatten() for b in exact]).norm()).item()


def work(options: argparse.Namespace) -> None:
    """What each process does."""
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(1)
    begun = time.perf_counter()
    share = options.batch // world
    x, labels = points(share * world, options.seed)
    mine = slice(rank * share, (rank + 1) * share)
    if rank == 0:
        print(f"{world} processes over gloo, {share} rows each, float64, tolerance {TOLERANCE:g}")
        print(f"{'steps':22} {'gradient of all against one process':>36}", flush=True)
    for name, how in WAYS.items():
        single = model(options.seed, **how)
        parallel = DistributedDataParallel(copy.deepcopy(single))
        whole = gradient(single, x, labels)
        gap = torch.tensor(distance(gradient(parallel, x[mine], labels[mine]), whole), dtype=torch.float64)
        dist.all_reduce(gap, dist.ReduceOp.MAX)
        if rank == 0:
            print(f"{name:22} {gap.item():36.1e}", flush=True)

    parallel = DistributedDataParallel(model(options.seed, **WAYS["independent rows"]))
    optimizer = torch.optim.Adam(parallel.parameters(), lr=1e-2)
    losses = []
    for i in range(options.steps):
        loss = nn.functional.cross_entropy(parallel(x[mine]), labels[mine])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total = loss.detach().clone()
        dist.all_reduce(total)
        losses.append(total.item() / world)
        if rank == 0:
            print(f"\r  step {i + 1}/{options.steps}, loss {losses[-1]:.4f} ", end="", file=sys.stderr, flush=True)
    flat = torch.cat([p.detach().flatten() for p in parallel.parameters()])
    everyone = [torch.empty_like(flat) for _ in range(world)]
    dist.all_gather(everyone, flat)
    same = all(torch.equal(other, flat) for other in everyone)
    if rank == 0:
        print(file=sys.stderr)
        print(
            f"training, {options.steps} steps: loss {losses[0]:.4f} to {losses[-1]:.4f}, parameters of all processes ",
            end="",
        )
        print("equal bit by bit" if same else "DIFFER")
        draw(losses, options.plot)
        print(f"seed {options.seed}; run time {time.perf_counter() - begun:.0f} s")
    # Before the interpreter goes: gloo's threads abort a process that still has a wrapped model then.
    del parallel, optimizer, loss
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()
    if not same:
        raise SystemExit("the processes' parameters differ")


def draw(losses: list[float], out: str) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no picture: it needs matplotlib (pip install 'pynode[plot]')", file=sys.stderr)
        return
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    figure.subplots().plot(losses)
    figure.axes[0].set(xlabel="step", ylabel="loss over all processes", title="Data-parallel training")
    figure.savefig(out, dpi=120)
    print(f"picture: {out}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small batch and ten steps: half a minute")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, help="rows of all processes together (512, with --quick 64)")
    parser.add_argument("--steps", type=int, help="of training (100, with --quick 10)")
    parser.add_argument("--processes", type=int, default=2, help="without torchrun: how many to start")
    parser.add_argument("--plot", default="ddp.png", metavar="FILE")
    options = parser.parse_args()
    options.batch = options.batch or (64 if options.quick else 512)
    options.steps = options.steps or (10 if options.quick else 100)
    if "RANK" not in os.environ:  # not under torchrun: become it
        launch = ["--standalone", f"--nproc-per-node={options.processes}", *sys.argv]
        os.execv(sys.executable, [sys.executable, "-m", "torch.distributed.run", *launch])
    work(options)


if __name__ == "__main__":
    main()
