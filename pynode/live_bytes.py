"""Peak memory of torch operations, on any device, without a profiler."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages made by torch operations inside the context, while they live.

    Views share their storage and cost nothing; what existed before does not count. Memory a kernel takes and returns
    within one operation is not seen.

    Attributes
    ----------
    live, peak : int
        Bytes alive now, and the most there have been.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: int = 0
        self.peak: int = 0
        self._watches: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        for storage in _storages(result):
            if id(storage) in self._watches:
                continue
            # Operations that write into or look at an existing tensor return its storage: no allocation.
            if not any(storage is given for given in _storages((args, tuple(kwargs.values())))):
                self._watch(storage)
        return result

    def _watch(self, storage: torch.UntypedStorage) -> None:
        # The storage's Python object lives as long as the storage itself, whoever holds it.
        key, size = id(storage), storage.nbytes()

        def gone(_: Any) -> None:
            del self._watches[key]
            self.live -= size

        self._watches[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    """Storages of the tensors in nested tuples and lists: all that torch's operators take and return."""
    if isinstance(values, torch.Tensor):
        yield values.untyped_storage()
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _storages(value)


def peak_during(work: Callable[[], object]) -> int:
    """Most bytes alive at once during ``work()`` in storages that torch operations made in it.

    The garbage collector is off meanwhile: memory that only it would give back counts as used.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        with LiveBytes() as memory:
            work()
    finally:
        if enabled:
            gc.enable()
    peak: int = memory.peak
    return peak
