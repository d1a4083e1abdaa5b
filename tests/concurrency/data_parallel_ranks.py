"""Run by torchrun: ``data_parallel_ranks.py WRAPPERS WAYS TASKS``, lists with commas, or ``all``.

Every rank compares the gradients that DDP or FSDP leaves with those of a single process: the mean over the ranks of
what their rows give.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from leaving import leave
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

import pynode

torch.set_num_threads(1)
F64 = torch.float64
#: Ranks add their gradients in another order, and divide before or after it.
ROUNDING = 1e-13

WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "direct": {"sensealg": pynode.DirectAdjoint()},
    "backsolve": {"sensealg": pynode.BacksolveAdjoint()},
    "interpolating": {"sensealg": pynode.InterpolatingAdjoint()},
    "gauss": {"sensealg": pynode.GaussAdjoint()},
    "quadrature": {"sensealg": pynode.QuadratureAdjoint()},
    "bounded": {"sensealg": pynode.CheckpointedAdjoint(checkpoints=4)},
    "implicit": {"algorithm": pynode.KenCarp4(), "rtol": 1e-3, "atol": 1e-5},
    "rows": {"batching": "independent"},
    "solve": {"compile": "solve"},
    "step": {"compile": "step"},
    "step gauss": {"compile": "step", "sensealg": pynode.GaussAdjoint()},
}


class Field(torch.nn.Module):
    """``speed`` times a rotation and a network: as many steps as ``speed`` asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))
        self.turn = torch.nn.Parameter(torch.eye(4).roll(1, 0) - torch.eye(4).roll(1, 1))

    def forward(self, t: Any, y: Any, speed: Any) -> Any:
        return speed * (y @ self.turn) + self.net(y)


class Block(torch.nn.Module):
    """A solve as a layer."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        self.field, self.options = Field(), options
        self.nfe = 0

    def forward(self, y: Any, speed: Any) -> Any:
        sol = pynode.solve(self.field, y, [0.0, 1.0], args=(speed,), **self.options)
        self.nfe = sol.stats.forward.nfe
        return sol.ys[-1]


class Classifier(torch.nn.Module):
    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        self.first, self.block, self.last = torch.nn.Linear(3, 4), Block(options), torch.nn.Linear(4, 2)

    def forward(self, x: Any, labels: Any, speed: Any) -> Any:
        return torch.nn.functional.cross_entropy(self.last(self.block(self.first(x), speed)), labels)


class Flow(torch.nn.Module):
    """The negative log-likelihood of a continuous normalising flow, whose field differentiates the network itself."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        self.block = Density(options)

    def forward(self, x: Any, labels: Any, speed: Any) -> Any:
        return self.block(x, speed)


class Density(torch.nn.Module):
    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        self.options, self.nfe = options, 0

    def forward(self, x: Any, speed: Any) -> Any:
        sol = pynode.solve(self._rate, (x, torch.zeros_like(x[:, 0])), [0.0, 1.0], args=(speed,), **self.options)
        self.nfe = sol.stats.forward.nfe
        z, trace = sol.ys
        return (z[-1].pow(2).sum(1) / 2 - trace[-1]).mean()

    def _rate(self, t: Any, state: Any, speed: Any) -> Any:
        y, _ = state
        first, _, last = self.net
        hidden = torch.tanh(first(y))
        # The trace of the Jacobian, in closed form: compiled and captured fields take it too.
        trace = ((1 - hidden**2) * (last.weight * first.weight.t()).sum(0)).sum(1)
        return speed.sqrt() * (last(hidden)), speed.sqrt() * trace


TASKS: dict[str, Callable[[dict[str, Any]], torch.nn.Module]] = {"classifier": Classifier, "flow": Flow}


def built(task: str, options: dict[str, Any]) -> torch.nn.Module:
    torch.manual_seed(0)
    return TASKS[task](options).double()


def batch(rank: int, number: int = 0) -> tuple[Any, ...]:
    """The rows of a rank; the second rank's take ten times the steps."""
    generator = torch.Generator().manual_seed(10 * rank + number)
    rows = 3 + rank  # and are more
    x = torch.randn(rows, 3, generator=generator, dtype=F64)
    labels = torch.randint(0, 2, (rows,), generator=generator)
    return x, labels, torch.tensor(16.0 if rank == 1 else 1.0, dtype=F64)


def nested_fsdp2(model: Any) -> Any:
    fully_shard(model.block)  # gathered for the block's forward and again for its backward
    return fully_shard(model)


def nested_fsdp1(model: Any, original: bool) -> Any:
    cpu = torch.device("cpu")
    model.block = FullyShardedDataParallel(model.block, use_orig_params=original, device_id=cpu)
    return FullyShardedDataParallel(model, use_orig_params=original, device_id=cpu)


def with_unused(model: Any) -> Any:
    model.unused = torch.nn.Linear(2, 2).double()
    return DistributedDataParallel(model, find_unused_parameters=True)


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "ddp": DistributedDataParallel,
    "ddp unused": with_unused,
    "ddp static": lambda model: DistributedDataParallel(model, static_graph=True),
    "ddp views": lambda model: DistributedDataParallel(model, gradient_as_bucket_view=True, bucket_cap_mb=1),
    "ddp no_sync": DistributedDataParallel,
    "fsdp2": fully_shard,
    "fsdp2 nested": nested_fsdp2,
    "fsdp1": lambda model: nested_fsdp1(model, True),
    "fsdp1 flat": lambda model: nested_fsdp1(model, False),
}


def run(wrapper: str, way: str, task: str) -> tuple[float, int]:
    """The distance of the gradients, relative to their size, and this rank's evaluations."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    batches = 2 if "no_sync" in wrapper else 1
    reference = built(task, WAYS[way])
    for other in range(ranks):
        for number in range(batches):
            reference(*batch(other, number)).backward()
    before = {name: p.detach().clone() for name, p in reference.named_parameters()}
    expected = {name: p.grad / ranks for name, p in reference.named_parameters()}
    model = WRAPPERS[wrapper](built(task, WAYS[way]))
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(2):  # the second time DDP has other buckets, and FSDP another state
        optimiser.zero_grad()
        if "no_sync" in wrapper:
            with model.no_sync():
                model(*batch(rank, 0)).backward()
        model(*batch(rank, batches - 1)).backward()
    nfe = next(x.nfe for x in model.modules() if isinstance(x, Block | Density))
    # Read off a step of gradient descent: flat and sharded gradients too.
    optimiser.step()
    distance = 0.0
    for name, now in whole_parameters(model).items():
        if "unused" not in name:
            found, wanted = before[name] - now, expected[name]
            distance = max(
                distance, float((found - wanted).abs().max() / max(wanted.abs().max(), before[name].abs().max()))
            )
    return distance, nfe


def whole_parameters(model: Any) -> dict[str, torch.Tensor]:
    if isinstance(model, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(model):
            found = {name: p.detach().clone() for name, p in model.named_parameters()}
    else:
        found = {name: p.full_tensor() if hasattr(p, "full_tensor") else p for name, p in model.named_parameters()}
    strip = ("module.", "_fsdp_wrapped_module.")
    cleaned = {}
    for name, p in found.items():
        for part in strip:
            name = name.replace(part, "")
        cleaned[name] = p.detach()
    return cleaned


def main(wrappers: list[str], ways: list[str], tasks: list[str]) -> None:
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    wrong = []
    for task in tasks:
        for wrapper in wrappers:
            for way in ways:
                distance, nfe = run(wrapper, way, task)
                told: list[Any] = [None] * dist.get_world_size()
                dist.all_gather_object(told, (distance, nfe))
                worst, counts = max(d for d, _ in told), [n for _, n in told]
                uneven = task == "flow" or way in ("implicit",) or counts[1] >= 8 * counts[0]
                right = worst <= ROUNDING and uneven
                if dist.get_rank() == 0:
                    print(
                        f"{'right' if right else 'WRONG'} {task}, {wrapper}, {way}: {worst:.1e}, nfe {counts}",
                        flush=True,
                    )
                wrong += [] if right else [(task, wrapper, way, worst, counts)]
    leave(wrong)


if __name__ == "__main__":
    chosen = [argument.split(",") for argument in sys.argv[1:]]
    every: list[list[str]] = [[*WRAPPERS], [*WAYS], [*TASKS]]
    main(*[own if own != ["all"] else names for own, names in zip(chosen, every, strict=True)])
