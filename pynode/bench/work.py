"""Evaluations of a field and pullbacks through it, counted by hooks on the field or by pynode's own statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pynode.bench.contestants import Pynode, Solver, final
from pynode.bench.fields import Case


@dataclass
class Work:
    """Evaluations of a field, and pullbacks through it."""

    evaluations: int = 0
    pullbacks: int = 0


@contextlib.contextmanager
def counting(field: torch.nn.Module) -> Iterator[Work]:
    """Count what is done with ``field`` inside the context."""
    work = Work()

    def pulled(_: Tensor) -> None:
        work.pullbacks += 1

    def called(_module: Any, _inputs: Any, output: Tensor) -> None:
        work.evaluations += 1
        if output.requires_grad:
            output.register_hook(pulled)  # type: ignore[no-untyped-call]

    handle = field.register_forward_hook(called)
    try:
        yield work
    finally:
        handle.remove()


def work_of_forward(solver: Solver, case: Case) -> Work:
    """Work of a solve without autograd."""
    if isinstance(solver, Pynode) and solver.compiled:
        with torch.no_grad():
            return Work(solver.solution(case, case.y0).stats.forward.nfe)
    with counting(case.field) as work:
        final(solver, case)
    return work


def work_of_gradient(solver: Solver, case: Case) -> tuple[Work, Work]:
    """Work of the forward and of the backward pass of a gradient."""
    y0, parameters = case.y0.detach().requires_grad_(), list(case.field.parameters())
    if isinstance(solver, Pynode) and solver.compiled:
        sol = solver.solution(case, y0)
        torch.autograd.grad(sol.ys[-1].pow(2).sum(), [y0, *parameters])
        return Work(sol.stats.forward.nfe), Work(sol.stats.backward.nfe, sol.stats.backward.nvjp)
    with counting(case.field) as work:
        loss = solver(case, y0).pow(2).sum()
        forward = Work(work.evaluations, work.pullbacks)
        torch.autograd.grad(loss, [y0, *parameters])
    return forward, Work(work.evaluations - forward.evaluations, work.pullbacks - forward.pullbacks)
