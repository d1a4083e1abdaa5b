"""The one ``torch.autograd.Function``: states at given times, whose backward is the backend's pullback."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.backends import Backend, Gradients, Query, Record
from pynode.errors import GradientError, explain, not_finite
from pynode.evaluations import written
from pynode.interrupts import puts_back
from pynode.transforms import active


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
    @puts_back
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        evaluation: Evaluation = ctx.evaluation
        return (None, *differentiated(evaluation, grad_outputs[0], ctx.saved_tensors, ctx.needs_input_grad[1:]))


def differentiated(
    evaluation: Evaluation, cotangents: Tensor, saved: Sequence[Tensor], needed: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of ``<values, cotangents>`` with respect to ``(t, times, y0, *inputs)``, the first three of which are
    ``saved``; differentiable themselves where a graph is being made."""
    t, times, y0 = saved
    time_gradient = any(needed[:2])
    single_cotangents = single(cotangents, evaluation.record)
    gradients, mesh = _gradients(evaluation, single_cotangents, t, times, time_gradient)
    if torch.is_grad_enabled():  # create_graph=True
        first = _First(evaluation, time_gradient, [g is not None for g in gradients], mesh)
        present = [g for g in gradients if g is not None]
        gradients = first.filled(_Gradient.apply(first, present, cotangents, t, times, y0, *evaluation.inputs))  # type: ignore[no-untyped-call]
    return [g if need else None for g, need in zip(gradients, needed, strict=True)]


def single(cotangents: Tensor, record: Record) -> Tensor:
    """``cotangents`` without their history, if they are not many at once."""
    try:
        if not active():
            return cotangents.detach()
    except RuntimeError as error:  # the older vmap inside torch.autograd.grad, which nothing else gives away
        if "atching rule" not in str(error):
            raise
    raise GradientError(
        explain(
            f"the backward pass of {record.request.sensealg.name} was vmapped (is_grads_batched=True, vectorize=True)",
            "one cotangent at a time",
            "drop that option, or use sensealg=DirectAdjoint()",
        )
    )


def _gradients(
    evaluation: Evaluation, cotangents: Tensor, t: Tensor, times: Tensor, time_gradient: bool
) -> tuple[list[Tensor | None], Tensor | None]:
    """Gradients of ``<values, cotangents>`` with respect to ``(t, times, y0, *inputs)``, and to the step boundaries."""
    backend, record = evaluation.backend, evaluation.record
    dependencies = record.request.dependencies
    assert dependencies is not None
    reached = [id(x) in dependencies.reached for x in dependencies.parameters]
    _check_unchanged(evaluation, [True] * len(dependencies.arguments) + reached)
    with torch.no_grad(), record.request.problem.autocast():
        found = _pulled_back(evaluation, cotangents, time_gradient)
        parameters = dependencies.owed_gradients(found.parameters)
        _check_unchanged(evaluation, [g is not None for g in (*found.arguments, *found.parameters)])
        check_finite([found.y0, found.mesh, found.times, *found.arguments, *parameters], record)
    t_gradient = times_gradient = None
    if found.mesh is not None:
        t_gradient = _Moving(backend, record, t).pulled_back(found.mesh)
    if found.times is not None:
        times_gradient = found.times.to(times)
    return [t_gradient, times_gradient, found.y0, *found.arguments, *parameters], found.mesh


class _Moving:
    """The step boundaries that depend on ``t``, as a function of it: ``M`` is its Jacobian."""

    def __init__(self, backend: Backend, record: Record, t: Tensor) -> None:
        with torch.enable_grad():
            self.t = t.detach().requires_grad_()
            self.mesh = backend.mesh(record, self.t)

    def pulled_back(self, gradient: Tensor) -> Tensor:
        """``M^T gradient``."""
        (found,) = torch.autograd.grad(self.mesh, self.t, self._full(gradient), retain_graph=True)
        return found

    def along(self, direction: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """``M direction``, and the gradient of ``<M direction, gradient>`` with respect to ``t``."""
        with torch.enable_grad():
            seed = self._full(gradient).requires_grad_()
            (pulled,) = torch.autograd.grad(self.mesh, self.t, seed, create_graph=True)
            product = torch.dot(pulled, direction)
            tangent, curvature = torch.autograd.grad(
                product, [seed, self.t], allow_unused=True, materialize_grads=True, retain_graph=True
            )
        return tangent[: len(gradient)], curvature

    def _full(self, gradient: Tensor) -> Tensor:
        seed = torch.zeros_like(self.mesh)
        seed[: len(gradient)] = gradient  # a solve that failed at once has no boundary but the first
        return seed


def check_finite(gradients: Sequence[Tensor | None], record: Record, what: str = "gradient") -> None:
    """Raise GradientError where one of ``gradients`` (of y0, step boundaries, save times, then of all others) holds an
    infinity or a NaN. Not under float16: there they tell torch.amp.GradScaler that its scale was too large."""
    autocast = record.request.problem.autocast
    if autocast.enabled and autocast.dtype is torch.float16:
        return
    dense = [g for g in gradients if g is not None and g.layout is torch.strided]
    # One number for all: squares may overflow, but only what is infinite or no number itself is an error.
    norms = torch._foreach_norm(dense)
    if bool(torch.stack([x.to(norms[0]) for x in norms]).isfinite().all()):
        return
    for index, gradient in enumerate(gradients):
        if gradient is not None and gradient.layout is torch.strided and not bool(torch.isfinite(gradient).all()):
            of = ("y0", "times", "times")[index] if index < 3 else f"a tensor of shape {tuple(gradient.shape)}"
            raise not_finite(f"the {what} with respect to {of} under {record.request.sensealg.name} is")


def _pulled_back(evaluation: Evaluation, cotangents: Tensor, time_gradient: bool) -> Gradients:
    query = Query(evaluation.times, evaluation.derivative, evaluation.own_times, time_gradient)
    try:
        return evaluation.backend.pull_back(evaluation.record, query, cotangents)
    except RuntimeError as error:
        said = written(error, "an evaluation of f for the gradient")
        if said is not None:
            raise GradientError(said) from error
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
            raise modified(x)


def modified(x: Tensor) -> GradientError:
    """The error of a backward pass that finds an input changed."""
    return GradientError(
        explain(
            f"a tensor of shape {tuple(x.shape)} that f depends on was modified in place between the solve and its "
            "backward pass",
            "parameters and args as they were in the solve",
            "call backward() before optimizer.step(), or clone what is changed",
        )
    )


class _First:
    """A gradient that may be differentiated again: where it came from, and which of its parts there are.

    ``mesh`` is its part of the step boundaries that depend on ``t``.
    """

    def __init__(self, evaluation: Evaluation, time_gradient: bool, has: list[bool], mesh: Tensor | None) -> None:
        self.evaluation, self.time_gradient, self.has, self.mesh = evaluation, time_gradient, has, mesh

    def filled(self, present: Iterable[Tensor | None]) -> list[Tensor | None]:
        """All parts, from those that there are."""
        remaining = iter(present)
        return [next(remaining) if has else None for has in self.has]

    def differentiated(
        self, saved: Sequence[Tensor], directions: Sequence[Tensor | None]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """``<gradient, directions>`` differentiated with respect to the cotangents and to ``(t, times, y0, *inputs)``;
        ``saved``: cotangents, t and times."""
        evaluation = self.evaluation
        backend, record = evaluation.backend, evaluation.record
        dependencies = record.request.dependencies
        assert dependencies is not None
        cotangents, t, times = saved
        _check_unchanged(evaluation, self.has[3:])
        along_t, along_times, along_y0, *along_inputs = self.filled(directions)
        count = len(dependencies.arguments)
        moving = along_mesh = curvature = None
        if self.mesh is not None:
            moving = _Moving(backend, record, t)
            if along_t is not None:
                along_mesh, curvature = moving.along(along_t, self.mesh)
        along = Gradients(
            y0=torch.zeros_like(cotangents[0]) if along_y0 is None else along_y0,
            mesh=along_mesh,
            times=None if along_times is None else along_times.detach().to("cpu", torch.float64),
            arguments=along_inputs[:count],
            parameters=along_inputs[count:],
        )
        query = Query(evaluation.times, evaluation.derivative, evaluation.own_times, self.time_gradient)
        with torch.no_grad(), record.request.problem.autocast():
            found = backend.pull_back_tangent(record, query, cotangents.detach(), along)
        if found is None:
            raise GradientError(
                explain(
                    f"a gradient computed by {record.request.sensealg.name} was differentiated again",
                    "one differentiation",
                    "use sensealg=CheckpointedAdjoint() with a Runge-Kutta algorithm, or sensealg=DirectAdjoint()",
                )
            )
        second, tangents = found
        assert second.y0 is not None
        check_finite([second.y0], record, "second derivative")
        t_part = None
        if moving is not None and second.mesh is not None:
            t_part = moving.pulled_back(second.mesh)
            t_part = t_part if curvature is None else t_part + curvature
        times_part = None if second.times is None else second.times.to(times)
        parts = [t_part, times_part, second.y0, *second.arguments, *second.parameters]
        return tangents, [part if has else None for part, has in zip(parts, self.has, strict=True)]


class _Gradient(torch.autograd.Function):
    """A gradient, as a function of the cotangents and of what the solve depends on."""

    @staticmethod
    def forward(ctx: Any, first: _First, present: list[Tensor], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.first = first
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors[:4])
        return tuple(g.clone() for g in present)

    @staticmethod
    @puts_back
    def backward(ctx: Any, *directions: Tensor | None) -> tuple[Tensor | None, ...]:
        first: _First = ctx.first
        cotangents, t, times, y0 = ctx.saved_tensors
        inputs = (cotangents, t, times, y0, *first.evaluation.inputs)
        parts: tuple[Tensor | None, ...] = _Second.apply(first, inputs[:3], *directions)  # type: ignore[no-untyped-call]
        return (None, None, *_final(parts, inputs, first.evaluation.record))


class _Second(torch.autograd.Function):
    """The derivatives of ``<gradient, directions>``: linear in the directions, and differentiable in them alone.

    torch.autograd.functional.hvp asks for that: it differentiates a vector-Hessian product by its vector.
    """

    @staticmethod
    def forward(ctx: Any, first: _First, saved: Sequence[Tensor], *directions: Tensor | None) -> tuple[Any, ...]:
        ctx.first, ctx.saved = first, saved
        ctx.set_materialize_grads(False)
        tangents, parts = first.differentiated(saved, directions)
        return (tangents, *parts)

    @staticmethod
    @puts_back
    def backward(ctx: Any, along_cotangents: Tensor | None, *along: Tensor | None) -> tuple[Tensor | None, ...]:
        first: _First = ctx.first
        cotangents, t, times = ctx.saved
        evaluation = first.evaluation
        # The second derivative is symmetric, and linear in the cotangents.
        directions = [g for g, has in zip(along, first.has, strict=True) if has]
        _, parts = first.differentiated(ctx.saved, [None if g is None else g.detach() for g in directions])
        if along_cotangents is not None:
            gradients, _ = _gradients(evaluation, along_cotangents.detach(), t, times, first.time_gradient)
            parts = [_added(part, g) for part, g in zip(parts, gradients, strict=True)]
        present = [part for part, has in zip(parts, first.has, strict=True) if has]
        present = [part if need else None for part, need in zip(present, ctx.needs_input_grad[2:], strict=True)]
        needed = [x for x in (cotangents, t, times, along_cotangents, *along, *evaluation.inputs) if x is not None]
        return (None, None, *_final(present, needed, evaluation.record))


def _added(x: Tensor | None, y: Tensor | None) -> Tensor | None:
    return x if y is None else y if x is None else x + y


class _Refused(torch.autograd.Function):
    """Zero, as a function of tensors by which it refuses to be differentiated."""

    @staticmethod
    def forward(ctx: Any, name: str, *tensors: Tensor) -> Tensor:
        ctx.name = name
        return torch.zeros((), dtype=torch.float32)

    @staticmethod
    @puts_back
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        raise GradientError(
            explain(
                f"a second derivative computed by {ctx.name} was differentiated again",
                "two differentiations",
                "use sensealg=DirectAdjoint() for third derivatives",
            )
        )


def _final(parts: Iterable[Tensor | None], inputs: Sequence[Tensor], record: Record) -> list[Tensor | None]:
    """``parts``, refusing to be differentiated by ``inputs``."""
    if not torch.is_grad_enabled():
        return list(parts)
    zero = _Refused.apply(record.request.sensealg.name, *inputs)  # type: ignore[no-untyped-call]
    return [None if part is None else part + zero.to(part) for part in parts]
