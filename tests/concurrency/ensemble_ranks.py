"""Ensembles of every kind, each rank's results into a file: ``ensemble_ranks.py FOLDER [quick]``, by torchrun."""

from __future__ import annotations

import datetime
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from leaving import leave

import pynode

torch.set_num_threads(1)
F64 = torch.float64


class Field(torch.nn.Module):
    """A network, on a state of rows or of a whole batch."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.inner, self.outer = torch.nn.Linear(3, 8, dtype=F64), torch.nn.Linear(8, 3, dtype=F64)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(0.5 * torch.randn(p.shape, generator=generator, dtype=F64))

    def forward(self, t: Any, y: Any, k: Any = 1.0, shared: Any = 0.0) -> Any:
        return k * self.outer(torch.tanh(self.inner(y))) + shared


def inputs(members: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    y0s = torch.randn(members, 3, generator=generator, dtype=F64)
    rates = 10.0 ** torch.linspace(0.0, 1.0, members, dtype=F64)[:, None]  # members of very unequal cost
    return y0s.requires_grad_(), rates.requires_grad_(), torch.full((3,), 0.1, dtype=F64, requires_grad=True)


def solved(members: int = 11, gather: bool = True, loss: Any = None, **options: Any) -> dict[str, Any]:
    """One ensemble, its loss's gradients and everything else that must not depend on the number of ranks."""
    field, (y0s, rates, shared) = Field(), inputs(members)
    args = (pynode.PerSample(rates), shared)
    sol = pynode.ensemble(field, y0s, [0.0, 0.5, 1.0], args=args, gather=gather, **options)
    ((sol.ys**2).sum() if loss is None else loss(sol)).backward()
    gradients = [x.grad for x in (y0s, rates, shared, *field.parameters())]
    return {
        "ys": sol.ys.detach(),
        "ts": sol.ts,
        "counts": torch.stack([sol.row_stats.nfe, sol.row_stats.accepted, sol.row_stats.rejected]),
        "codes": [x.name for x in sol.retcodes],
        "gradients": gradients,
        "members": (sol.members.start, sol.members.stop),
    }


def drawn(i: int, generator: torch.Generator) -> tuple[Any, tuple[Any, ...]]:
    y0 = {"x": torch.randn(3, generator=generator, dtype=F64), "v": torch.rand(1, generator=generator, dtype=F64)}
    return y0, (float(i + 1), {"w": torch.rand(1, generator=generator, dtype=F64)})


def tree_field(t: Any, y: Any, k: Any, own: Any) -> Any:
    return {"x": -own["w"] * y["x"], "v": k[:, None] * y["x"].sum(1, keepdim=True) - y["v"]}


def kept(ys: Any, i: int) -> Any:
    return {"last": ys["x"][-1], "i": torch.tensor(i), "positive": ys["v"][-1] > 0}


def message_of(call: Any) -> tuple[str, str]:
    try:
        call()
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def blowing(t: Any, y: Any) -> Any:
    return y**2  # from y0 = 2 infinite at t = 1/2


def sometimes_wrong(t: Any, y: Any) -> Any:
    if float(y.detach().max()) > 5.0:
        raise ValueError("no such state")
    return -y


def failures() -> dict[str, Any]:
    start = torch.tensor([[0.1], [0.2], [0.1], [2.0], [0.3], [3.0]], dtype=F64)
    sol = pynode.ensemble(blowing, start, [0.0, 1.0], throw=False)
    wrong = torch.tensor([[1.0], [1.0], [1.0], [9.0]], dtype=F64)
    rank = dist.get_rank() if dist.is_initialized() else 0
    field = Field()
    with torch.no_grad():
        field.inner.bias[0] += rank  # as where every rank has drawn its own weights

    return {
        "thrown": message_of(lambda: pynode.ensemble(blowing, start, [0.0, 1.0])),
        "ys": sol.ys,
        "codes": [x.name for x in sol.retcodes],
        "message": sol.message,
        "raised": message_of(lambda: pynode.ensemble(sometimes_wrong, wrong, [0.0, 1.0])),
        "unlike": message_of(lambda: pynode.ensemble(field, torch.ones(4, 3, dtype=F64), [0.0, 1.0])),
    }


def quickly() -> dict[str, Any]:
    return {"rows": solved(), "own sums": solved(gather=False), "failures": failures()}


def main(folder: Path, quick: bool) -> None:
    if "RANK" in os.environ:
        dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if quick:
        torch.save(quickly(), folder / f"{size}-{rank}.pt")
        return
    found: dict[str, Any] = {
        "rows": solved(),
        "batches of 2": solved(batch_size=2),
        "few": solved(members=2),
        "one": solved(members=1),
        "joint": solved(batching="joint", algorithm=pynode.RadauIIA5(), batch_size=4),
        "gauss": solved(batching="joint", sensealg=pynode.GaussAdjoint(), batch_size=4),
        "direct": solved(sensealg=pynode.DirectAdjoint()),
        "own sums": solved(gather=False),
    }
    sol = pynode.ensemble(tree_field, drawn, [0.0, 1.0], trajectories=9, seed=3)
    found["drawn"] = dict(sol.ys)
    found["kept"] = pynode.ensemble(tree_field, drawn, [0.0, 1.0], trajectories=9, seed=3, output_func=kept).ys
    found["seed 4"] = dict(pynode.ensemble(tree_field, drawn, [0.0, 1.0], trajectories=9, seed=4).ys)
    times = torch.rand(9, 4, generator=torch.Generator().manual_seed(2), dtype=F64).cumsum(1)
    own_times = pynode.ensemble(lambda t, y: -t * y, torch.ones(9, 1, dtype=F64), times)
    found["own times"] = {"ys": own_times.ys, "ts": own_times.ts}
    found["failures"] = failures()
    torch.save(found, folder / f"{size}-{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), "quick" in sys.argv[2:])
    if dist.is_initialized():
        leave(())
