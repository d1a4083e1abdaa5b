"""Peak memory of a piece of work, from the allocator's own record."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def peak_memory(work: Callable[[], object], device: torch.device) -> int:
    """Largest number of bytes that torch held at one time during ``work()``, above what it held before.

    On CUDA this is the caching allocator's peak. On the CPU it is the running sum of the allocations and releases
    that ``torch.profiler`` records: unlike the process's resident set it counts tensors only and does not depend on
    what ran before. ``work`` is called once beforehand, so that buffers made once and kept do not count; it should
    release what it made.
    """
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _without_trace_markers(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


@contextmanager
def _without_trace_markers() -> Iterator[None]:
    """Keep the profiler's "USDT: ... profiler_start" lines, written below Python, out of the demo's output.

    Its own switch for them is read while torch is being loaded. Everything else written meanwhile is passed on.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        original = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(original, 2)
            os.close(original)
            held.seek(0)
            os.write(2, b"".join(line for line in held if not line.startswith(b"USDT:")))
