"""Ways from an initial state to the end: pynode's solve and torchdiffeq's, and what is asked of either."""

from __future__ import annotations

import functools
from typing import Any, Protocol

import torch
from torch import Tensor

import pynode
from pynode.bench.fields import Case


class Way(Protocol):
    """A way from ``y0`` to ``y(t[-1])``."""

    def __call__(self, case: Case, y0: Tensor) -> Tensor: ...


class Solver(Way, Protocol):
    """A way whose steps are known."""

    def steps(self, case: Case) -> tuple[int, int]:
        """Accepted and rejected steps of the forward solve."""
        ...


class Pynode:
    """``pynode.solve`` with some of its options."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        #: Hooks on the field would be compiled with it: such a solve is counted by its own statistics.
        self.compiled = bool(options.get("compile"))

    def solution(self, case: Case, y0: Tensor) -> pynode.Solution:
        return pynode.solve(case.field, y0, case.t, rtol=case.rtol, atol=case.atol, **self.options)

    def __call__(self, case: Case, y0: Tensor) -> Tensor:
        final: Tensor = self.solution(case, y0).ys[-1]
        return final

    def steps(self, case: Case) -> tuple[int, int]:
        counts = self.solution(case, case.y0).stats.forward
        return counts.accepted, counts.rejected


class TorchDiffEq:
    """``torchdiffeq.odeint`` or ``odeint_adjoint``."""

    def __init__(self, function: str = "odeint", method: str = "dopri5", **options: Any) -> None:
        self.function, self.method, self.options = function, method, options

    def __call__(self, case: Case, y0: Tensor) -> Tensor:
        function = getattr(torchdiffeq(), self.function)
        values: Tensor = function(
            case.field, y0, case.t, rtol=case.rtol, atol=case.atol, method=self.method, **self.options
        )
        return values[-1]

    def steps(self, case: Case) -> tuple[int, int]:
        counts = {"accept": 0, "reject": 0}

        def count(kind: str, *_: Any) -> None:
            counts[kind] += 1

        # torchdiffeq finds its callbacks as attributes of the field.
        for kind in counts:
            setattr(case.field, f"callback_{kind}_step", functools.partial(count, kind))
        try:
            with torch.no_grad():
                self(case, case.y0)
        finally:
            for kind in counts:
                delattr(case.field, f"callback_{kind}_step")
        return counts["accept"], counts["reject"]


def torchdiffeq() -> Any:
    """The library.

    Raises
    ------
    ImportError
        Where it is not installed.
    """
    try:
        import torchdiffeq
    except ImportError as error:
        raise ImportError("this experiment needs torchdiffeq: pip install 'pynode[bench]'") from error
    return torchdiffeq


def gradient(solver: Way, case: Case) -> list[Tensor]:
    """Gradient of ``sum(y(t[-1])**2)`` with respect to y0 and every parameter."""
    y0 = case.y0.detach().requires_grad_()
    return list(torch.autograd.grad(solver(case, y0).pow(2).sum(), [y0, *case.field.parameters()]))


def final(solver: Way, case: Case) -> Tensor:
    """``y(t[-1])``, without autograd."""
    with torch.no_grad():
        return solver(case, case.y0)
