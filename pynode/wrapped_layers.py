"""Layers inside ``f`` that talk to other processes whenever they are called: DDP and FSDP modules.

A solver calls ``f`` as often as the rows of this rank ask for, and an adjoint calls it again in the middle of the
backward pass, through ``torch.autograd.grad``, which neither wrapper's hooks expect: what comes of it is a rank that
waits for ever, or a gradient that is not averaged.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from pynode.errors import UnsupportedError, explain


def talking() -> bool:
    """Whether there may be other processes to talk to."""
    return dist.is_available() and dist.is_initialized()


def _fault(module: torch.nn.Module, adjoint: bool) -> str:
    """What of ``module`` ``f`` must not call; empty where nothing."""
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
    from torch.nn.parallel import DistributedDataParallel

    if isinstance(module, FSDPModule | FullyShardedDataParallel):
        return "a layer sharded by FSDP, which gathers its parameters at every call"
    if isinstance(module, DistributedDataParallel):
        if module.will_sync_module_buffers():  # type: ignore[no-untyped-call]
            return "DistributedDataParallel with buffers, which broadcasts them at every call"
        if adjoint and module.static_graph:
            return "DistributedDataParallel(static_graph=True), which counts its calls"
    return ""


@contextlib.contextmanager
def refused(reachable: Iterable[Any], adjoint: bool = True) -> Iterator[None]:
    """Within it, UnsupportedError where such a layer among what is ``reachable`` from ``f`` is called.

    Only a call tells: a model that is sharded as a whole, and calls the solver in its ``forward``, is reachable from
    ``f`` too, and has its parameters at hand. ``adjoint``: ``f`` will be called again in the backward pass.
    """
    if not talking():
        yield
        return
    modules = [x for x in reachable if isinstance(x, torch.nn.Module)]
    hooks = [
        module.register_forward_pre_hook(functools.partial(_refuse, fault), prepend=True)
        for module in modules
        if (fault := _fault(module, adjoint))
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _refuse(fault: str, module: torch.nn.Module, inputs: Any) -> None:
    raise UnsupportedError(
        explain(
            f"f calls {fault}",
            "an f that does not communicate, as every rank evaluates it as often as its own rows ask for",
            "wrap the model that calls pynode.solve instead of f: DDP(model), fully_shard(model); or take "
            "sensealg=DirectAdjoint() with fixed steps",
        )
    )
