"""Continuous forward sensitivities: ``S' = (df/dy) S + df/dp``, integrated together with the state.

One column ``S_j = dy/dp_j`` for every differentiable number: of ``y0`` (from the identity), of the arguments and
parameters (from zero), and of the initial time (from ``-f(t0, y0)``) where a time needs a gradient. A gradient is then
a contraction of the columns at the save times; nothing is integrated backward.

All columns come from one evaluation of ``f``. Where the state has no more numbers than there are columns, the whole
Jacobian is taken by one pullback for each row. Otherwise each column is a Jacobian-vector product, by differentiating
the pullback ``u -> u df/d(y, p)``, which is linear, once more. Neither needs to replace parameters, so that closures
work like modules.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pynode.backends import Gradients, Query
from pynode.errors import GradientError, UnsupportedError, explain, not_finite
from pynode.native.adjoints.backward import FlatLayout
from pynode.native.error_norm import ErrorNorm
from pynode.native.jacobian import Product, no_jacobian
from pynode.native.vmap_refusal import refuses
from pynode.problem import Field
from pynode.sensealg import ForwardSensitivity
from pynode.solution import Counts

if TYPE_CHECKING:
    from pynode.backends import Request
    from pynode.native.record import NativeRecord

LIMIT = 2**28
"""Largest number of sensitivities: 2 GiB of them in float64, several times over in the stages of a step."""


class Columns:
    """What the columns stand for, in their order: ``y0``, the initial time, arguments, parameters.

    Attributes
    ----------
    n, count : int
        Numbers in the state, and columns.
    values : Tensor (m, n + count * n)
        The augmented state at the save times.
    reached : list of bool
        Which arguments and parameters some evaluation of ``f`` depended on.

    Raises
    ------
    UnsupportedError
        If there are more than ``LIMIT`` sensitivities.
    """

    def __init__(self, request: Request) -> None:
        assert request.dependencies is not None
        self.request = request
        self.dependencies = request.dependencies
        problem = request.problem
        self.n = problem.layout.size
        self.inputs = [*self.dependencies.arguments, *self.dependencies.parameters]
        self.sizes = [x.numel() * (2 if x.is_complex() else 1) for x in self.inputs]
        #: Columns of y0, and of the initial time.
        self.initial = self.n if problem.y0.requires_grad else 0
        self.start_time = 1 if problem.t.requires_grad else 0
        self.count = self.initial + self.start_time + sum(self.sizes)
        self.reached = [False] * len(self.inputs)
        self.values = torch.empty(0)
        if self.count * self.n > LIMIT:
            raise UnsupportedError(
                explain(
                    f"ForwardSensitivity has {self.count} columns of {self.n} numbers here",
                    f"at most {LIMIT} numbers: it is for few parameters and small states",
                    "use CheckpointedAdjoint()",
                )
            )

    def field(self, counts: Counts) -> Augmented:
        """The augmented field, counted in ``counts``."""
        return Augmented(self, counts)

    def start(self, y0: Tensor) -> Tensor:
        """The augmented initial state."""
        columns = y0.new_zeros(self.count, self.n)
        if self.initial:
            columns[: self.n] = torch.eye(self.n, dtype=y0.dtype, device=y0.device)
        if self.start_time:
            assert self.dependencies.derivative is not None
            columns[self.initial] = -self.dependencies.derivative
        return torch.cat([y0, columns.reshape(-1)])

    def check_start(self, derivative: Tensor) -> None:
        """Raise GradientError where the columns alone are what is not finite in the first derivative."""
        if bool(torch.isfinite(derivative[: self.n]).all()):
            raise not_finite("f is finite at the initial time, but its sensitivities under ForwardSensitivity are")

    def split(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """States (m, n) and columns (m, count, n) of augmented states."""
        return flat[:, : self.n], flat[:, self.n :].reshape(len(flat), self.count, self.n)

    def norm(self) -> ErrorNorm:
        """The larger of the norm of the state and, under error control, of every column's root mean square."""
        request = self.request
        problem, layout = request.problem, request.problem.norm_layout
        assert isinstance(request.sensealg, ForwardSensitivity)
        own, n = request.norm, layout.size
        unpack = None if own is None else layout.unpack
        if not request.sensealg.error_control or not self.count:
            return ErrorNorm(request.rtol, request.atol, own, unpack, slice(0, n))
        part: Any = None
        if n < self.n:  # a running cost does not count
            channels = torch.arange((1 + self.count) * self.n, device=problem.layout.device)
            part = channels.view(1 + self.count, self.n)[:, :n].reshape(-1)

        def repeated(tolerance: float | Tensor) -> float | Tensor:
            wanted = isinstance(tolerance, Tensor) and tolerance.numel() == n
            return tolerance.reshape(-1).repeat(1 + self.count) if wanted else tolerance  # type: ignore[union-attr]

        def largest(error: Tensor) -> float:
            rows = error.view(1 + self.count, n)
            rms = rows.square().mean(1).sqrt()
            if own is None or unpack is None:
                return rms.max().item()
            state = float(own(unpack(rows[0])))
            columns = rms[1:].max().item()
            return math.nan if math.isnan(state) or math.isnan(columns) else max(state, columns)

        return ErrorNorm(repeated(request.rtol), repeated(request.atol), largest, None, part)


class Augmented(Field):
    """The field of ``[y (n), S_1 (n), ...]``, flat."""

    on_tape = False

    def __init__(self, columns: Columns, counts: Counts) -> None:
        problem = columns.request.problem
        self.columns = columns
        self.aliases = [x.detach().requires_grad_() for x in columns.dependencies.arguments]
        field = problem.field(counts)
        self.field = field.with_args(problem.arguments.replaced(self.aliases))
        self.inputs = [*self.aliases, *columns.dependencies.parameters]
        self.layout = FlatLayout((1 + columns.count) * columns.n, field)  # type: ignore[assignment]
        self.counts = Counts()  # the stepper's; evaluations are counted by the field inside
        self.args = ()

    def __call__(self, t: Tensor, flat: Tensor) -> Tensor:
        return self.f(t, flat)

    def time(self, t: float | Tensor) -> Tensor:
        return self.field.time(t)

    def jacobian(self, t: Tensor, flat: Tensor) -> Tensor:
        raise no_jacobian("the forward sensitivities")

    def jacobian_products(self, t: Tensor, flat: Tensor) -> tuple[Product, Product]:
        raise no_jacobian("the forward sensitivities")

    def f(self, t: Tensor, flat: Tensor) -> Tensor:
        columns, n = self.columns, self.columns.n
        with torch.enable_grad():
            y = flat[:n].detach().requires_grad_()
            dy = self.field(t, y)
        columns.dependencies.check_reached([dy], [y, *self.aliases])
        sensitivities = flat[n:].view(columns.count, n)
        if not dy.requires_grad or not columns.count:
            return torch.cat([dy.detach(), torch.zeros_like(flat[n:])])
        make = self._by_rows if n <= columns.count else self._by_columns
        rates = make(y, dy, sensitivities)
        self.field.counts.nvjp += min(n, columns.count)
        return torch.cat([dy.detach(), rates.reshape(-1)])

    def _by_rows(self, y: Tensor, dy: Tensor, sensitivities: Tensor) -> Tensor:
        """Through the Jacobian, a pullback for each of its rows."""
        columns, n = self.columns, self.columns.n
        rows = _batched(dy, [y, *self.inputs], [torch.eye(n, dtype=dy.dtype, device=dy.device)])
        rates = torch.zeros_like(sensitivities) if rows[0] is None else sensitivities @ rows[0].t()
        for index, (at, block) in enumerate(self._blocks(rows[1:])):
            columns.reached[index] |= block is not None
            if block is not None:
                rates[at] += _real(block).reshape(n, -1).t().to(rates.dtype)
        return rates

    def _by_columns(self, y: Tensor, dy: Tensor, sensitivities: Tensor) -> Tensor:
        """By one Jacobian-vector product for each column."""
        columns = self.columns
        # Any u will do, as the pullback is linear in it; one without zeros tests that below.
        u = torch.linspace(1.0, 2.0, columns.n, dtype=dy.dtype, device=dy.device).requires_grad_()
        with torch.enable_grad():
            pulled = torch.autograd.grad(dy, [y, *self.inputs], u, create_graph=True, allow_unused=True)
        outputs, seeds = [], []
        for index, (at, gradient) in enumerate([(slice(0), pulled[0]), *self._blocks(pulled[1:])]):
            if index:
                columns.reached[index - 1] |= gradient is not None
            if gradient is not None:
                outputs.append(gradient)
                seeds.append(self._unit(at, gradient) if index else sensitivities)
        live = [i for i, gradient in enumerate(outputs) if gradient.requires_grad]
        found = _batched([outputs[i] for i in live], [u], [seeds[i] for i in live])[0] if live else None
        rates = torch.zeros_like(sensitivities) if found is None else found
        self._check_linear(rates, u.detach(), outputs, seeds)
        return rates

    def _check_linear(self, rates: Tensor, u: Tensor, outputs: list[Tensor], seeds: list[Tensor]) -> None:
        """Raise GradientError unless ``u (J s) = (u J) s``: a pullback that loses its graph on the way gives less, and
        torch does not always say so."""
        left, size = rates @ u, rates.abs() @ u
        for seed, gradient in zip(seeds, outputs, strict=True):
            rows, weights = _real(seed).reshape(len(seed), -1), _real(gradient.detach()).reshape(-1)
            left -= (rows @ weights).to(left.dtype)
            size += (rows.abs() @ weights.abs()).to(left.dtype)
        autocast = self.columns.request.problem.autocast
        dtypes = {rates.dtype, *(x.dtype for x in outputs), *([autocast.dtype] if autocast.enabled else [])}
        rounding = math.sqrt(max(torch.finfo(dtype).eps for dtype in dtypes if dtype is not None))
        if bool((left.abs() > rounding * size).any()):  # not so where the field overflowed
            raise _refusal("a pullback in it cannot be differentiated")

    def _blocks(self, gradients: Sequence[Tensor | None]) -> Iterator[tuple[slice, Tensor | None]]:
        """The columns of every argument and parameter, with the gradient that belongs to it."""
        at = self.columns.initial + self.columns.start_time
        for size, gradient in zip(self.columns.sizes, gradients, strict=True):
            yield slice(at, at + size), gradient
            at += size

    def _unit(self, at: slice, like: Tensor) -> Tensor:
        """The directions (count, *shape) in an input: its own numbers in its own columns, zero in all others."""
        real = like.dtype.to_real()
        unit = torch.zeros(self.columns.count, at.stop - at.start, dtype=real, device=like.device)
        unit[at].fill_diagonal_(1.0)
        if like.is_complex():
            return torch.view_as_complex(unit.view(-1, *like.shape, 2))
        return unit.view(-1, *like.shape)


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def _batched(outputs: Any, inputs: list[Tensor], seeds: list[Tensor]) -> list[Tensor | None]:
    """Gradients of ``inputs``, each with a leading dimension: one pullback for every row of ``seeds``."""
    there: list[bool] = []

    def pulled(*rows: Tensor) -> tuple[Tensor, ...]:
        gradients = torch.autograd.grad(outputs, inputs, rows, retain_graph=True, allow_unused=True)
        there[:] = [g is not None for g in gradients]
        return tuple(g for g in gradients if g is not None)

    try:
        found = iter(torch.vmap(pulled)(*seeds))
    except RuntimeError as error:
        if not refuses(error):
            raise
        raise _refusal(str(error).strip().partition("\n")[0]) from error
    return [next(found) if present else None for present in there]


def _refusal(why: str) -> GradientError:
    return GradientError(
        explain(
            f"ForwardSensitivity could not take the Jacobian-vector products of f ({why})",
            "torch operations whose backward torch.vmap can batch and, where there are fewer columns than numbers in "
            "the state, that are twice differentiable",
            "use CheckpointedAdjoint(), which pulls back through f once",
        )
    )


def pull_back(record: NativeRecord, query: Query, cotangents: Tensor) -> Gradients:
    """Gradients of ``sum_i <cotangents_i, y(times_i)>``: the columns at the queried times, contracted.

    The gradient with respect to times is that of the exact solution, on which ``y' = f``.
    """
    columns, request, times = record.columns, record.request, query.times
    assert columns is not None
    problem = request.problem
    own = times is request.times or times is record.saved
    augmented = columns.values[: len(times)] if own else record.whole(times, query.derivative)
    states, sensitivities = columns.split(augmented)
    if query.derivative and query.time_gradient:
        states = record.anchors(times)
    gradient = torch.einsum("mpn,mn->p", sensitivities, cotangents)
    t0 = record.trajectory.mesh[0]
    mesh_gradient = times_gradient = None
    if query.time_gradient:
        field = problem.field(request.stats.backward)
        times_gradient = torch.zeros(len(times), dtype=torch.float64)
        mesh_gradient = torch.zeros(len(record.trajectory.mesh), dtype=torch.float64)
        # At t0 the state is y0 itself, whatever t0 is, unless the time was given apart.
        moving = [i for i, t in enumerate(times) if query.own_times or t != t0]
        for i in moving:
            times_gradient[i] = _slope(field, times[i], states[i], cotangents[i], query.derivative)
        if columns.start_time and moving:
            start = sensitivities[moving, columns.initial]
            mesh_gradient[0] = torch.sum(start * cotangents[moving]).item()
        mesh_gradient = record.free_boundaries(mesh_gradient)
    y0 = gradient[: columns.n] if columns.initial else torch.zeros_like(cotangents[0])
    found: list[Tensor | None] = []
    own_columns = gradient[columns.initial + columns.start_time :]
    parts = torch.split(own_columns, columns.sizes) if columns.sizes else ()
    for part, like, reached in zip(parts, columns.inputs, columns.reached, strict=True):
        if not reached:
            found.append(None)
        elif like.is_complex():
            found.append(torch.view_as_complex(part.reshape(*like.shape, 2).clone()).to(like.dtype))
        else:
            found.append(part.reshape(like.shape).to(like.dtype))
    arguments = len(columns.dependencies.arguments)
    return Gradients(y0, mesh_gradient, times_gradient, found[:arguments], found[arguments:])


def _slope(field: Field, t: float, y: Tensor, cotangent: Tensor, derivative: bool) -> float:
    """Time derivative of ``<cotangent, y(t)>``, or of ``<cotangent, y'(t)>``, along the solution."""
    if not derivative:
        return torch.dot(cotangent, field(field.time(t), y)).item()
    with torch.enable_grad():
        time, y = field.time(t).requires_grad_(), y.detach().requires_grad_()
        dy = field(time, y)
    if not dy.requires_grad:
        return 0.0
    by_time, by_state = torch.autograd.grad(dy, [time, y], cotangent, allow_unused=True)
    field.counts.nvjp += 1
    slope = 0.0 if by_time is None else by_time.item()
    return slope if by_state is None else slope + torch.dot(by_state, dy.detach()).item()
