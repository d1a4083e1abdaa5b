"""What every process of :mod:`pynode.bench.ensemble` runs: one ensemble and its gradient, timed on rank 0."""

from __future__ import annotations

import datetime
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import pynode
from pynode.bench.adjoint.cases import network

#: Of a process group on a busy machine: what hangs longer fails.
TIMEOUT = datetime.timedelta(seconds=600)


def problem(members: int, period: int) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """A network, states and the speeds of its members, slow and fast ones in turn; repeated after ``period``."""
    case = network("ensemble", (16, 64, 64, 16), period)
    times = -(-members // period)
    speeds = 10.0 ** (torch.arange(period) % 8 / 8.0)
    return case.field, case.y0.repeat(times, 1)[:members], speeds[:, None].repeat(times, 1)[:members]


class Speeded(torch.nn.Module):
    """A field, faster for some members."""

    def __init__(self, field: torch.nn.Module) -> None:
        super().__init__()
        self.field = field

    def forward(self, t: torch.Tensor, y: torch.Tensor, speed: torch.Tensor) -> torch.Tensor:
        rate: torch.Tensor = self.field(t, y)
        return speed * rate


def main(folder: Path, members: int, period: int, batch: int, repetitions: int) -> None:
    """Write times, states and gradients to ``folder``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=TIMEOUT)
    inner, y0s, speeds = problem(members, period)
    field = Speeded(inner)
    y0s.requires_grad_()
    seconds, found = [], dict[str, Any]()
    for _ in range(1 + repetitions):  # the first one warms up
        dist.barrier()
        start = time.perf_counter()
        sol = pynode.ensemble(
            field, y0s, [0.0, 1.0], args=(pynode.PerSample(speeds),), rtol=1e-5, atol=1e-5, batch_size=batch
        )
        gradients = torch.autograd.grad(sol.ys[:, -1].pow(2).sum(), [y0s, *field.parameters()])
        dist.barrier()
        seconds.append(time.perf_counter() - start)
        found = {"ys": sol.ys.detach(), "gradients": list(gradients)}
    if dist.get_rank() == 0:
        torch.save({**found, "seconds": seconds[1:]}, folder / f"{dist.get_world_size()}-{members}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
    # At once: a thread of gloo that still holds a tensor when the interpreter goes aborts (pytorch/pytorch#179291).
    os._exit(0)
