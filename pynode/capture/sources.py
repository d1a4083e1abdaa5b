"""The Python text that torch.fx keeps of every graph module, for tracebacks, as long as the process lives."""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.fx.graph_module


@contextmanager
def forgotten_sources() -> Iterator[None]:
    """Let go of what was kept inside: 27 KB for the capture of a small network, of modules that are never run."""
    loader: Any = getattr(torch.fx.graph_module, "_loader", None)
    kept: dict[str, str] = getattr(loader, "eval_cache", {})
    before = set(kept)
    try:
        yield
    finally:
        for name in set(kept) - before:
            kept.pop(name, None)
            linecache.cache.pop(name, None)
