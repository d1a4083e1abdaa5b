"""The one ``torch.autograd.Function``: states at given times, whose backward is the backend's pullback."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pynode.backends import Backend, Record
from pynode.errors import GradientError, explain


class Evaluation:
    """A solve looked at in some times.

    Parameters
    ----------
    backend : Backend
    record : Record
    times : list of float
        The times of ``values``.
    values : Tensor (m, n)
    """

    def __init__(self, backend: Backend, record: Record, times: list[float], values: Tensor) -> None:
        self.backend, self.record = backend, record
        self.times, self.values = times, values

    def connected(self, times_tensor: Tensor) -> Tensor:
        """``values``, connected by autograd to ``times_tensor`` (m,) and to everything the solve depends on."""
        request = self.record.request
        dependencies = request.dependencies
        assert dependencies is not None
        problem = request.problem
        values: Tensor = _Solve.apply(  # type: ignore[no-untyped-call]
            self, problem.t, times_tensor, problem.y0, *dependencies.arguments, *dependencies.parameters
        )
        return values


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, evaluation: Evaluation, t: Tensor, times: Tensor, y0: Tensor, *inputs: Tensor) -> Tensor:
        ctx.evaluation = evaluation
        # Not needed as values: saving them lets autograd notice that an optimizer changed them before backward.
        ctx.save_for_backward(t, times, y0, *inputs)
        return evaluation.values

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        t, times, _y0, *inputs = ctx.saved_tensors
        evaluation: Evaluation = ctx.evaluation
        backend, record = evaluation.backend, evaluation.record
        dependencies = record.request.dependencies
        assert dependencies is not None
        (cotangents,) = grad_outputs
        with torch.no_grad():
            found = backend.pull_back(record, evaluation.times, cotangents.detach())
            dependencies.check_owed(found.parameters)
            _check_finite(found.y0, record)
        t_gradient = times_gradient = None
        if ctx.needs_input_grad[1] and found.mesh is not None:
            with torch.enable_grad():
                free = t.detach().requires_grad_()
                mesh = backend.mesh(record, free)
            (t_gradient,) = torch.autograd.grad(mesh, free, found.mesh.to(mesh))
        if ctx.needs_input_grad[2] and found.times is not None:
            times_gradient = found.times.to(times)
        gradients = [t_gradient, times_gradient, found.y0, *found.arguments, *found.parameters]
        if torch.is_grad_enabled():  # create_graph=True
            gradients = _refuse_second(cotangents, gradients, record)
        kept = [g if need else None for g, need in zip(gradients, ctx.needs_input_grad[1:], strict=True)]
        return (None, *kept)


def _check_finite(gradient: Tensor, record: Record) -> None:
    if not bool(torch.isfinite(gradient).all()):
        raise GradientError(
            explain(
                f"the gradient with respect to y0 under {record.request.sensealg.name} is not finite",
                "finite gradients",
                "check the loss for a NaN, and f's derivatives for a singularity (sqrt or norm at 0, log, division)",
            )
        )


class _Once(torch.autograd.Function):
    """Passes gradients on, refusing to be differentiated."""

    @staticmethod
    def forward(ctx: Any, name: str, cotangents: Tensor, *gradients: Tensor) -> tuple[Tensor, ...]:
        ctx.name = name
        return tuple(g.clone() for g in gradients)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        raise GradientError(
            explain(
                f"a gradient computed by {ctx.name} was differentiated again",
                "one differentiation",
                "use sensealg=DirectAdjoint() for double backward",
            )
        )


def _refuse_second(cotangents: Tensor, gradients: list[Tensor | None], record: Record) -> list[Tensor | None]:
    present = [g for g in gradients if g is not None]
    marked = iter(_Once.apply(record.request.sensealg.name, cotangents, *present))  # type: ignore[no-untyped-call]
    return [None if g is None else next(marked) for g in gradients]
