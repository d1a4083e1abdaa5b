"""What the continuous adjoints share: the adjoint equation, and the sweep backward over the times of a loss.

With ``a = dL/dy`` between two such times: ``da/dt = -a df/dy``, ``dL/dp = -int a df/dp dt`` taken backward; at each of
them ``a`` gains the loss's own derivative (Chen et al. 2018).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from pynode.backends import Gradients, Query
from pynode.errors import GradientError, SolveError, explain
from pynode.native.adjoints.accumulator import Accumulator
from pynode.native.dense import Dense
from pynode.native.error_norm import ErrorNorm
from pynode.native.loop import Outcome, Recorder, Stepping, integrate_adaptive, integrate_fixed
from pynode.problem import Field
from pynode.sensealg import ContinuousAdjoint
from pynode.solution import Counts, failure_message

if TYPE_CHECKING:
    from pynode.native.backend import NativeRecord

#: ``norm(rtol, atol)``: the error norm of a backward solve for the adjoint's tolerances.
Norm = Callable[[Any, Any], ErrorNorm]


#: Most numbers of the states at several times that ``f`` is evaluated at in one call; beyond it calls cost little.
_BATCHED = 2**20


class Products:
    """Vector-Jacobian products of the field with respect to the state and to all it depends on.

    Attributes
    ----------
    aliases : list of Tensor
        Stand-ins for the differentiable tensors of ``args``.
    inputs : list of Tensor
        ``aliases`` and parameters.
    reached : list of bool
        Which of ``inputs`` some product so far depended on.
    """

    def __init__(self, record: NativeRecord) -> None:
        request = record.request
        assert request.dependencies is not None
        self.dependencies = request.dependencies
        self.aliases = [x.detach().requires_grad_() for x in self.dependencies.arguments]
        self.plain = request.problem.field(request.stats.backward)
        self.field = self.plain.with_args(request.problem.arguments.replaced(self.aliases))
        self.inputs = [*self.aliases, *self.dependencies.parameters]
        self.sizes = [x.numel() * (2 if x.is_complex() else 1) for x in self.inputs]
        self.n = self.field.layout.size
        self.reached = [False] * len(self.inputs)
        self._looked = False
        self._batches = True

    def state(self, t: Tensor, y: Tensor, a: Tensor) -> Tensor:
        """``a df/dy`` (n,)."""
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            dy = self.field(t, y)
        if not self._looked:
            self.look(dy, y)
        if not dy.requires_grad:
            return torch.zeros_like(a)
        (gradient,) = torch.autograd.grad(dy, [y], a, allow_unused=True)
        self.field.counts.nvjp += 1
        return torch.zeros_like(a) if gradient is None else gradient

    def along(self, times: list[float], ys: Tensor, weighted: Sequence[Tensor]) -> list[tuple[Tensor | None, ...]]:
        """``sum_j a_j df/dp(t_j, y_j)`` for every tensor of ``inputs``, once for each (m, n) tensor ``a`` of
        ``weighted``; None where ``f`` does not depend on it at these times. ``ys`` is (m, n)."""
        if not self.inputs:
            return [()] * len(weighted)
        if self._batches and ys.numel() <= _BATCHED:
            try:
                return self._along(*self._evaluated_together(times, ys), weighted)
            except Exception:
                # torch.vmap refuses what depends on values, draws random numbers or writes into buffers. Such an f is
                # evaluated at one time after the other, which raises again whatever f itself raised.
                self._batches = False
        sums = [Accumulator(len(self.inputs)) for _ in weighted]
        for j, (t, y) in enumerate(zip(times, ys.unbind(), strict=True)):
            with torch.enable_grad():
                # A state that asks for a gradient, as f may do something else with one that does not.
                y = y.detach().requires_grad_()
                dy = self.field(self.field.time(t), y)
            self.look(dy, y)
            for total, found in zip(sums, self._along(dy, 1, [a[j] for a in weighted]), strict=True):
                total.add(found)
        return [tuple(total.sums) for total in sums]

    def _evaluated_together(self, times: list[float], ys: Tensor) -> tuple[Tensor, int]:
        """``f`` (m, n) at all times in one call."""
        field, layout = self.field, self.field.layout
        with torch.enable_grad():
            stacked = torch.tensor(times, dtype=layout.dtype, device=layout.device)
            before = field.counts.nfe
            ys = ys.detach().requires_grad_()
            dy: Tensor = torch.vmap(field)(stacked, ys)
        field.counts.nfe = before + len(times)
        self.look(dy, ys)
        return dy, len(times)

    def _along(self, dy: Tensor, count: int, weighted: Sequence[Tensor]) -> list[tuple[Tensor | None, ...]]:
        if not dy.requires_grad:
            return [(None,) * len(self.inputs) for _ in weighted]
        found: list[tuple[Tensor | None, ...]] = []
        for k, a in enumerate(weighted):
            more = k + 1 < len(weighted)
            found.append(torch.autograd.grad(dy, self.inputs, a, allow_unused=True, retain_graph=more))
            self.field.counts.nvjp += count
        return found

    def joint(self, t: Tensor, y: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """``f`` (n,) and ``[a df/dy, a df/dp...]`` in one flat vector."""
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            dy = self.field(t, y)
        self.look(dy, y)
        if not dy.requires_grad:  # f depends on none of its inputs here
            return dy, a.new_zeros(self.n + sum(self.sizes))
        gradients = torch.autograd.grad(dy, [y, *self.inputs], a, allow_unused=True)
        self.field.counts.nvjp += 1
        parts = [_flat(gradients[0], self.n, a)]
        for index, (gradient, size) in enumerate(zip(gradients[1:], self.sizes, strict=True)):
            self.reached[index] |= gradient is not None
            # Parameters may be of another precision than the state; the quadrature is done in the state's.
            parts.append(_flat(gradient, size, a))
        return dy.detach(), torch.cat(parts)

    def look(self, dy: Tensor, y: Tensor) -> None:
        """Raise GradientError if ``f`` reached a parameter that it is not known to depend on."""
        self._looked = True
        self.dependencies.check_reached([dy], [y, *self.aliases])

    def shaped(self, flat: Tensor) -> list[Tensor | None]:
        """Gradients of ``inputs`` from a flat vector of them, None where none was ever reached."""
        gradients: list[Tensor | None] = []
        parts = torch.split(flat, self.sizes) if self.sizes else ()
        for part, like, reached in zip(parts, self.inputs, self.reached, strict=True):
            if not reached:
                gradients.append(None)
            elif like.is_complex():
                gradients.append(torch.view_as_complex(part.reshape(*like.shape, 2)).to(like.dtype))
            else:
                gradients.append(part.reshape(like.shape).to(like.dtype))
        return gradients


def _flat(gradient: Tensor | None, size: int, like: Tensor) -> Tensor:
    if gradient is None:
        return like.new_zeros(size)
    real = torch.view_as_real(gradient.resolve_conj()) if gradient.is_complex() else gradient
    return real.reshape(-1).to(like.dtype)


class Backward(Field):
    """A field on a flat real vector of another size than the state's, for a solve backward in time."""

    def __init__(self, rate: Callable[[Tensor, Tensor], Tensor], size: int, field: Field) -> None:
        self.f = rate
        self.args = ()
        self.layout = _FlatLayout(size, field)  # type: ignore[assignment]
        self.counts = Counts()  # the stepper's; evaluations are counted by the field inside
        self._inner = field

    def __call__(self, t: Tensor, flat: Tensor) -> Tensor:
        rate: Tensor = self.f(t, flat)
        return rate

    def time(self, t: float | Tensor) -> Tensor:
        return self._inner.time(t)


class _FlatLayout:
    """What is integrated backward is a flat real vector already."""

    def __init__(self, size: int, field: Field) -> None:
        self.size, self.dtype, self.device = size, field.layout.dtype, field.layout.device

    def writer(self) -> Any:
        return lambda derivative, row: row.copy_(derivative)

    def row_views(self, buffer: Tensor) -> tuple[Tensor, ...]:
        return buffer.unbind()

    def unpack(self, flat: Tensor) -> Tensor:
        return flat


def against(products: Products, forward: Dense) -> Callable[[Tensor, Tensor], Tensor]:
    """The adjoint's rate ``-a df/dy`` against a dense forward solution.

    A function of its own, as a method of what owns the stepper would close a circle that keeps states alive.
    """

    def rate(t: Tensor, a: Tensor) -> Tensor:
        return products.state(t, forward.at(t.item(), products.plain), a).neg_()

    return rate


class Integral(Protocol):
    """What a method integrates backward, between the times at which the loss looks at the solution."""

    def begin(self, t: float, y: Tensor) -> None:
        """Start at time ``t``, where the solution is ``y``, with a zero adjoint."""

    def run(self, t: float, t1: float) -> None:
        """Integrate from ``t`` back to ``t1``."""

    def reach(self, t: float, y: Tensor, later: float) -> None:
        """Time ``t`` was reached from ``later``; the solution there is ``y``."""

    def adjoint(self) -> Tensor:
        """The adjoint (n,) here, to be written into."""
        ...

    def gradients(self) -> list[Tensor | None]:
        """Gradients of all inputs, None where there is no dependence."""
        ...


def sweep(
    record: NativeRecord, query: Query, cotangents: Tensor, products: Products, integral: Integral, every: bool
) -> Gradients:
    """Gradients of ``sum_i <cotangents_i, y(times_i)>``; arguments as for the checkpointed adjoint.

    ``every``: stop at every time of the query, not only at those with a cotangent.
    """
    request, times = record.request, query.times
    name, t0 = request.sensealg.name, record.trajectory.mesh[0]
    if query.derivative:
        raise GradientError(
            explain(
                f"sol.derivative(t) was differentiated under {name}",
                "a sensitivity algorithm that differentiates the dense output",
                "use CheckpointedAdjoint, DirectAdjoint, or f(t, sol(t)) itself",
            )
        )
    order = sorted(range(len(times)), key=lambda i: times[i], reverse=record.trajectory.direction > 0)
    # Nothing happens after the last time that has a cotangent.
    wanted = cotangents.any(dim=1).tolist()
    order = order[next((k for k, i in enumerate(order) if wanted[i]), len(order)) :]
    if not every:
        order = [i for i in order if wanted[i]]
    anchors = record.anchors(times)
    if anchors._version:
        raise GradientError(
            explain(
                f"ys was changed in place after the solve, and {name} needs its values",
                "ys as the solve returned it",
                "work on ys.clone(), or use CheckpointedAdjoint",
            )
        )
    y0 = request.problem.y0.detach()
    field = products.plain
    times_gradient = torch.zeros(len(times), dtype=torch.float64) if query.time_gradient else None
    here = times[order[0]] if order else t0
    integral.begin(here, anchors[order[0]] if order else y0)
    moved = here != t0
    for index in order:
        if times[index] != here:
            integral.run(here, times[index])
            integral.reach(times[index], anchors[index], here)
            here = times[index]
        # At t0 the state is y0 itself, whatever t0 is.
        if times_gradient is not None and (query.own_times or times[index] != t0):
            with torch.no_grad():
                slope = field(field.time(times[index]), anchors[index])
            times_gradient[index] = torch.dot(cotangents[index], slope).item()
        if times[index] == t0 and here == t0:
            continue
        integral.adjoint().add_(cotangents[index])
    if here != t0:
        integral.run(here, t0)
        integral.reach(t0, y0, here)
    adjoint = integral.adjoint().clone()
    mesh_gradient = None
    if query.time_gradient:
        with torch.no_grad():
            slope = field(field.time(t0), y0)
        mesh_gradient = torch.zeros(len(record.trajectory.mesh), dtype=torch.float64)
        mesh_gradient[0] = -torch.dot(adjoint, slope).item()
        mesh_gradient = record.free_boundaries(mesh_gradient)
    for index in order:
        if times[index] == t0:
            adjoint += cotangents[index]
    count = len(products.aliases)
    if moved:
        gradients = integral.gradients()
    else:  # no state after the initial one has a cotangent
        gradients = [*map(torch.zeros_like, products.aliases), *products.dependencies.zeros()]
    return Gradients(adjoint, mesh_gradient, times_gradient, gradients[:count], gradients[count:])


class Solver:
    """Integrates backward by the sensitivity algorithm's options, stretch after stretch.

    Parameters
    ----------
    record : NativeRecord
    field : Backward
    norm : callable
        ``norm(rtol, atol)``: the error norm for the adjoint's tolerances.
    """

    def __init__(self, record: NativeRecord, field: Backward, norm: Norm) -> None:
        own = record.request.sensealg
        assert isinstance(own, ContinuousAdjoint)
        self._record, self._norm, self._own = record, norm, own
        self.stepper = record.stepper(field, own.algorithm)
        # A stretch goes on with the step size that the last one ended with.
        self._size = own.dt0

    def __call__(self, state: Tensor, t: float, t1: float, recorder: Recorder) -> Tensor:
        """``state`` integrated from ``t`` to ``t1``.

        Raises
        ------
        SolveError
            If the backward solve fails.
        """
        record, own = self._record, self._own
        request = record.request
        counts = request.stats.backward
        algorithm = own.algorithm or request.algorithm
        max_steps = own.max_steps or request.max_steps
        if all(option is None for option in (own.max_steps, own.algorithm, own.rtol, own.atol)):
            # A field that cannot be reconstructed may run away backward and take ever more steps.
            max_steps = min(max_steps, 1000 + 30 * record.trajectory.steps)
        jumps = request.jumps if own.d_discontinuities is None else frozenset(own.d_discontinuities)
        with torch.no_grad():
            if algorithm.adaptive:
                rtol, atol = tolerances(record)
                stepping = Stepping(
                    norm=lambda: self._norm(rtol, atol),
                    controller=own.controller or request.controller,
                    max_steps=max_steps,
                    dt0=self._size,
                    dtmin=request.dtmin if own.dtmin is None else own.dtmin,
                    dtmax=request.dtmax if own.dtmax is None else own.dtmax,
                    force_dtmin=request.force_dtmin,
                    stops=request.tstops if own.tstops is None else own.tstops,
                    jumps=jumps,
                )
                outcome = integrate_adaptive(
                    self.stepper, state, t, t1, recorder, counts, stepping, observer=own.observer
                )
                if own.dt0 is None:
                    self._size = outcome.size
            else:
                outcome = integrate_fixed(
                    self.stepper,
                    state,
                    record.backward_mesh(algorithm, t, t1),
                    recorder,
                    counts,
                    max_steps=max_steps,
                    perturb=bool(getattr(algorithm, "perturb", False)),
                    jumps=jumps,
                    observer=own.observer,
                )
        _raise_on_failure(outcome, own.name)
        return outcome.y


def tolerances(record: NativeRecord) -> tuple[Any, Any]:
    """The adjoint's ``rtol, atol``."""
    request, own = record.request, record.request.sensealg
    assert isinstance(own, ContinuousAdjoint)
    return (request.rtol if own.rtol is None else own.rtol, request.atol if own.atol is None else own.atol)


def channel_norm(record: NativeRecord, products: Products, states: int, choice: Any) -> Norm:
    """The error norm of ``states`` channels of the state's size, followed by those of the inputs.

    ``choice``: ``"seminorm"``, ``"full"`` or a callable, see BacksolveAdjoint.
    """
    n, sizes = products.n, products.sizes
    head = states * n

    def spread(tolerance: Any) -> Any:
        if not isinstance(tolerance, Tensor) or tolerance.numel() != n:
            return tolerance  # a number, or one for each channel
        # A tolerance per element of the state counts for its adjoint too; integrals get the tightest.
        return torch.cat([*[tolerance] * states, tolerance.new_full((sum(sizes),), tolerance.min().item())])

    def seminorm(rtol: Any, atol: Any) -> ErrorNorm:
        rtol, atol = (x[:head] if isinstance(x, Tensor) and x.numel() > 1 else x for x in (spread(rtol), spread(atol)))
        if states == 1:  # the plain norm of what counts
            return ErrorNorm(rtol, atol, part=slice(0, head))
        return ErrorNorm(rtol, atol, _largest_rms, lambda e: torch.split(e, [n] * states), part=slice(0, head))

    def full(rtol: Any, atol: Any) -> ErrorNorm:
        parts = [*[n] * states, sum(sizes)]
        return ErrorNorm(spread(rtol), spread(atol), _largest_rms, lambda e: torch.split(e, parts))

    def own(rtol: Any, atol: Any) -> ErrorNorm:
        shapes: list[Any] = [*[(n,)] * states, *(x.shape for x in products.inputs)]

        def unpack(error: Tensor) -> tuple[Tensor, ...]:
            parts = torch.split(error, [*[n] * states, *sizes])
            return tuple(
                part.reshape(shape)
                if part.numel() == math.prod(shape)
                else torch.view_as_complex(part.reshape(*shape, 2))
                for part, shape in zip(parts, shapes, strict=True)
            )

        return ErrorNorm(spread(rtol), spread(atol), choice, unpack)

    return {"seminorm": seminorm, "full": full}.get(choice, own) if isinstance(choice, str) else own


def _largest_rms(parts: Sequence[Tensor]) -> float:
    sizes = [math.sqrt(torch.dot(part, part).item() / part.numel()) for part in parts if part.numel()]
    return math.nan if any(map(math.isnan, sizes)) else max(sizes)


def _raise_on_failure(outcome: Outcome, name: str) -> None:
    if not outcome.retcode.successful:
        message = f"in the backward solve of {name}, " + failure_message(outcome.retcode, outcome.t, outcome.detail)
        message = message.removesuffix(".") + "; or use CheckpointedAdjoint, which integrates nothing backward."
        raise SolveError(message, outcome.retcode, outcome.t)
