"""The Julia backend beside torchdiffeq and jitted diffrax: forward and gradient, crossing into Julia included.

All solve with Dormand-Prince 5(4) at the same tolerances, in one process, on one thread, in alternating slots of equal
length; diffrax is timed on jax's own arrays, so that no crossing is counted against it. ``sum(y(t[-1])**2)`` is
differentiated.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import pynode
from pynode.bench import Claim, Report, Table
from pynode.bench.contestants import Pynode, TorchDiffEq, final, gradient
from pynode.bench.distance import error, root_mean_square
from pynode.bench.fields import CASES, Case
from pynode.bench.overhead_tables import ADJOINT, BACKPROP, PEER
from pynode.bench.reference import reference
from pynode.bench.timing import Timing, alternate
from pynode.julia.routes import callbacks

SUMMARY = "the Julia backend beside torchdiffeq and diffrax"

FORWARD, GAUSS, CALLBACK = "julia DP5", "julia DP5 GaussAdjoint", "julia DP5, called back"
NATIVE, DIFFRAX = "torch DP5", "diffrax Dopri5, jitted"

#: What is owed on the spiral: (contestant, times as fast).
OWED_FORWARD = ((PEER, 45.0), (DIFFRAX, 1.0))
OWED_GRADIENT = ((ADJOINT, 80.0), (BACKPROP, 15.0), (DIFFRAX, 1.5))

#: Seconds of each contestant's slot.
SLOT = 0.03

Computed = Callable[[Case], list[Tensor]]


class Julia:
    """``pynode.solve(backend="julia")``."""

    def __init__(self, called_back: bool = False, **options: Any) -> None:
        self.called_back = called_back
        self.solver = Pynode(algorithm=pynode.DP5(), backend="julia", **options)

    def forward(self, case: Case) -> list[Tensor]:
        return [self._run(lambda: final(self.solver, case))]

    def gradient(self, case: Case) -> list[Tensor]:
        found: list[Tensor] = self._run(lambda: gradient(self.solver, case))
        return found

    def _run(self, work: Callable[[], Any]) -> Any:
        if not self.called_back:
            return work()
        with callbacks():
            return work()


class Diffrax:
    """``diffrax.diffeqsolve`` of a perceptron, compiled once for each case."""

    def __init__(self) -> None:
        self._compiled: dict[int, tuple[Case, Any, Any, Any]] = {}

    def forward(self, case: Case) -> list[Tensor]:
        return self._tensors([self.run(case, False)])

    def gradient(self, case: Case) -> list[Tensor]:
        return self._tensors(self.run(case, True))

    def run(self, case: Case, differentiated: bool) -> Any:
        import jax

        if id(case) not in self._compiled:
            self._compiled[id(case)] = (case, *self._compile(case))
        _, arguments, solve, grad = self._compiled[id(case)]
        if not differentiated:
            return jax.block_until_ready(solve(*arguments))
        y0, p = jax.block_until_ready(grad(*arguments))
        return [y0, *p]

    @staticmethod
    def _tensors(arrays: list[Any]) -> list[Tensor]:
        import numpy as np

        return [torch.from_numpy(np.array(x)) for x in arrays]

    @staticmethod
    def _compile(case: Case) -> tuple[Any, Any, Any]:
        import diffrax
        import jax
        import jax.numpy as jnp

        weights = [jnp.asarray(x.detach().numpy()) for x in case.field.parameters()]
        cubed = case.name == "spiral"
        t0, t1 = case.t.tolist()

        def field(t: Any, y: Any, p: Any) -> Any:
            h = y**3 if cubed else y
            for index in range(0, len(p), 2):
                h = h @ p[index].T + p[index + 1]
                h = jnp.tanh(h) if index + 2 < len(p) else h
            return h

        def solve(y0: Any, p: Any) -> Any:
            return diffrax.diffeqsolve(
                *(diffrax.ODETerm(field), diffrax.Dopri5(), t0, t1, None, y0, p),
                stepsize_controller=diffrax.PIDController(rtol=case.rtol, atol=case.atol),
                max_steps=4096,
            ).ys[0]

        def loss(y0: Any, p: Any) -> Any:
            return (solve(y0, p) ** 2).sum()

        y0 = jnp.asarray(case.y0.detach().numpy())
        return (y0, weights), jax.jit(solve), jax.jit(jax.grad(loss, argnums=(0, 1)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this experiment."""
    parser.add_argument("--rounds", type=int, default=60, help="rounds of slots (%(default)s)")
    parser.add_argument("--draws", type=int, default=5, help="fields over which errors are taken (%(default)s)")
    parser.add_argument("--case", choices=tuple(CASES), action="append", help="only this field (may be repeated)")


def run(options: argparse.Namespace) -> Report:
    """Both fields."""
    report = Report([], [])
    peers = importlib.util.find_spec("diffrax") is not None
    if not peers:
        report.notes.append("diffrax is not installed: its rows are left out (pip install diffrax)")
    for name in options.case or CASES:
        _measure(name, options.rounds, options.draws, peers, report)
    return report


def _measure(name: str, rounds: int, draws: int, peers: bool, report: Report) -> None:
    cases = [CASES[name](seed) for seed in range(draws)]
    exact = [reference(case) for case in cases]
    diffrax = Diffrax()
    forward: dict[str, Computed] = {
        PEER: lambda case: [final(TorchDiffEq(), case)],
        NATIVE: lambda case: [final(Pynode(algorithm=pynode.DP5()), case)],
        FORWARD: Julia().forward,
        CALLBACK: Julia(called_back=True).forward,
    }
    backward: dict[str, Computed] = {
        ADJOINT: functools.partial(gradient, TorchDiffEq("odeint_adjoint")),
        BACKPROP: functools.partial(gradient, TorchDiffEq()),
        NATIVE: functools.partial(gradient, Pynode(algorithm=pynode.DP5())),
        GAUSS: Julia(sensealg=pynode.GaussAdjoint()).gradient,
        "julia DP5 QuadratureAdjoint": Julia(sensealg=pynode.QuadratureAdjoint()).gradient,
        "julia DP5 InterpolatingAdjoint": Julia(sensealg=pynode.InterpolatingAdjoint()).gradient,
        "julia DP5 BacksolveAdjoint": Julia(sensealg=pynode.BacksolveAdjoint()).gradient,
        CALLBACK: Julia(called_back=True, sensealg=pynode.GaussAdjoint()).gradient,
    }
    timed: list[dict[str, Callable[[], object]]] = []
    for contestants, differentiated in ((forward, False), (backward, True)):
        if peers:
            contestants[DIFFRAX] = diffrax.gradient if differentiated else diffrax.forward
        slots: dict[str, Callable[[], object]] = {
            key: functools.partial(compute, cases[0]) for key, compute in contestants.items()
        }
        if peers:
            slots[DIFFRAX] = functools.partial(diffrax.run, cases[0], differentiated)
        timed.append(slots)
    for title, contestants, slots, owed in (
        ("forward", forward, timed[0], OWED_FORWARD),
        ("gradient", backward, timed[1], OWED_GRADIENT),
    ):
        truths = [[x.final] if title == "forward" else x.gradient for x in exact]
        errors = {
            key: root_mean_square([error(compute(case), truth) for case, truth in zip(cases, truths, strict=True)])
            for key, compute in contestants.items()
        }
        timings = alternate(slots, rounds, slot=SLOT)
        ours = FORWARD if title == "forward" else GAUSS
        report.tables.append(_table(f"{title}, {cases[0].title}", timings, errors, ours))
        for peer, least in owed:
            if peer in timings:
                report.claims.append(_claim(name, title, ours, peer, least, timings, errors))
        report.data[f"{name} {title}"] = {
            key: {"median": timings[key].median, "minimum": timings[key].minimum, "error": errors[key]}
            for key in contestants
        }


def _table(title: str, timings: dict[str, Timing], errors: dict[str, float], ours: str) -> Table:
    rows = [
        (
            key,
            f"{timing.median * 1e3:.3f}",
            f"{timing.minimum * 1e3:.3f}",
            f"{timing.over(timings[ours]):.2f}",
            f"{errors[key]:.1e}",
        )
        for key, timing in timings.items()
    ]
    return Table(title, ("", "median ms", "min ms", f"time over {ours}'s", "error"), list(rows))


def _claim(
    name: str, title: str, ours: str, peer: str, least: float, timings: dict[str, Timing], errors: dict[str, float]
) -> Claim:
    ratio = timings[peer].over(timings[ours])
    good = errors[ours] <= 1.05 * errors[peer]
    text = f"{name}, {title}: {ours} {ratio:.2f}x as fast as {peer}, error {errors[ours]:.1e} ({errors[peer]:.1e})"
    if name != "spiral":
        return Claim(text, ratio, None)
    return Claim(f"{text}; owed {least:g}x at no larger error", ratio, good and ratio >= least)
