"""Run by torchrun: fields that are wrapped by DDP or FSDP themselves, and an ensemble in a model under DDP."""

from __future__ import annotations

import datetime
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


class Field(torch.nn.Module):
    def __init__(self, *between: torch.nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), *between, torch.nn.Linear(8, 4)).double()

    def forward(self, t: Any, y: Any) -> Any:
        return self.net(y)


def rows(rank: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rank)
    return (1.0 + 5.0 * rank) * torch.randn(4, 4, generator=generator, dtype=F64)


def loss(field: Any, rank: int, **options: Any) -> Any:
    return pynode.solve(field, rows(rank), [0.0, 1.0], **options).ys[-1].pow(2).mean()


def gradients(model: Any) -> list[torch.Tensor]:
    if isinstance(model, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(model, with_grads=True):
            return [p.grad.clone() for p in model.parameters()]
    return [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in model.parameters()]


def wrapped(wrap: Callable[[Any], Any], **options: Any) -> float:
    """The distance of a wrapped field's gradients from the mean of those of the ranks' rows."""
    plain = Field()
    for rank in range(dist.get_world_size()):
        loss(plain, rank, **options).backward()
    field = wrap(Field())
    for _ in range(2):
        field.zero_grad()
        loss(field, dist.get_rank(), **options).backward()
    pairs = zip(gradients(field), plain.parameters(), strict=True)
    return max(float((x - p.grad / dist.get_world_size()).abs().max() / p.grad.abs().max()) for x, p in pairs)


def in_ensemble() -> float:
    """An ensemble of all ranks within DDP, whose loss is the same on all of them: the single process's gradient."""
    y0s = torch.cat([rows(0), rows(1)])
    plain = Field()
    pynode.solve(plain, y0s, [0.0, 1.0], batching="independent").ys[-1].pow(2).mean().backward()

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.field = Field()

        def forward(self, y0s: Any) -> Any:
            return pynode.ensemble(self.field, y0s, [0.0, 1.0]).ys[:, -1].pow(2).mean()

    model = DistributedDataParallel(Model())
    model(y0s).backward()
    pairs = zip(model.parameters(), plain.parameters(), strict=True)
    return max(float((x.grad - y.grad).abs().max() / y.grad.abs().max()) for x, y in pairs)


def sharded(field: Any) -> Any:
    return fully_shard(field)


def sharded_layers(field: Any) -> Any:
    for layer in field.net:
        if isinstance(layer, torch.nn.Linear):
            fully_shard(layer)
    return fully_shard(field)


def old_sharded(field: Any) -> Any:
    return FullyShardedDataParallel(field, use_orig_params=True, device_id=torch.device("cpu"))


def refusal(call: Callable[[], Any]) -> str:
    try:
        found = call()
    except pynode.UnsupportedError as error:
        return str(error)
    return f"no error, but {found}"


def gathered(value: Any) -> list[Any]:
    """The values of all ranks."""
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, value)
    return told


def without_gradient(field: Any, **options: Any) -> Any:
    with torch.no_grad():
        return loss(field, dist.get_rank(), **options)


def main() -> None:
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    direct, fixed = {"sensealg": pynode.DirectAdjoint()}, {"algorithm": pynode.RK4(steps=20)}
    right: dict[str, Callable[[], float]] = {
        "DDP": lambda: wrapped(DistributedDataParallel),
        "DDP, gauss": lambda: wrapped(DistributedDataParallel, sensealg=pynode.GaussAdjoint()),
        "DDP, direct": lambda: wrapped(DistributedDataParallel, **direct),
        "DDP, unused": lambda: wrapped(lambda f: DistributedDataParallel(f, find_unused_parameters=True)),
        "FSDP2, direct and fixed": lambda: wrapped(sharded, **direct, **fixed),
        "FSDP, direct and fixed": lambda: wrapped(old_sharded, **direct, **fixed),
        "ensemble in DDP": in_ensemble,
    }
    normed = Field(torch.nn.BatchNorm1d(8))
    refused: dict[str, tuple[str, Callable[[], Any]]] = {
        "static graph": ("static_graph=True", lambda: wrapped(lambda f: DistributedDataParallel(f, static_graph=True))),
        "buffers": ("with buffers", lambda: loss(DistributedDataParallel(normed), 0)),
        "buffers, direct": ("with buffers", lambda: loss(DistributedDataParallel(normed), 0, **direct)),
        "FSDP2": ("sharded by FSDP", lambda: wrapped(sharded)),
        "FSDP2 layers, gauss": ("sharded by FSDP", lambda: wrapped(sharded_layers, sensealg=pynode.GaussAdjoint())),
        "FSDP2, params": ("sharded by FSDP", lambda: loss(f := sharded(Field()), 0, params=[*f.parameters()])),
        "FSDP2, direct": ("sharded by FSDP", lambda: wrapped(sharded, **direct)),
        "FSDP2, no gradient": ("sharded by FSDP", lambda: without_gradient(sharded(Field()))),
        "FSDP2, rows": ("sharded by FSDP", lambda: without_gradient(sharded(Field()), batching="independent")),
        "FSDP": ("sharded by FSDP", lambda: wrapped(old_sharded)),
    }
    wrong = []

    def tell(verdict: str, name: str, told: Any) -> None:
        if dist.get_rank() == 0:  # alone: the lines of two ranks can run together
            print(verdict, name, told, flush=True)
        wrong.extend([(name, told)] if verdict == "WRONG" else [])

    for name, call in right.items():
        told = gathered(call())
        tell("right" if max(told) <= 1e-13 else "WRONG", name, told)
    for name, (words, refused_call) in refused.items():
        told = gathered(refusal(refused_call))
        said = all(words in x and "wrap the model that calls pynode.solve" in x for x in told)
        tell("refused" if said else "WRONG", name, told if not said else words)
    leave(wrong)


if __name__ == "__main__":
    main()
