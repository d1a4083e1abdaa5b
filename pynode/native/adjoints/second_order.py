"""Second derivatives of the accepted steps: the tangent of the pullback, forward over reverse, one step at a time.

The pullback computes ``G(x, c) = J(x)^T c``, where the solve depends on ``x`` and ``c`` are cotangents of what was
looked at. Given directions ``w`` in the space of ``x``, ``<G, w>`` has the gradient ``d/de J(x + e w)^T c`` with
respect to ``x`` and ``J w`` with respect to ``c``: a forward sweep carries the tangents of the states along ``w``, a
reverse sweep the adjoint together with its own tangent. Tangents are vector-Jacobian products of vector-Jacobian
products, so that nothing has to be swapped for dual numbers and closures work. Step sizes are frozen, as in the
pullback.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pynode.backends import Gradients, Query
from pynode.errors import GradientError, explain
from pynode.native.adjoints.accumulator import Accumulator
from pynode.sensealg import CheckpointedAdjoint

if TYPE_CHECKING:
    from pynode.native.record import NativeRecord


def pull_back_tangent(
    record: NativeRecord, query: Query, cotangents: Tensor, directions: Gradients
) -> tuple[Gradients, Tensor]:
    """Derivatives of ``<pull_back(record, query, cotangents), directions>``.

    Parameters
    ----------
    record : NativeRecord
    query : Query
    cotangents : Tensor (m, n)
    directions : Gradients
        A direction for each gradient of the pullback; None is zero.

    Returns
    -------
    Gradients
        With respect to what the solve depends on.
    Tensor (m, n)
        With respect to the cotangents: the tangents of what was looked at.
    """
    return _Sweeps(record, query, cotangents, directions).derivatives()


class _Step:
    """One step as a function of ``variables``: state, [start, end, points,] arguments and parameters."""

    def __init__(self, y1: Tensor, rows: Tensor | None, inner: list[int], plain: list[int], own: list[Tensor]) -> None:
        self.y1, self.rows = y1, rows
        self.inner, self.plain = inner, plain
        self.own = own


class _Sweeps:
    def __init__(self, record: NativeRecord, query: Query, cotangents: Tensor, directions: Gradients) -> None:
        request = record.request
        dependencies = request.dependencies
        assert dependencies is not None
        self.record, self.query = record, query
        self.cotangents, self.directions = cotangents, directions
        self.trajectory = record.trajectory
        self.counts = request.stats.backward
        field = request.problem.field(self.counts)
        self.arguments = [x.detach().requires_grad_() for x in dependencies.arguments]
        self.inputs = [*self.arguments, *dependencies.parameters]
        self.replay = record.stepper(field)
        # Compiled steps cannot be differentiated twice: the eager ones agree with them to rounding.
        self.taped = record.taped_stepper(
            field.with_args(request.problem.arguments.replaced(self.arguments)), compiled=False
        )
        self.initial: list[int] = []
        self.at_step: dict[int, list[int]] = {}
        for index, t in enumerate(query.times):
            if t == self.trajectory.mesh[0] and record.is_boundary(query, 0):
                self.initial.append(index)
            else:
                self.at_step.setdefault(self.trajectory.step_at(t), []).append(index)
        self.last = max(self.at_step, default=-1)
        self.along_mesh = None if directions.mesh is None else record.along_boundaries(directions.mesh)
        #: Tangents of what was looked at, and the first step whose are not known yet.
        self.tangents = torch.zeros_like(cotangents)
        self.unseen = 0

    def derivatives(self) -> tuple[Gradients, Tensor]:
        query, trajectory = self.query, self.trajectory
        start = self.directions.y0
        for i in self.initial:
            self.tangents[i] = start
        sums = Accumulator(len(self.inputs))
        mesh = torch.zeros(len(trajectory.mesh), dtype=torch.float64) if query.time_gradient else None
        times = torch.zeros(len(query.times), dtype=torch.float64) if query.time_gradient else None
        wanted = self.cotangents.any(dim=1).tolist()
        adjoint: Tensor | None = None
        tangent = torch.zeros_like(start)  # of the adjoint
        for n, state, along in self._backward(0, self.last, start, self._slots()):
            step = self._step(n, state)
            for i in step.plain:
                adjoint = self.cotangents[i] if adjoint is None else adjoint + self.cotangents[i]
            outputs, seeds = ([step.y1], [adjoint]) if adjoint is not None else ([], [])
            if step.rows is not None and any(wanted[i] for i in step.inner):
                outputs.append(step.rows)
                seeds.append(self.cotangents[step.inner])
            if not outputs:
                continue
            variables = [*step.own, *self.inputs]
            with torch.enable_grad():
                gradients = torch.autograd.grad(outputs, variables, seeds, create_graph=True, allow_unused=True)
                pairs = [*zip(gradients, self._along(n, along, step), strict=True), (step.y1, tangent)]
                changes = _gradient(_product(pairs), variables)
            self.counts.nvjp += 2 * self.evaluations
            assert gradients[0] is not None
            adjoint = gradients[0].detach()
            tangent = torch.zeros_like(start) if changes[0] is None else changes[0]
            if mesh is not None and times is not None:
                places: tuple[Any, ...] = (n, n + 1, step.inner)
                for total, index, change in zip((mesh, mesh, times), places, changes[1:4], strict=True):
                    if change is not None:
                        total[index] += change
            sums.add(changes[len(step.own) :])
        sums.add([torch.zeros_like(x) for x in self.inputs])  # what the gradient depends on linearly, if at all
        return (
            Gradients(
                y0=tangent,
                mesh=None if mesh is None else self.record.free_boundaries(mesh),
                times=times,
                arguments=sums.sums[: len(self.arguments)],
                parameters=sums.sums[len(self.arguments) :],
            ),
            self.tangents,
        )

    def _slots(self) -> int:
        """How many states may be kept together with their tangents."""
        sensealg = self.record.request.sensealg
        count = max(self.trajectory.steps, 1)
        if not self.trajectory.bounded or not isinstance(sensealg, CheckpointedAdjoint):
            return count
        if sensealg.max_memory is not None:
            return max(1, sensealg.max_memory // (self.cotangents[0].numel() * self.cotangents.element_size()))
        return sensealg.checkpoints or count

    def _backward(self, first: int, last: int, along: Tensor, slots: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """``(n, state, its tangent)`` from step ``last`` down to ``first``, from the tangent at ``first``, with at most
        ``slots`` of them in memory: by the binomial schedule of Griewank and Walther (2000)."""
        if last < first:
            return
        if last - first < slots:
            kept = list(self._ahead(first, last, along))
            while kept:
                yield kept.pop()
            return
        split = first + _split(last - first + 1, slots)
        middle = along
        for n, _, at in self._ahead(first, split, along):
            if n == split:
                middle = at
        yield from self._backward(split, last, middle, max(slots - 1, 1))
        yield from self._backward(first, split - 1, along, slots)

    def _ahead(self, first: int, last: int, along: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """``(n, state, its tangent)`` from step ``first`` to ``last``; records the tangents of what lies in steps seen
        for the first time."""
        for n, state, _ in self.trajectory.states(range(first, last + 1), self.replay):
            yield n, state, along
            if n == last and (n < self.unseen or n < self.last):
                return  # the next sweep starts here, or has been
            along = self._advanced(n, state, along)

    def _advanced(self, n: int, state: Tensor, along: Tensor) -> Tensor:
        """Tangent at the end of step ``n``."""
        step = self._step(n, state)
        outputs = [step.y1] if step.rows is None else [step.y1, step.rows]
        variables = [*step.own, *self.inputs]
        with torch.enable_grad():
            # Any seeds would do; with these a pullback that autograd does not see through shows.
            seeds = [_generic(x).requires_grad_() for x in outputs]
            gradients = torch.autograd.grad(outputs, variables, seeds, create_graph=True, allow_unused=True)
            product = _product(zip(gradients, self._along(n, along, step), strict=True))
            found = _gradient(product, seeds)
        self.counts.nvjp += 2 * self.evaluations
        tangents = [torch.zeros_like(x) if g is None else g for x, g in zip(outputs, found, strict=True)]
        if product is not None:
            _check_linear(product.detach(), seeds, tangents)
        if n >= self.unseen:
            self.unseen = n + 1
            for i in step.plain:
                self.tangents[i] = tangents[0]
            if step.rows is not None:
                self.tangents[step.inner] = tangents[1]
        return tangents[0]

    def _step(self, n: int, state: Tensor) -> _Step:
        query, trajectory, taped = self.query, self.trajectory, self.taped
        here = self.at_step.get(n, [])
        t, t1 = trajectory.mesh[n], trajectory.mesh[n + 1]
        plain = [i for i in here if query.times[i] == t1 and self.record.is_boundary(query, n + 1)]
        inner = [i for i in here if i not in plain]
        before = self.counts.nfe
        with torch.enable_grad():
            y = state.detach().requires_grad_()
            own = [y]
            start: Any = t
            end: Any = t1
            points: Any = [query.times[i] for i in inner]
            if query.time_gradient:
                start, end, points = (torch.tensor(x, dtype=torch.float64).requires_grad_() for x in (t, t1, points))
                own += [start, end, points]
            h = end - start
            taped.begin(start, y, jump=trajectory.jump_after(n))
            y1 = taped.attempt(start, h, y, trajectory.jump_before(n), end)
            rows = taped.interpolate([(x - start) / h for x in points], query.derivative) if inner else None
        self.evaluations = self.counts.nfe - before
        self.counts.accepted += 1
        return _Step(y1, rows, inner, plain, own)

    def _along(self, n: int, along: Tensor, step: _Step) -> list[Tensor | None]:
        """The direction of each variable of step ``n``."""
        directions = self.directions
        own: list[Tensor | None] = [along]
        if self.query.time_gradient:
            mesh, times = self.along_mesh, directions.times
            own += [None, None] if mesh is None else [mesh[n], mesh[n + 1]]
            own.append(None if times is None else times[step.inner])
        return [*own, *directions.arguments, *directions.parameters]


def _split(count: int, slots: int) -> int:
    """Where to place the next checkpoint before ``count`` steps: the first part is as long as it may be without more
    sweeps over any step than are needed for the whole."""
    sweeps = 1
    while math.comb(slots + sweeps, slots) < count:
        sweeps += 1
    return min(max(count - math.comb(slots - 1 + sweeps, slots - 1), 1), count - 1)


def _product(pairs: Iterable[tuple[Tensor | None, Tensor | None]]) -> Tensor | None:
    """Sum of the real inner products of those pairs that are there."""
    total: Tensor | None = None
    for x, direction in pairs:
        if x is None or direction is None:
            continue
        if x.is_complex():
            x, direction = torch.view_as_real(x.resolve_conj()), torch.view_as_real(direction.resolve_conj())
        term = (x * direction).sum()
        total = term if total is None else total + term
    return total


def _gradient(of: Tensor | None, variables: list[Tensor]) -> list[Tensor | None]:
    if of is None or not of.requires_grad:
        return [None] * len(variables)
    try:
        return list(torch.autograd.grad(of, variables, allow_unused=True))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise _not_twice(str(error).splitlines()[0].rstrip(".")) from error


def _generic(like: Tensor) -> Tensor:
    """Numbers in which no structure of ``f`` cancels."""
    return torch.cos(torch.arange(1, like.numel() + 1, dtype=like.dtype, device=like.device)).reshape(like.shape)


def _check_linear(product: Tensor, seeds: list[Tensor], tangents: list[Tensor]) -> None:
    """Raise GradientError unless ``product`` is ``<seeds, tangents>``, as a pullback is linear in its seeds: where a
    backward pass is opaque to autograd (once_differentiable, numpy), tangents lack a part without any other sign."""
    terms = torch.cat([(s.detach() * x).reshape(-1) for s, x in zip(seeds, tangents, strict=True)])
    distance = (product - terms.sum()).abs().item()
    if distance > math.sqrt(torch.finfo(terms.dtype).eps) * max(abs(product.item()), terms.abs().sum().item()):
        raise _not_twice("autograd does not see how one of its gradients depends on what was pulled back")


def _not_twice(why: str) -> GradientError:
    return GradientError(
        explain(
            f"f cannot be differentiated twice ({why})",
            "torch operations with second derivatives in f",
            "replace the operation (a custom autograd.Function needs a differentiable backward), or take finite "
            "differences of gradients",
        )
    )
