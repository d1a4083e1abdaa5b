"""An ensemble shared among the processes of a ``torch.distributed`` group: its results, and its gradient.

Every rank pulls its own members back, and the parts are added up.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pynode.errors import GradientError, InputError, PynodeError, explain

#: Values of a tensor that are compared between processes.
_COMPARED = 1024


class Ranks:
    """The processes of ``group``; of the default group where it is None, or this process alone without one.

    Raises
    ------
    InputError
        If ``group`` is given without ``torch.distributed`` having been initialised, or if this process is not in it.
    """

    def __init__(self, group: Any = None) -> None:
        self.group = group
        self.rank, self.size = 0, 1
        if dist.is_available() and dist.is_initialized():
            self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        elif group is not None:
            raise InputError(
                explain(
                    f"group is a {type(group).__name__}, and torch.distributed has not been initialised",
                    "a process group, or None",
                    "call torch.distributed.init_process_group() first",
                )
            )
        if self.rank < 0:
            raise InputError(
                explain("this process is not in group", "a process of the group", "call it on the group's ranks only")
            )

    def share(self, count: int, rank: int | None = None) -> range:
        """Which of ``count`` pieces of work a rank (this one by default) has: a stretch of them, possibly empty."""
        rank = self.rank if rank is None else rank
        return range(rank * count // self.size, (rank + 1) * count // self.size)

    def exchange(self, told: Any) -> list[Any]:
        """What every rank tells, in their order: any object that can be pickled. All ranks must call."""
        heard = [told]
        if self.size > 1:
            heard = [None] * self.size
            dist.all_gather_object(heard, told, group=self.group)
        return heard

    def gathered(self, own: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
        """Tensors (m, ...) of all ranks, put together along dimension 0; ``counts``: every rank's m. One message."""
        if self.size == 1:
            return [*own]
        lead = torch.cat([_bytes(x) for x in own])
        widths = [x.element_size() * math.prod(x.shape[1:]) for x in own]
        lead = torch.nn.functional.pad(lead, (0, max(counts) * sum(widths) - lead.numel()))
        heard = [torch.empty_like(lead) for _ in counts]
        dist.all_gather(heard, lead, group=self.group)
        parts: list[list[Tensor]] = [[] for _ in own]
        for flat, count in zip(heard, counts, strict=True):
            at = 0
            for found, like, width in zip(parts, own, widths, strict=True):
                piece = flat[at : at + count * width].clone().view(like.dtype)  # a clone begins aligned
                found.append(piece.reshape(count, *like.shape[1:]))
                at += count * width
        return [torch.cat(found) for found in parts]

    def summed(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Every tensor's sum over the ranks; one message for each dtype."""
        if self.size == 1:
            return [*tensors]
        found = [*tensors]
        for dtype in {x.dtype: None for x in tensors}:
            mine = [i for i, x in enumerate(tensors) if x.dtype == dtype]
            flat = torch.cat([tensors[i].reshape(-1) for i in mine])
            dist.all_reduce(torch.view_as_real(flat) if flat.is_complex() else flat, group=self.group)
            at = 0
            for i in mine:
                count = tensors[i].numel()
                found[i] = flat[at : at + count].view(tensors[i].shape)
                at += count
        return found

    def check_alike(self, heard: Sequence[dict[str, Any]]) -> None:
        """Raise InputError unless all ranks told the same :func:`fingerprints`."""
        for rank, told in enumerate(heard):
            for name in {**heard[0], **told}:
                if told.get(name) != heard[0].get(name):
                    raise InputError(
                        explain(
                            f"{name} is not the same on rank {rank} as on rank 0",
                            "the same arguments, and the same parameters of f, on every rank of the group",
                            "build them from one seed, or broadcast rank 0's",
                        )
                    )


def _bytes(x: Tensor) -> Tensor:
    return x.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8)


def fingerprints(tensors: Sequence[tuple[str, Tensor]]) -> dict[str, Any]:
    """What two tensors that are the same have in common, by name."""
    found = {}
    for name, x in tensors:
        flat = x.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // _COMPARED)][:_COMPARED]
        found[name] = (tuple(x.shape), str(x.dtype), x.requires_grad, zlib.crc32(_bytes(some).cpu().numpy().tobytes()))
    return found


def told(error: Exception | None) -> str:
    """An exception in words; empty where there is none."""
    return "" if error is None else f"{type(error).__name__}: {error}"


def raise_failures(own: Exception | None, heard: Sequence[str], what: str) -> None:
    """Raise this rank's exception, or say which other rank had one. ``heard``: every rank's :func:`told`."""
    if own is not None:
        raise own
    for rank, words in enumerate(heard):
        if words:
            raise PynodeError(f"rank {rank} failed in {what}, and so the ranks of the group all stop: {words}")


@dataclass
class Share:
    """This rank's part of an ensemble.

    Attributes
    ----------
    outputs : list of Tensor
        Of its members, (m, ...), on the tape of ``inputs``.
    inputs : list of Tensor
        What the members depend on, as this rank's tape has it.
    counts : list of int
        Members of every rank; None where results are not gathered.
    """

    ranks: Ranks
    outputs: list[Tensor]
    inputs: list[Tensor]
    counts: list[int] | None

    def results(self) -> list[Tensor]:
        """The outputs off the tape, of all ranks where they are gathered."""
        own = [x.detach() for x in self.outputs]
        return own if self.counts is None else self.ranks.gathered(own, self.counts)

    def connected(self, given: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The results as functions of ``given``, the user's tensors that stand behind ``inputs``."""
        found: tuple[Tensor, ...] = _Shared.apply(self, *given)  # type: ignore[no-untyped-call]
        return found

    def pulled_back(self, cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        """This rank's part of the gradients of ``inputs``."""
        if self.counts is not None:
            start = sum(self.counts[: self.ranks.rank])
            stop = start + self.counts[self.ranks.rank]
            cotangents = [None if g is None else g[start:stop] for g in cotangents]
        pairs = zip(self.outputs, cotangents, strict=True)
        used = [(x, g) for x, g in pairs if g is not None and x.requires_grad]
        if not used:
            return [None] * len(self.inputs)
        return list(
            torch.autograd.grad(
                [x for x, _ in used],
                self.inputs,
                [g for _, g in used],
                allow_unused=True,
                retain_graph=True,  # nobody tells whether the user keeps his graph
            )
        )


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: Share, *given: Tensor) -> tuple[Tensor, ...]:
        ctx.share = share
        ctx.set_materialize_grads(False)
        results = tuple(x.clone() if x is own else x for x, own in zip(share.results(), share.outputs, strict=True))
        ctx.mark_non_differentiable(*(x for x in results if not (x.is_floating_point() or x.is_complex())))
        return results

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        share: Share = ctx.share
        if torch.is_grad_enabled():
            raise GradientError(
                explain(
                    "the gradient of an ensemble was to be differentiated again (create_graph=True)",
                    "one differentiation",
                    "use pynode.solve on the batch",
                )
            )
        parts: list[Tensor | None] = [None] * len(share.inputs)
        error: Exception | None = None
        try:
            parts = share.pulled_back(cotangents)
        except Exception as raised:
            error = raised
        heard = share.ranks.exchange((told(error), [g is not None for g in parts]))
        raise_failures(error, [words for words, _ in heard], "the backward pass of an ensemble")
        wanted = [any(has) for has in zip(*(has for _, has in heard), strict=True)]
        like = zip(parts, share.inputs, wanted, strict=True)
        sums = iter(share.ranks.summed([torch.zeros_like(x) if g is None else g for g, x, w in like if w]))
        return (None, *[next(sums) if want else None for want in wanted])
