"""What eager solves cost beside the bare field and beside torchdiffeq, in time and in tensor operations.

Solves without autograd and gradients (of the sum of squares of the final state, in y0 and all parameters) by
``pynode.solve`` with DP5, and by torchdiffeq's dopri5 at the same tolerances; everything in one process on one thread,
in alternating slots, by the processor time of the process, of which other processes take none. ``operations`` are
those that torch dispatches, counted in an untimed run, those of the field apart from all others.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import pynode
from pynode.bench import Claim, Report, Table
from pynode.bench.eager_fields import STARTS, Start
from pynode.bench.timing import alternate

SUMMARY = "eager solves beside the bare field and torchdiffeq, and the tensor operations of a step"


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts dispatched operations, and those of a field apart."""

    def __init__(self, field: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.all = self.inside = self.calls = self._depth = 0
        self._hooks = [field.register_forward_pre_hook(self._enter), field.register_forward_hook(self._leave)]

    def _enter(self, *_: Any) -> None:
        self._depth += 1
        self.calls += 1

    def _leave(self, *_: Any) -> None:
        self._depth -= 1

    def __exit__(self, *error: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.all += 1
        self.inside += self._depth > 0
        return func(*args, **(kwargs or {}))


def solution(start: Start, y0: Any) -> pynode.Solution:
    """Ours."""
    return pynode.solve(start.field, y0, start.t, rtol=start.rtol, atol=start.atol, algorithm=pynode.DP5())


def _ours(start: Start, y0: Any) -> Any:
    return solution(start, y0).ys


def _theirs(function: str, start: Start, y0: Any) -> Any:
    import torchdiffeq

    solver = getattr(torchdiffeq, function)
    return solver(start.field, y0, start.t, rtol=start.rtol, atol=start.atol, method="dopri5")


def forward(solver: Callable[[Start, Any], Any], start: Start) -> None:
    """A solve without autograd."""
    with torch.no_grad():
        solver(start, start.y0)


def gradient(solver: Callable[[Start, Any], Any], start: Start) -> list[Tensor]:
    """The gradient of the sum of squares of the final state."""
    leaves = [leaf.detach().requires_grad_() for leaf in start.leaves]
    ys = solver(start, start.with_leaves(leaves))
    last = [y[-1] for y in ([ys] if isinstance(ys, Tensor) else ys)]
    loss = torch.stack([y.pow(2).sum() for y in last]).sum()
    return list(torch.autograd.grad(loss, [*leaves, *start.field.parameters()]))


def operations(call: Callable[[], object], start: Start) -> tuple[int, int, int]:
    """Dispatched operations of ``call`` outside and inside the field's forward, and evaluations of the field."""
    with _Counter(start.field) as counter:
        call()
    return counter.all - counter.inside, counter.inside, counter.calls


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this experiment."""
    parser.add_argument("--only", nargs="+", choices=sorted(STARTS), default=list(STARTS), help="problems")
    parser.add_argument("--repeats", type=int, default=9, help="rounds of slots (default: %(default)s)")
    parser.add_argument("--slot", type=float, default=0.02, help="seconds a slot lasts at least")
    parser.add_argument("--forward", action="store_true", help="no gradients")


def run(options: argparse.Namespace) -> Report:
    """Measure every problem."""
    report = Report([], [])
    heads = ("", "steps", "evaluations", "outside f a step", "over bare f", "torchdiffeq")
    solves = Table("forward: times over ours", heads, [])
    shown = ("", "outside f a step", "over a bare pass and pullback", "odeint_adjoint", "odeint, backprop")
    pulls = Table("gradient: times over ours", shown, [])
    for name in options.only:
        start = STARTS[name]()
        solves.rows.append((name, *_forward(start, options, report)))
        if not options.forward:
            pulls.rows.append((name, *_gradient(start, options, report)))
    report.tables += [solves, pulls][: 1 if options.forward else 2]
    report.notes.append("operations outside f: all but those that the field's forward dispatches, over accepted steps.")
    return report


def _timing(options: argparse.Namespace) -> dict[str, Any]:
    return {"slot": options.slot, "warmup": 1, "clock": process_time}


def _forward(start: Start, options: argparse.Namespace, report: Report) -> tuple[str, ...]:
    ours, theirs = (functools.partial(forward, x, start) for x in (_ours, functools.partial(_theirs, "odeint")))
    with torch.no_grad():
        counts = solution(start, start.y0).stats.forward
    outside, _, calls = operations(ours, start)
    steps = counts.accepted + counts.rejected
    time = torch.scalar_tensor(float(start.t[0]), dtype=start.leaves[0].dtype)

    def bare() -> None:
        with torch.no_grad():
            for _ in range(calls):
                start.field(time, start.y0)

    times = alternate(
        {"ours": ours, "bare": bare, "torchdiffeq": theirs},
        options.repeats,
        slot=options.slot,
        warmup=1,
        clock=process_time,
    )
    over, peer = times["ours"].over(times["bare"]), times["torchdiffeq"].over(times["ours"])
    report.data.setdefault(start.name, {})["forward"] = {
        **{"steps": steps, "evaluations": calls, "operations": outside / steps, "over_bare": over, "peer": peer},
        "milliseconds": times["ours"].median * 1e3,
    }
    report.claims.append(Claim(f"{start.name}: forward {over:.2f} of the bare field", over, over <= 1.3))
    report.claims.append(Claim(f"{start.name}: forward {peer:.2f}x torchdiffeq", peer, peer >= 1.0))
    return str(steps), str(calls), f"{outside / steps:.1f}", f"{over:.2f}", f"{peer:.2f}"


def _gradient(start: Start, options: argparse.Namespace, report: Report) -> tuple[str, ...]:
    solvers = {"ours": _ours} | {x: functools.partial(_theirs, x) for x in ("odeint_adjoint", "odeint")}
    contestants: dict[str, Callable[[], object]] = {
        name: functools.partial(gradient, solver, start) for name, solver in solvers.items()
    }
    counts = solution(start, start.y0).stats.forward
    steps = counts.accepted + counts.rejected
    outside, _, calls = operations(contestants["ours"], start)
    parameters = [p for p in start.field.parameters() if p.requires_grad]
    time = torch.scalar_tensor(float(start.t[0]), dtype=start.leaves[0].dtype)
    ones = [torch.ones_like(leaf) for leaf in start.leaves]

    def bare() -> None:
        """As many evaluations as the solve makes, and as many pullbacks as its adjoint must."""
        with torch.no_grad():
            for _ in range(counts.nfe):
                start.field(time, start.y0)
        for _ in range(calls - counts.nfe):
            leaves = [leaf.detach().requires_grad_() for leaf in start.leaves]
            found = start.field(time, start.with_leaves(leaves))
            outputs = [found] if isinstance(found, Tensor) else list(found)
            torch.autograd.grad(outputs, [*leaves, *parameters], ones, allow_unused=True)

    contestants["bare"] = bare
    for name in ("odeint_adjoint", "odeint"):
        try:
            contestants[name]()
        except (AssertionError, RuntimeError) as error:  # the state of a diffusion cannot be integrated backward
            del contestants[name]
            report.notes.append(f"{start.name}: {name} fails ({str(error).splitlines()[0]}).")
    times = alternate(contestants, options.repeats, **_timing(options))
    over = times["ours"].over(times["bare"])
    peers: dict[str, float] = {x: times[x].over(times["ours"]) for x in ("odeint_adjoint", "odeint") if x in times}
    figures: dict[str, float] = {
        "operations": outside / steps,
        "over_bare": over,
        **peers,
        "milliseconds": times["ours"].median * 1e3,
    }
    report.data.setdefault(start.name, {})["gradient"] = figures
    for peer, ratio in peers.items():
        what = "backprop through odeint" if peer == "odeint" else peer
        report.claims.append(Claim(f"{start.name}: gradient {ratio:.2f}x {what}", ratio, ratio >= 1.0))
    shown = (f"{peers[x]:.2f}" if x in peers else "fails" for x in ("odeint_adjoint", "odeint"))
    return (f"{outside / steps:.1f}", f"{over:.2f}", *shown)
