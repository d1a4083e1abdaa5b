"""The discrete adjoint of the accepted steps: each step is replayed from its stored state and pulled back alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pynode.backends import Gradients, Query
from pynode.errors import GradientError, explain
from pynode.native.adjoints.accumulator import Accumulator
from pynode.native.checkpoints import State
from pynode.native.stepper import check_solved
from pynode.problem import Field

if TYPE_CHECKING:
    from pynode.native.record import NativeRecord

#: ``(n, state, carried)`` at the start of step n, from a step down to the first.
Source = Callable[["NativeRecord", Field, int], Iterator[tuple[int, Tensor, State]]]


def stored(record: NativeRecord, field: Field, start: int) -> Iterator[tuple[int, Tensor, State]]:
    """The states as the trajectory kept them; what it dropped is recomputed with ``field``."""
    trajectory = record.trajectory
    replay = record.stepper(field) if trajectory.bounded else None  # it holds a stage buffer
    return trajectory.backward(replay, start)


def pull_back(record: NativeRecord, query: Query, cotangents: Tensor, source: Source = stored) -> Gradients:
    """Gradients of ``sum_i <cotangents_i, y(times_i)>``, exact for the steps that were taken.

    Parameters
    ----------
    record : NativeRecord
    query : Query
        Times within the span, in any order; states or their time derivatives.
    cotangents : Tensor (m, n)
    source : Source
        Where the states come from.
    """
    times = query.times
    request, trajectory = record.request, record.trajectory
    problem, dependencies = request.problem, request.dependencies
    assert dependencies is not None
    counts = request.stats.backward
    field = problem.field(counts)
    arguments = [x.detach().requires_grad_() for x in dependencies.arguments]
    taped = record.taped_stepper(field.with_args(problem.arguments.replaced(arguments)))
    inputs = [*arguments, *dependencies.parameters]
    sums = Accumulator(len(inputs))

    # Save times without a cotangent (a loss on some of the states) cost nothing.
    wanted = cotangents.any(dim=1).tolist()
    at_step: dict[int, list[int]] = {}
    # Of the state at the end of the step at hand, then of what is carried there; empty or None: none yet.
    adjoints: list[Tensor | None] = []
    initial: list[int] = []
    for index, t in enumerate(times):
        if not wanted[index]:
            continue
        if t == trajectory.mesh[0] and record.is_boundary(query, 0):
            initial.append(index)
        else:
            at_step.setdefault(trajectory.step_at(t), []).append(index)

    time_gradients = query.time_gradient
    mesh_gradient = torch.zeros(len(trajectory.mesh), dtype=torch.float64) if time_gradients else None
    times_gradient = torch.zeros(len(times), dtype=torch.float64) if time_gradients else None

    # The state that the first repeated step has to end in, where it is known.
    known: Tensor | None = None
    if record.saved and record.saved[-1] == trajectory.mesh[-1] and trajectory.steps - 1 in at_step:
        known = record.values[-1] if record.values._version == 0 else None  # None where the user wrote into ys
    if record.last is not None and trajectory.steps - 1 in at_step:
        known = record.last
    repeatable, first = False, True
    # Not compared: quantities of the steps may be quotients of what rounding alone has left.
    compared = slice(0, problem.layout.size - len(problem.quantities))
    # A compiled stepper has a step and its pullback in one graph, without autograd.
    graph: Any = taped if hasattr(taped, "pull") else None
    start: Any
    end: Any
    for n, state, carried in source(record, field, max(at_step, default=-1)):
        here = at_step.get(n, [])
        t, t1 = trajectory.mesh[n], trajectory.mesh[n + 1]
        plain = [i for i in here if times[i] == t1 and record.is_boundary(query, n + 1)]
        inner = [i for i in here if i not in plain]
        for i in plain:
            adjoints[:1] = [_added(adjoints, cotangents[i])]
        jumps = trajectory.jump_after(n) or trajectory.jump_before(n)
        # Where the stepper begins anew, what it carries is a function of the state.
        whole = (state,) if trajectory.begins(n) else (state, *carried)
        if graph is not None and not (time_gradients or inner or jumps) and adjoints:
            pulled = graph.pull(t, t1, whole, adjoints, inputs)
            if pulled is not None:
                y1, adjoints, gradients = pulled
                if known is not None:
                    _check_repeated(y1[compared], known[compared], state[compared], t)
                    repeatable = True
                known = None if repeatable else state
                counts.accepted += 1
                sums.add(gradients)
                continue
        before = counts.nfe
        with torch.enable_grad():
            starts = [x.detach().requires_grad_() for x in whole]
            y = starts[0]
            if time_gradients:
                start, end, points = (
                    torch.tensor(x, dtype=torch.float64).requires_grad_() for x in (t, t1, [times[i] for i in inner])
                )
                own = [*starts, start, end, points]
                h = end - start
                thetas = [(x - start) / h for x in points]
            else:
                start, end, h, own = t, t1, t1 - t, starts
                thetas = [(times[i] - t) / h for i in inner]
            trajectory.enter(taped, n, start, y, tuple(starts[1:]))
            y1 = taped.attempt(start, h, y, trajectory.jump_before(n), end)
            check_solved(taped, t, y1)
            ends = (y1, *taped.carried(end=True))
            # A field that depends on nothing here leaves nothing to pull back through.
            pairs = [(x, a) for x, a in zip(ends, adjoints, strict=False) if a is not None and x.requires_grad]
            outputs, seeds = [x for x, _ in pairs], [a for _, a in pairs]
            if inner:
                outputs.append(taped.interpolate(thetas, query.derivative))
                seeds.append(cotangents[inner])
        if known is not None:
            _check_repeated(y1.detach()[compared], known[compared], state[compared], t, getattr(taped, "repeats", 0.0))
            repeatable = True
        known = None if repeatable else state  # held on to no longer than the check needs it
        # The whole graph of the first step is looked through, later the first evaluation of each: a parameter that
        # is switched on in between is seen there, and a longer walk in Python would cost several per cent.
        witness: Any = getattr(taped, "witness", None)
        shown = ends[-1] if len(starts) > 1 and ends[-1].requires_grad else None
        one = witness() if witness else taped.derivative() if shown is None else shown
        made = getattr(taped, "leaves", ())
        dependencies.check_reached(outputs if first else [one], [*own, *arguments, *made])
        gradients = torch.autograd.grad(outputs, [*own, *inputs], seeds, allow_unused=True)
        if first and graph is not None:
            graph.looked(gradients[len(own) :])
        first = False
        counts.nvjp += counts.nfe - before - getattr(taped, "untaped", 0)
        counts.accepted += 1
        adjoints = list(gradients[: len(starts)])
        if mesh_gradient is not None and times_gradient is not None:
            places: tuple[Any, ...] = (n, n + 1, inner)
            totals = (mesh_gradient, mesh_gradient, times_gradient)
            for total, index, gradient in zip(totals, places, gradients[len(starts) : len(own)], strict=True):
                if gradient is not None:
                    total[index] += gradient
        sums.add(gradients[len(own) :])

    for i in initial:
        adjoints[:1] = [_added(adjoints, cotangents[i])]
    adjoint = adjoints[0] if adjoints else None
    if adjoint is None:
        adjoint = torch.zeros_like(cotangents[0])
    if not at_step:
        # No state after the initial one has a cotangent: the gradient of what f depends on is zero.
        sums.sums = [*map(torch.zeros_like, arguments), *dependencies.zeros()]
    return Gradients(
        y0=adjoint,
        mesh=None if mesh_gradient is None else record.free_boundaries(mesh_gradient),
        times=times_gradient,
        arguments=sums.sums[: len(arguments)],
        parameters=sums.sums[len(arguments) :],
    )


def _added(adjoints: list[Tensor | None], cotangent: Tensor) -> Tensor:
    """The adjoint of the state with a cotangent of it."""
    adjoint = adjoints[0] if adjoints else None
    return cotangent if adjoint is None else adjoint + cotangent


def _check_repeated(found: Tensor, end: Tensor, start: Tensor, t: float, repeats: float = 0.0) -> None:
    """Raise GradientError unless a repeated step ended where it had ended in the forward solve, up to rounding, or to
    ``repeats`` where that is more: how far from its solution an implicit step may end."""
    size = max(end.abs().max().item(), start.abs().max().item())
    distance = (found - end).abs().max().item()
    if not distance <= max(math.sqrt(torch.finfo(end.dtype).eps) * size, repeats):
        raise GradientError(
            explain(
                f"the step from t = {t:.6g}, repeated for the gradient, ended {distance:.3g} from where it had ended "
                "in the forward solve: f gave other values than before",
                "the same f in the backward pass as in the solve",
                "take randomness out of f (.eval() for dropout, noise passed through args=), change neither f nor what "
                "it uses before the backward pass, or use DirectAdjoint()",
            )
        )
