"""The one ``torch.autograd.Function``: states at given times, whose backward is the backend's pullback."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pynode.backends import Backend, Gradients, Query, Record
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
        States at ``times``, or their time derivatives if ``derivative``.
    own_times : bool
        The times were given apart from the problem's ``t``.
    """

    def __init__(
        self,
        backend: Backend,
        record: Record,
        times: list[float],
        values: Tensor,
        derivative: bool = False,
        own_times: bool = True,
    ) -> None:
        self.backend, self.record = backend, record
        self.times, self.values = times, values
        self.derivative, self.own_times = derivative, own_times
        dependencies = record.request.dependencies
        assert dependencies is not None
        #: What the pullback evaluates f with, as it is now.
        self.inputs = (*dependencies.arguments, *dependencies.parameters)
        self.versions = [x._version for x in self.inputs]

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
        # Saving notices changes in place. The inputs are watched in backward, where it is known which of them count.
        ctx.save_for_backward(t, times, y0)
        # Another tensor over the same memory: the result, which holds this node, is not held by it in turn.
        return evaluation.values.detach()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        t, times, y0 = ctx.saved_tensors
        evaluation: Evaluation = ctx.evaluation
        backend, record = evaluation.backend, evaluation.record
        dependencies = record.request.dependencies
        assert dependencies is not None
        (cotangents,) = grad_outputs
        reached = [id(x) in dependencies.reached for x in dependencies.parameters]
        _check_unchanged(evaluation, [True] * len(dependencies.arguments) + reached)
        with torch.no_grad(), record.request.problem.autocast():
            found = _pulled_back(evaluation, cotangents.detach(), any(ctx.needs_input_grad[1:3]))
            parameters = dependencies.owed_gradients(found.parameters)
            _check_unchanged(evaluation, [g is not None for g in (*found.arguments, *found.parameters)])
            _check_finite(found.y0, record)
        t_gradient = times_gradient = None
        if ctx.needs_input_grad[1] and found.mesh is not None:
            with torch.enable_grad():
                free = t.detach().requires_grad_()
                mesh = backend.mesh(record, free)
            seed = torch.zeros_like(mesh)
            seed[: len(found.mesh)] = found.mesh  # a solve that failed at once has no boundary but the first
            (t_gradient,) = torch.autograd.grad(mesh, free, seed)
        if ctx.needs_input_grad[2] and found.times is not None:
            times_gradient = found.times.to(times)
        gradients = [t_gradient, times_gradient, found.y0, *found.arguments, *parameters]
        if torch.is_grad_enabled():  # create_graph=True
            gradients = _refuse_second((cotangents, t, times, y0, *evaluation.inputs), gradients, record)
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


def _pulled_back(evaluation: Evaluation, cotangents: Tensor, time_gradient: bool) -> Gradients:
    query = Query(evaluation.times, evaluation.derivative, evaluation.own_times, time_gradient)
    try:
        return evaluation.backend.pull_back(evaluation.record, query, cotangents)
    except RuntimeError as error:
        if "backward through the graph a second time" not in str(error):
            raise
        raise GradientError(
            explain(
                "f used a tensor that an earlier evaluation of f had computed and kept (a cache)",
                "every evaluation of f to compute what it differentiates, or to get it from outside",
                "compute it before the solve and pass it through args=(tensor,), or use DirectAdjoint()",
            )
        ) from error


def _check_unchanged(evaluation: Evaluation, counts: list[bool]) -> None:
    for x, version, counted in zip(evaluation.inputs, evaluation.versions, counts, strict=True):
        if counted and x._version != version:
            raise GradientError(
                explain(
                    f"a tensor of shape {tuple(x.shape)} that f depends on was modified in place between the solve and "
                    "its backward pass",
                    "parameters and args as they were in the solve",
                    "call backward() before optimizer.step(), or clone what is changed",
                )
            )


class _Once(torch.autograd.Function):
    """Passes gradients on, refusing to be differentiated with respect to what they depend on."""

    @staticmethod
    def forward(ctx: Any, name: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.name = name
        return tuple(g.clone() for g in tensors[count:])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        raise GradientError(
            explain(
                f"a gradient computed by {ctx.name} was differentiated again",
                "one differentiation",
                "use sensealg=DirectAdjoint() for double backward",
            )
        )


def _refuse_second(inputs: tuple[Tensor, ...], gradients: list[Tensor | None], record: Record) -> list[Tensor | None]:
    present = [g for g in gradients if g is not None]
    marked = iter(_Once.apply(record.request.sensealg.name, len(inputs), *inputs, *present))  # type: ignore[no-untyped-call]
    return [None if g is None else next(marked) for g in gradients]
