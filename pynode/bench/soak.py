"""Thousands of training iterations in one process, of all kinds in turns: does anything grow?

Problems, algorithms, sensitivity algorithms, shapes, ``compile=``, batching, events, trees, ``sol(t)``, models that
stay and models made anew, and solves that fail, drawn at random from a seed. Every so often the memory of the process,
its open files and threads, the live tensors and the entries of all caches are measured and printed; at the end a
straight line is laid through each series behind the warm-up. The command ends with status 1 where a slope is more than
3.5 of its standard errors above zero and above its bound: 256 bytes an iteration for the memory (less than a solution
that is held on to), a thousandth of an object an iteration for all else.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from pynode.bench import Claim, Report, Table
from pynode.bench.cache_sizes import cache_sizes
from pynode.bench.slopes import SIGNIFICANT, Slope, slope
from pynode.bench.soak_laps import Lap, julia_laps, native_laps, quiet

SUMMARY = "memory, files, threads and caches over thousands of training iterations"

#: Bytes an iteration.
MEMORY = 256.0
#: Of everything that is counted, an iteration.
COUNT = 1e-3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this experiment."""
    parser.add_argument("--iterations", type=int, default=10_000, metavar="N")
    parser.add_argument("--every", type=int, default=500, metavar="N", help="iterations between two measurements")
    parser.add_argument("--warm-up", type=float, default=0.3, help="share of the iterations that does not count")
    parser.add_argument("--memory", type=float, default=MEMORY, metavar="BYTES", help="largest growth an iteration")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", choices=("torch", "julia"), default="torch", help="julia: its iterations alone")
    parser.add_argument("--compile", nargs="*", choices=("solve", "step"), default=["solve", "step"])
    parser.add_argument("--quick", action="store_true", help="300 iterations without compile=, measured every 10")


def run(options: argparse.Namespace) -> Report:
    """Iterations as asked; ``failed`` names what grows."""
    if options.quick:
        options.iterations, options.every, options.compile = 300, 10, []
        options.memory = max(options.memory, 64 * 1024.0)  # the allocator has not settled by then
    torch.manual_seed(options.seed)
    laps = julia_laps() if options.backend == "julia" else native_laps(tuple(options.compile))
    return soak(laps, options.iterations, options.every, options.warm_up, options.seed, options.memory)


def soak(
    laps: Mapping[str, Lap], iterations: int, every: int, warm_up: float = 0.3, seed: int = 0, memory: float = MEMORY
) -> Report:
    """Run laps at random, after one of each, and judge what was measured on the way.

    Parameters
    ----------
    laps : mapping of str to Lap
    iterations, every : int
        How many in all, and between two measurements.
    warm_up : float
        Share of them that does not count.
    memory : float
        Largest growth, in bytes an iteration.
    """
    draw, names = random.Random(seed), list(laps)
    counts = dict.fromkeys(names, 0)
    at: list[int] = []
    series: dict[str, list[float]] = {}
    began = time.perf_counter()
    with quiet():
        for i in range(iterations):
            name = names[i] if i < len(names) else draw.choice(names)
            laps[name](draw)
            counts[name] += 1
            if (i + 1) % every == 0:
                at.append(i + 1)
                for key, value in measured().items():
                    series.setdefault(key, [0.0] * (len(at) - 1)).append(value)
                print(_line(i + 1, time.perf_counter() - began, series), flush=True)
    return judged(at, series, warm_up * iterations, memory, counts)


def measured() -> dict[str, float]:
    """What there is of everything, after a collection of garbage, Julia's too where it runs."""
    gc.collect()
    runtime = sys.modules.get("pynode.julia.runtime")
    if runtime is not None and runtime.started():
        runtime.julia().main.GC.gc()
    found: dict[str, float] = {
        "memory": float(resident_bytes()),
        "files": float(len(os.listdir("/proc/self/fd"))),
        "threads": float(len(os.listdir("/proc/self/task"))),
        "tensors": float(sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())),
    }
    return found | {f"cache: {key}": float(value) for key, value in cache_sizes().items()}


def resident_bytes() -> int:
    """Memory of this process that is in use (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def judged(
    at: list[int], series: Mapping[str, list[float]], first: float, memory: float, counts: Mapping[str, int]
) -> Report:
    """The verdict on series measured at iterations ``at``, those up to ``first`` left out."""
    kept = [i for i, x in enumerate(at) if x > first]
    report = Report([], [], data={"at": at, "series": dict(series), "laps": dict(counts)})
    if len(kept) < 3:
        report.failed.append(f"{len(kept)} measurements after the warm-up: fewer than the three a slope takes")
        return report
    rows: list[tuple[str, ...]] = []
    for name, values in series.items():
        found = slope([at[i] for i in kept], [values[i] for i in kept])
        bound = memory if name == "memory" else COUNT
        grows = found.grows(bound)
        rows.append((name, _short(values[kept[0]]), _short(values[-1]), _slope(found), f"{bound:g}"))
        text = f"{name}: {_slope(found)} an iteration (bound {bound:g})"
        report.claims.append(Claim(text, found.value, not grows))
        if grows:
            report.failed.append(
                f"{name} grows by {_slope(found)} an iteration: more than {bound:g} and {SIGNIFICANT:g} standard errors"
            )
    title = f"after {at[kept[0]]} and {at[-1]} iterations of {len(counts)} kinds"
    report.tables.append(Table(title, ("what", "first", "last", "an iteration", "bound"), rows))
    return report


def _line(iteration: int, seconds: float, series: Mapping[str, list[float]]) -> str:
    parts = [f"{name.removeprefix('cache: ')} {_short(values[-1])}" for name, values in series.items()]
    parts[0] = f"memory {series['memory'][-1] / 2**20:.1f} MiB"
    return f"{iteration:6d} {seconds:6.0f} s  " + ", ".join(parts)


def _short(value: float) -> str:
    return f"{value:.0f}"


def _slope(found: Slope) -> str:
    return f"{found.value:.3g} +- {found.error:.2g}"
