"""A training step on a GPU: the ODE-net block (batch 128) and a network field (batch 4 096, width 256).

A step is a solve, the gradient of ``mean(y(t[-1])**2)`` and an update by stochastic gradient descent, for pynode's
tiers with the default sensitivity algorithm, for torchdiffeq, and for diffrax where jax sees a GPU; DP5 throughout, at
the same tolerances, in alternating slots, each closed by a synchronisation. "kernels / wall" is the time that torch's
profiler finds kernels running over the wall time of the same steps: 1 means that the device never waits for Python.
Whether TF32 is allowed is recorded. On the CPU (``--device cpu``) the same code runs on small sizes: a test of it, not
a measurement; "kernels" are then torch's operators.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pynode.bench import Claim, Report, Table
from pynode.bench.adjoint.cases import network
from pynode.bench.contestants import TorchDiffEq, Way
from pynode.bench.fields import Case
from pynode.bench.gpu_diffrax import DiffraxStep, jax_device_absent
from pynode.bench.own_tier import own_tier
from pynode.bench.packages import missing
from pynode.bench.peers.fields import convolution
from pynode.bench.peers.line_up import TIERS, tier_solver
from pynode.bench.stages import stages
from pynode.bench.timing import alternate
from pynode.errors import InputError, PynodeError, explain

SUMMARY = "training steps on a GPU beside torchdiffeq and diffrax, and how busy the device is"

RATE = 1e-3

PEER = "torchdiffeq odeint_adjoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this experiment."""
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu for a small run of the same code")
    parser.add_argument(
        "--tiers", nargs="+", choices=tuple(TIERS), help="pynode's compile= (all by default, eager with --quick)"
    )
    parser.add_argument("--tf32", action="store_true", help="allow TF32 in matrix products and convolutions")
    parser.add_argument("--rounds", type=int, help="rounds of slots (15, at small size 1)")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")


def device_of(name: str) -> torch.device:
    """The device.

    Raises
    ------
    InputError
        Where it is not here.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(explain(f"the device is {name!r}", "cuda, cuda:N or cpu", "choose one of them")) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            explain(
                "torch finds no CUDA device", "one to measure on", "pass --device cpu to try the code at small size"
            )
        )
    return device


def cases(small: bool) -> list[Case]:
    """The two fields, on the CPU."""
    widths, batch = ((16, 16), 8) if small else ((256, 256), 4096)
    block = convolution(0, small, batch=128)
    field = network("mlp", (widths[0], *widths, widths[0]), batch)
    return [dataclasses.replace(block, name="block"), dataclasses.replace(field, rtol=1e-4, atol=1e-4)]


def on(case: Case, device: torch.device) -> Case:
    """A copy of the case on a device; times stay on the CPU, where pynode reads them."""
    return dataclasses.replace(case, field=copy.deepcopy(case.field).to(device), y0=case.y0.to(device))


def timed_on(case: Case, device: torch.device) -> Case:
    """The same with times on the device, where torchdiffeq would copy them to, with a warning."""
    return dataclasses.replace(on(case, device), t=case.t.to(device))


def training_step(solver: Way, case: Case) -> Callable[[], Tensor]:
    """A step that leaves the weights as a training loop would: changed."""
    optimiser = torch.optim.SGD(case.field.parameters(), lr=RATE)

    def step() -> Tensor:
        optimiser.zero_grad(set_to_none=True)
        loss = solver(case, case.y0).pow(2).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if case.y0.is_cuda:
            torch.cuda.synchronize(case.y0.device)
        return loss.detach()

    return step


def busy(call: Callable[[], Any], device: torch.device, steps: int) -> float:
    """Time with a kernel running over wall time, during some calls."""
    from torch._C._autograd import DeviceType  # torch.autograd has it, without exporting it
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.type == "cuda"
    start = time.perf_counter()
    for _ in range(steps):
        call()
    wall = time.perf_counter() - start  # the profiler slows Python down, not the kernels
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        for _ in range(steps):
            call()
    events = seen.key_averages()
    if on_gpu:
        # Kernels only: what launches them is an event too, to which their time may be attributed again.
        kernels = [e for e in events if e.device_type == DeviceType.CUDA]
        return float(sum(e.self_device_time_total for e in kernels)) * 1e-6 / wall
    return float(sum(e.self_cpu_time_total for e in events)) * 1e-6 / wall


def contestants(case: Case, device: torch.device, tiers: list[str], report: Report) -> dict[str, Callable[[], Any]]:
    """Steps by name, each on a field of its own, warmed up; what cannot run is a note."""
    ways: dict[str, Callable[[], Callable[[], Any]]] = {
        f"pynode {tier}": lambda tier=tier: training_step(tier_solver(tier), on(case, device))  # type: ignore[misc]
        for tier in tiers
    }
    if importlib.util.find_spec("torchdiffeq") is not None:
        for name, function in ((PEER, "odeint_adjoint"), ("torchdiffeq odeint, backprop", "odeint")):
            ways[name] = lambda f=function: training_step(TorchDiffEq(f), timed_on(case, device))  # type: ignore[misc]
    if jax_device_absent(device) is None:
        ways["diffrax RecursiveCheckpointAdjoint"] = lambda: DiffraxStep(case, device, RATE)
    ready: dict[str, Callable[[], Any]] = {}
    for name, make in ways.items():
        try:
            with own_tier():
                step = make()
                step()
        except (PynodeError, RuntimeError, AssertionError) as raised:
            report.notes.append(f"{case.name}: {name}: {type(raised).__name__}: {str(raised).splitlines()[0]}")
        else:
            ready[name] = step
    return ready


def run(options: argparse.Namespace) -> Report:
    """Measure both fields."""
    device = device_of(options.device)
    small = options.quick or device.type == "cpu"
    tiers = options.tiers or (["eager"] if small else list(TIERS))
    rounds = options.rounds or (1 if small else 15)
    report = Report([], [])
    lacking = {"torchdiffeq": missing("torchdiffeq"), "diffrax": jax_device_absent(device)}
    report.notes += [f"absent: {name}: {why}" for name, why in lacking.items() if why is not None]
    allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.tf32
    try:
        found = {}
        with stages("gpu", 2 * (1 + rounds)) as progress:
            for case in cases(small):
                progress.show(f"{case.name}: warming up")
                steps = contestants(case, device, tiers, report)
                between = functools.partial(progress.step, f"{case.name}: rounds")
                timings = alternate(steps, rounds, warmup=1 if small else 3, between=between)
                shares = {
                    name: busy(step, device, 1 if small else 5)
                    for name, step in steps.items()
                    if not isinstance(step, DiffraxStep)
                }
                progress.step(f"{case.name}: profiles")
                found[case.name] = _report(case, timings, shares, report, not small)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    report.notes.append(f"device {name}, TF32 {'allowed' if options.tf32 else 'off'}")
    report.data = {"device": name, "tf32": options.tf32, "small": small, "fields": found}
    return report


def _report(case: Case, timings: Any, shares: dict[str, float], report: Report, judged: bool) -> dict[str, Any]:
    rows: list[tuple[str, ...]] = []
    data: dict[str, Any] = {}
    for name, timing in timings.items():
        found = timing.spread
        faster = timings[PEER].over(timing) if PEER in timings else None
        rows.append(
            (
                name,
                f"{1e3 * found.median:.4g}",
                f"{1e3 * found.lower:.4g} - {1e3 * found.upper:.4g}",
                "-" if faster is None else f"{faster:.2f}",
                f"{shares[name]:.2f}" if name in shares else "-",
            )
        )
        data[name] = {"samples": list(timing.samples), "faster": faster, "busy": shares.get(name)}
        if not name.startswith("pynode"):
            continue
        if faster is not None:
            report.ratios[f"{case.name}: {name} over {PEER}"] = 1.0 / faster
        if name != "pynode eager":
            if faster is not None:
                text = f"{case.name}: a step by {name} {faster:.2f}x as fast as {PEER} (>= 3)"
                report.claims.append(Claim(text, faster, faster >= 3.0 if judged else None))
            text = f"{case.name}: {name} keeps the device busy {shares[name]:.2f} of the time (> 0.9)"
            report.claims.append(Claim(text, shares[name], shares[name] > 0.9 if judged else None))
    columns = ("", "median ms", "quartiles", "faster than odeint_adjoint", "kernels / wall")
    report.tables.append(Table(f"training step, {case.title}, rtol {case.rtol:g}", columns, rows))
    return data
