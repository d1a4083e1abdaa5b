"""Solves backward in time: their fields, their error norms, their options."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pynode.algorithms import Algorithm
from pynode.controllers import PIDController
from pynode.default_controller import default_controller
from pynode.errors import SolveError, not_finite
from pynode.native.adjoints.products import Products
from pynode.native.dense import Dense
from pynode.native.error_norm import ErrorNorm
from pynode.native.jacobian import Product, no_jacobian
from pynode.native.loop import Outcome, Recorder, Stepping, integrate_adaptive, integrate_fixed
from pynode.problem import Field
from pynode.sensealg import ContinuousAdjoint
from pynode.solution import Counts, ReturnCode, failure_message

if TYPE_CHECKING:
    from pynode.backends import Request
    from pynode.native.record import NativeRecord


#: ``norm(rtol, atol)``: the error norm of a backward solve for the adjoint's tolerances.
Norm = Callable[[Any, Any], ErrorNorm]


class Backward(Field):
    """A field on a flat real vector of another size than the state's, for a solve backward in time.

    ``coupled``: its leading channels, on which alone the field depends; the others are integrals.
    """

    on_tape = False

    def __init__(
        self, rate: Callable[[Tensor, Tensor], Tensor], size: int, field: Field, coupled: int | None = None
    ) -> None:
        self.f = rate
        self.args = ()
        self.layout = FlatLayout(size, field)  # type: ignore[assignment]
        self.counts = Counts()  # the stepper's; evaluations are counted by the field inside
        self._inner = field
        self.coupled = size if coupled is None else coupled

    def __call__(self, t: Tensor, flat: Tensor) -> Tensor:
        rate: Tensor = self.f(t, flat)
        return rate

    def time(self, t: float | Tensor) -> Tensor:
        return self._inner.time(t)

    def jacobian(self, t: Tensor, flat: Tensor) -> Tensor:
        raise no_jacobian("this backward solve")

    def jacobian_products(self, t: Tensor, flat: Tensor) -> tuple[Product, Product]:
        raise no_jacobian("this backward solve")


class FlatLayout:
    """What is integrated backward is a flat real vector already."""

    def __init__(self, size: int, field: Field) -> None:
        self.size, self.dtype, self.device = size, field.layout.dtype, field.layout.device

    def writer(self) -> Any:
        return lambda derivative, row: row.copy_(derivative)

    def row_views(self, buffer: Tensor) -> tuple[Tensor, ...]:
        return buffer.unbind()

    def unpack(self, flat: Tensor) -> Tensor:
        return flat


class Against(Backward):
    """The adjoint equation ``da/dt = -a df/dy`` against a dense forward solution."""

    def __init__(self, products: Products, forward: Dense) -> None:
        # A function of its own, as a method would close a circle that keeps states alive.
        def rate(t: Tensor, a: Tensor) -> Tensor:
            # Not in place: where f returns y itself, the product is a itself.
            return products.state(t, forward.at(t.item(), products.plain), a).neg()

        super().__init__(rate, products.n, products.plain)
        self.products, self.forward = products, forward

    def jacobian(self, t: Tensor, flat: Tensor) -> Tensor:
        """``-J^T``, ``J`` being that of ``f`` at the forward solution."""
        plain = self.products.plain
        return -plain.jacobian(t, self.forward.at(t.item(), plain)).t()

    def jacobian_products(self, t: Tensor, flat: Tensor) -> tuple[Product, Product]:
        plain = self.products.plain
        forward, backward = plain.jacobian_products(t, self.forward.at(t.item(), plain))
        return (lambda v: -backward(v)), (lambda a: -forward(a))


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
        GradientError
            If it begins with an infinity or a NaN.
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
                    controller=own.controller or _inherited(request, algorithm),
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
                    remembers=getattr(algorithm, "remembers", False),
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


def _inherited(request: Request, algorithm: Algorithm) -> PIDController:
    """The forward controller; where that is its algorithm's default one, the default of the adjoint's algorithm."""
    default = default_controller(request.algorithm)
    return default_controller(algorithm) if request.controller == default else request.controller


def channel_norm(record: NativeRecord, products: Products, states: int, choice: Any) -> Norm:
    """The error norm of ``states`` channels of the state's size, followed by those of the inputs.

    ``choice``: ``"seminorm"``, ``"full"`` or a callable, see BacksolveAdjoint.
    """
    problem = record.request.problem
    n, sizes = problem.norm_layout.size, products.sizes
    heads = [n] * states
    counted: Tensor | None = None
    if n < products.n:  # neither a running cost nor its adjoint, which is constant, counts
        channels = torch.arange(states * products.n + sum(sizes), device=products.plain.layout.device)
        kept = channels[: states * products.n].reshape(states, -1)[:, :n].reshape(-1)
        counted = torch.cat([kept, channels[states * products.n :]])

    def spread(tolerance: Any) -> Any:
        tolerance = problem.tolerance(tolerance)
        if not isinstance(tolerance, Tensor) or tolerance.numel() != n:
            return tolerance  # a number, or one for each channel
        # A tolerance per element of the state counts for its adjoint too; integrals get the tightest.
        return torch.cat([*[tolerance] * states, tolerance.new_full((sum(sizes),), tolerance.min().item())])

    def seminorm(rtol: Any, atol: Any) -> ErrorNorm:
        head = sum(heads)
        rtol, atol = (x[:head] if isinstance(x, Tensor) and x.numel() > 1 else x for x in (spread(rtol), spread(atol)))
        part = slice(0, head) if counted is None else counted[:head]
        if states == 1:  # the plain norm of what counts
            return ErrorNorm(rtol, atol, part=part)
        return ErrorNorm(rtol, atol, _largest_rms, lambda e: torch.split(e, heads), part=part)

    def full(rtol: Any, atol: Any) -> ErrorNorm:
        parts = [*heads, *sizes]
        return ErrorNorm(spread(rtol), spread(atol), _largest_rms, lambda e: torch.split(e, parts), part=counted)

    def own(rtol: Any, atol: Any) -> ErrorNorm:
        shapes: list[Any] = [*((size,) for size in heads), *(x.shape for x in products.inputs)]

        def unpack(error: Tensor) -> tuple[Tensor, ...]:
            parts = torch.split(error, [*heads, *sizes])
            return tuple(
                part.reshape(shape)
                if part.numel() == math.prod(shape)
                else torch.view_as_complex(part.reshape(*shape, 2).clone())
                for part, shape in zip(parts, shapes, strict=True)
            )

        return ErrorNorm(spread(rtol), spread(atol), choice, unpack, part=counted)

    if choice == "seminorm":
        return seminorm
    return full if choice == "full" else own


def _largest_rms(parts: Sequence[Tensor]) -> float:
    sizes = [math.sqrt(torch.dot(part, part).item() / part.numel()) for part in parts if part.numel()]
    return math.nan if any(map(math.isnan, sizes)) else max(sizes)


def _raise_on_failure(outcome: Outcome, name: str) -> None:
    if outcome.retcode is ReturnCode.InitialFailure:
        raise not_finite(f"the adjoint of {name} could not be integrated back from t = {outcome.t:.6g}: its rate is")
    if not outcome.retcode.successful:
        message = f"in the backward solve of {name}, " + failure_message(outcome.retcode, outcome.t, outcome.detail)
        message = message.removesuffix(".") + "; or use "
        if name == "BacksolveAdjoint":  # diffusion: the state is unstable backward, a discrete adjoint may be of no use
            message += "GaussAdjoint, which does not integrate the state backward, or "
        message += "CheckpointedAdjoint, which integrates nothing backward."
        raise SolveError(message, outcome.retcode, outcome.t)
