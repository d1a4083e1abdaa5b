"""Ensembles shared among processes of this machine: time of results and gradients, and whether they are the same.

A network field (16-64-64-16, float32, rtol = atol = 1e-5), whose members' speeds are spread over a decade, solved by
``pynode.ensemble`` in 1, 2, ... processes of one thread each, which torchrun starts: strong scaling, the same members
for all; weak scaling, as many for each. Launches take turns within every round; the fastest repetition of each counts,
as a machine that others use only ever adds time. States and gradients in ``y0`` are compared to the bit with those of
one process, gradients in the weights (sums over the members) by their distance.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from pynode.bench import Claim, Report, Table
from pynode.bench.stages import stages
from pynode.errors import PynodeError

SUMMARY = "ensembles shared among processes: strong and weak scaling on this machine, and the bits of the results"

#: Members and batches of a process; the same with --quick.
SIZES = {False: (512, 32), True: (32, 4)}
#: What summing over ranks in another order may cost in float32: some hundred additions.
ROUNDING = 1e-5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this experiment."""
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2], help="numbers of processes (1 2)")
    parser.add_argument("--rounds", type=int, help="rounds of launches (3, with --quick 1)")
    parser.add_argument("--quick", action="store_true", help="few members, one round")


def run(options: argparse.Namespace) -> Report:
    """Launch and compare."""
    members, batch = SIZES[options.quick]
    rounds, repetitions = options.rounds or (1 if options.quick else 3), 1 if options.quick else 3
    numbers = sorted({1, *options.processes})
    launches = sorted({(p, m) for p in numbers for m in (members, members * p)})
    seconds: dict[tuple[int, int], list[float]] = {launch: [] for launch in launches}
    results: dict[tuple[int, int], Any] = {}
    with stages("ensemble", rounds * len(launches)) as progress, tempfile.TemporaryDirectory() as name:
        for _ in range(rounds):
            for processes, many in launches:
                found = _launched(Path(name), processes, many, members, batch, repetitions)
                seconds[processes, many] += found.pop("seconds")
                results[processes, many] = found
                progress.step(f"{processes} processes, {many} members")
    return _report(numbers, members, seconds, results)


def _launched(folder: Path, processes: int, members: int, period: int, batch: int, repetitions: int) -> Any:
    arguments = [str(folder), *map(str, (members, period, batch, repetitions))]
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, "-m", *launcher, "-m", "pynode.bench.ensemble_rank", *arguments]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise PynodeError(
            f"{processes} processes of the ensemble ended with status {done.returncode}: {done.stderr[-2000:]}"
        )
    return torch.load(folder / f"{processes}-{members}.pt", weights_only=True)


def _report(numbers: list[int], members: int, seconds: dict[tuple[int, int], list[float]], results: Any) -> Report:
    report = Report([], [])
    one, base = results[1, members], min(seconds[1, members])
    sent = one["ys"][0].nbytes
    for kind in ("strong", "weak"):
        rows: list[tuple[str, ...]] = []
        for processes in numbers:
            many = members * (processes if kind == "weak" else 1)
            time, found = min(seconds[processes, many]), results[processes, many]
            # Of weak scaling the first members are those of one process; the gradient in the weights is of them all.
            same = torch.equal(found["ys"][:members], one["ys"])
            same = same and torch.equal(found["gradients"][0][:members], one["gradients"][0])
            efficiency = base / time / (processes if kind == "strong" else 1)
            pairs = zip(found["gradients"][1:], one["gradients"][1:], strict=True)
            scale = many // members
            distance = max(float((x / scale - y).abs().max() / y.abs().max()) for x, y in pairs)
            rows.append(
                (
                    str(processes),
                    str(many),
                    f"{time:.3f}",
                    f"{efficiency:.2f}",
                    "yes" if same else "NO",
                    f"{distance:.1e}",
                )
            )
            report.claims += [
                Claim(f"{kind}, {processes} processes: the bits of one process", float(same), same),
                Claim(f"{kind}, {processes} processes: gradient in the weights", distance, distance <= ROUNDING),
                Claim(f"{kind}, {processes} processes: efficiency {efficiency:.2f}", efficiency, None),
            ]
        columns = ("processes", "members", "fastest s", "efficiency", "same bits", "gradient distance")
        report.tables.append(Table(f"{kind} scaling, states and gradients", columns, rows))
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    report.notes += [
        f"{os.cpu_count()} cores, load {load}: the work of others is in these times",
        f"sent: {sent} bytes of states a member, and the gradients once: "
        f"{sum(x.nbytes for x in one['gradients'])} bytes, {one['gradients'][0].nbytes} of them of y0",
    ]
    report.data = {"seconds": {f"{p} processes, {m} members": x for (p, m), x in seconds.items()}}
    return report
