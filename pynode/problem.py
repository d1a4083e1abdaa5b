"""The problem: a field on flat vectors, its initial state, its times, and the tensors its gradient is owed to."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.autocast import Autocast
from pynode.errors import FieldError, InputError, explain
from pynode.evaluations import changed_input, located, versions
from pynode.layout import Layout, layout_of, leaves_of, rebuild
from pynode.mass_matrix import MassMatrix, as_mass_matrix
from pynode.native.jacobian import Product, dense_jacobian, jacobian_products
from pynode.running_cost import Costed, CostedLayout, zero_cost
from pynode.solution import Counts
from pynode.step_quantity import StepQuantity
from pynode.transforms import numbers


class Field:
    """The user's ``f(t, y, *args)`` as a function of flat real vectors, counted where it is called.

    Parameters
    ----------
    f : callable
    args : tuple
        Trees passed after ``y``.
    layout : Layout
        Of the state.
    counts : Counts
        Receives one ``nfe`` per call.
    jac : callable, optional
        The user's ``jac(t, y, *args)``.
    mass : MassMatrix, optional
        ``M`` of ``M dy/dt = f``; a call gives ``f``.

    Attributes
    ----------
    batches : bool
        Whether ``torch.vmap`` has not refused pullbacks through ``f`` yet.
    on_tape : bool
        Whether autograd sees through an evaluation.
    """

    jac: Callable[..., Any] | None = None
    mass: MassMatrix | None = None
    batches = True
    on_tape = True

    def __init__(
        self,
        f: Callable[..., Any],
        args: tuple[Any, ...],
        layout: Layout,
        counts: Counts,
        jac: Callable[..., Any] | None = None,
        mass: MassMatrix | None = None,
    ) -> None:
        self.f = f
        self.args = args
        self.layout = layout
        self.counts = counts
        self.jac = jac
        self.mass = mass

    def __call__(self, t: Tensor, flat: Tensor) -> Tensor:
        """Derivative at time ``t`` (0-dim) of the state ``flat`` (n,), as a flat vector, differentiable."""
        return self.watched(self.evaluate(t, flat))

    def evaluate(self, t: Tensor, flat: Tensor) -> Tensor:
        """The same, not on its way to the solver yet: pullbacks through this are not counted."""
        self.counts.nfe += 1
        before = versions(flat)
        try:
            derivative = self.layout.pack_derivative(self.f(t, self.layout.unpack(flat), *self.args))
            if versions(flat) != before:
                raise changed_input()
        except FieldError as error:
            located(error, t)
            raise
        except RuntimeError as error:
            if versions(flat) == before or "inplace" not in str(error):
                raise
            found = changed_input()  # torch noticed first, at another view of it
            located(found, t)
            raise found from error
        return derivative

    def watched(self, derivative: Tensor) -> Tensor:
        """What an evaluation gave, or a part of it, on its way to the solver."""
        return derivative

    def with_args(self, args: tuple[Any, ...]) -> Field:
        """The same field with other arguments."""
        return Field(self.f, args, self.layout, self.counts, self.jac, self.mass)

    @property
    def mass_matrix(self) -> Tensor | None:
        """``M`` (n, n) of ``M dy/dt = f``; None stands for the unit matrix."""
        return None if self.mass is None else self.mass.matrix

    def rate(self, t: Tensor, flat: Tensor) -> Tensor:
        """``dy/dt``: ``f``, or with a mass matrix its pseudoinverse times ``f``."""
        derivative = self(t, flat)
        return derivative if self.mass is None else self.mass.inverse @ derivative

    def jacobian(self, t: Tensor, flat: Tensor) -> Tensor:
        """``df/dy`` (n, n) at ``t`` (0-dim) and ``flat`` (n,), off the tape: see :func:`dense_jacobian`."""
        return dense_jacobian(self, t, flat)

    def jacobian_products(self, t: Tensor, flat: Tensor) -> tuple[Product, Product]:
        """``v -> df/dy v`` and ``a -> a df/dy`` there: see :func:`jacobian_products`."""
        return jacobian_products(self, t, flat)

    def time(self, t: float | Tensor) -> Tensor:
        """``t`` as the field receives it: a 0-dim tensor of the state's real dtype on its device."""
        if isinstance(t, Tensor):
            return t.to(device=self.layout.device, dtype=self.layout.dtype)
        return torch.scalar_tensor(t, dtype=self.layout.dtype, device=self.layout.device)

    def check_pure(self, t: Tensor, flat: Tensor) -> Tensor:
        """Call the field once and raise FieldError if it wrote into its input."""
        return check_pure(self, t, flat)


def check_pure(field: Callable[[Tensor, Tensor], Tensor], t: Tensor, flat: Tensor) -> Tensor:
    """``field(t, flat)``; raises FieldError if that wrote into ``flat``."""
    before = versions(flat)
    derivative = field(t, flat)
    if versions(flat) != before:
        error = changed_input()
        located(error, t)
        raise error
    return derivative


def nudged(t: Tensor, towards: float) -> Tensor:
    """The next representable time in a direction, its gradient unchanged."""
    t_detached = t.detach()
    return t + (torch.nextafter(t_detached, torch.full_like(t_detached, towards)) - t_detached)


class Arguments:
    """``args`` with its differentiable tensors singled out.

    Attributes
    ----------
    tensors : list of Tensor
        The floating point or complex tensors in ``args`` that require a gradient.
    """

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.args = args
        self.leaves = [leaf for _, leaf in leaves_of(args, "args")]
        self._where = [i for i, leaf in enumerate(self.leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
        self.tensors: list[Tensor] = [self.leaves[i] for i in self._where]

    def replaced(self, tensors: Sequence[Tensor]) -> tuple[Any, ...]:
        """``args`` with its differentiable tensors replaced."""
        leaves = list(self.leaves)
        for index, tensor in zip(self._where, tensors, strict=True):
            leaves[index] = tensor
        replaced: tuple[Any, ...] = rebuild(self.args, iter(leaves))
        return replaced

    def values(self, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        """The tensors of a precision and device in ``args`` that require no gradient: data."""
        return [self.leaves[i] for i in self._values(dtype, device)]

    def with_values(self, values: Sequence[Tensor], dtype: torch.dtype, device: torch.device) -> Arguments:
        """The same with other data."""
        leaves = list(self.leaves)
        for index, tensor in zip(self._values(dtype, device), values, strict=True):
            leaves[index] = tensor
        return Arguments(rebuild(self.args, iter(leaves)))

    def _values(self, dtype: torch.dtype, device: torch.device) -> list[int]:
        return [
            i
            for i, x in enumerate(self.leaves)
            if isinstance(x, Tensor) and not x.requires_grad and x.dtype == dtype and x.device == device
        ]


class ODEProblem:
    """``dy/dt = f(t, y, *args)``, ``y(t[0]) = y0``, validated.

    Parameters
    ----------
    f : callable
        ``f(t, y, *args)`` with ``t`` a 0-dim tensor of the state's real dtype; returns the tree of ``y``.
    y0 : tensor or tree of tensors
        Initial state; see :class:`pynode.layout.Layout`.
    t : 1-D tensor or sequence of float
        Strictly monotone times; the first is the initial time, the last the final one.
    args : tuple
    running_cost : callable, optional
        ``l(t, y, *args)``; its integral becomes further channels behind those of ``y``.
    cost_in_norm : bool
        Whether these channels count in error norms.
    jac : callable, optional
        ``jac(t, y, *args)``: ``df/dy``, what reshapes to (n, n) for a real tensor ``y`` of n numbers.
    mass_matrix : Tensor (n, n), optional
        The constant ``M`` of ``M dy/dt = f(t, y, *args)``, possibly singular.

    Attributes
    ----------
    layout : Layout
        Of the state that is integrated: that of ``y``, or of ``(y, cost)``.
    state_layout : Layout
        Of ``y`` alone, which comes first.
    cost_layout : Layout or None
        Of the running cost.
    norm_layout : Layout
        Of the leading channels that count in error norms.
    quantities : tuple of StepQuantity
        Of the steps: what each adds to the last channels of the running cost, one each.
    callables : tuple
        What of the user's is evaluated: ``f``, and the running cost.
    y0 : Tensor
        Flat initial state (n,), connected to the user's tensors.
    t : Tensor
        Times (T,), connected to the user's tensor.
    times : list of float
        The same, in float64.

    Raises
    ------
    InputError
        Naming the argument at fault.
    """

    def __init__(
        self,
        f: Callable[..., Any],
        y0: Any,
        t: Any,
        args: tuple[Any, ...] = (),
        running_cost: Callable[..., Any] | None = None,
        cost_in_norm: bool = False,
        jac: Callable[..., Any] | None = None,
        mass_matrix: Tensor | None = None,
    ) -> None:
        if not callable(f):
            raise InputError(
                explain(f"f is a {type(f).__name__}", "a callable f(t, y, *args)", "pass a module or function")
            )
        if not isinstance(args, tuple):
            raise InputError(
                explain(
                    f"args is a {type(args).__name__}", "a tuple of what f takes after (t, y)", "write args=(value,)"
                )
            )
        self.f = f
        self.callables: tuple[Callable[..., Any], ...] = (f,)
        self.layout = self.state_layout = layout_of(y0)
        self.cost_layout: Layout | None = None
        self.quantities: tuple[StepQuantity, ...] = tuple(getattr(running_cost, "of_steps", ()))
        self.t, self.times = check_times("t", t)
        check_range(self.times, self.layout.dtype)
        if len(self.times) < 2:
            raise InputError(
                explain(f"t has {len(self.times)} element(s)", "at least a start and an end time", "give both")
            )
        self.arguments = Arguments(args)
        self.autocast = Autocast(self.layout.device.type, self.layout.dtype)
        if running_cost is not None:
            y0 = self._add(running_cost, y0)
        elif cost_in_norm:
            raise InputError(
                explain("cost_in_norm=True without a running cost", "a running_cost=", "drop cost_in_norm")
            )
        self.f = self.autocast.around(self.f)
        self.norm_layout = self.layout if cost_in_norm else self.state_layout
        self.jac = None if jac is None else self._checked_jac(jac)
        self.mass = None if mass_matrix is None else as_mass_matrix(mass_matrix, self.state_layout, self.layout)
        self.y0 = _outside_inference(self.layout.pack(y0))

    def _add(self, cost: Callable[..., Any], y0: Any) -> Any:
        """Make the integral of ``cost`` part of the state; returns the initial one."""
        t0 = torch.scalar_tensor(self.times[0], dtype=self.layout.dtype, device=self.layout.device)
        own = self.layout.unpack(self.layout.pack(y0).detach().clone())  # the cost may write into it
        with self.autocast():
            c0 = zero_cost(
                self.autocast.around(cost) if callable(cost) else cost, t0, own, self.arguments.args, self.layout
            )
        self.f = Costed(self.f, cost)
        self.callables = (*self.callables, cost)
        self.layout = layout = CostedLayout(y0, self.state_layout, c0)
        self.cost_layout = layout.cost
        return y0, c0

    def _checked_jac(self, jac: Any) -> Callable[..., Any]:
        if not callable(jac):
            raise InputError(
                explain(f"jac is a {type(jac).__name__}", "a callable jac(t, y, *args)", "pass a function")
            )
        if not (self.layout.is_tensor and self.layout.is_real):
            what = "a running cost" if self.cost_layout is not None else "a state that is not one real tensor"
            raise InputError(
                explain(f"jac= came with {what}", "a real tensor y and no more", "drop jac=: torch finds the Jacobian")
            )
        return jac  # type: ignore[no-any-return]

    def tolerance(self, value: float | Tensor) -> float | Tensor:
        """A tolerance for all channels that count, from one for those of ``y``; costs get the tightest."""
        more = self.norm_layout.size - self.state_layout.size
        if not isinstance(value, Tensor) or value.numel() != self.state_layout.size or not more:
            return value
        return torch.cat([value.reshape(-1), value.min().expand(more)])

    def field(self, counts: Counts) -> Field:
        """The field on flat vectors, counted in ``counts``."""
        return Field(self.f, self.arguments.args, self.layout, counts, self.jac, self.mass)


def farthest(times: Any) -> float:
    """From zero; ``times`` are monotone floats, or tensors of the first and last ones of rows."""
    ends = times[0], times[-1]
    if isinstance(ends[0], Tensor):
        return max(float(x.abs().max()) if x.numel() else 0.0 for x in ends)
    return float(max(map(abs, ends)))


def check_range(times: Any, dtype: torch.dtype) -> None:
    """Raise InputError for times (see :func:`farthest`) beyond the state's precision, in which ``f`` receives them."""
    reached, most = farthest(times), torch.finfo(dtype).max
    if reached > most:
        raise InputError(
            explain(
                f"t reaches {reached:.3g}, which {dtype} does not hold",
                f"times below {most:.3g}, as f receives them in the state's precision",
                "solve in float64, or rescale time",
            )
        )


def check_times(name: str, t: Any) -> tuple[Tensor, list[float]]:
    """``t`` as a 1-D floating tensor and as floats, after checking that it is finite and strictly monotone."""
    if not isinstance(t, Tensor):
        try:
            if isinstance(t, list | tuple) and any(isinstance(x, Tensor) and x.requires_grad for x in t):
                t = torch.stack([torch.as_tensor(x, dtype=torch.float64) for x in t])  # as_tensor would detach them
            else:
                t = torch.as_tensor(t, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                explain(f"{name} is a {type(t).__name__}", "a 1-D tensor or a sequence of numbers", "pass a tensor")
            ) from error
    if t.dtype not in (torch.float32, torch.float64):
        raise InputError(explain(f"{name} has dtype {t.dtype}", "float32 or float64", f"use {name}.double()"))
    if t.ndim != 1 or t.numel() == 0:
        raise InputError(
            explain(
                f"{name} has shape {tuple(t.shape)}",
                "a non-empty 1-D tensor of times",
                "flatten it, or give the start and end times",
            )
        )
    times = numbers(name, t)
    steps = [b - a for a, b in itertools.pairwise(times)]
    if not (all(step > 0 for step in steps) or all(step < 0 for step in steps)):
        at = next((i for i, s in enumerate(steps) if not s * (steps[0] or 1.0) > 0), 0)
        raise InputError(
            explain(
                f"{name}[{at}] = {times[at]!r} is followed by {name}[{at + 1}] = {times[at + 1]!r}",
                "strictly increasing or strictly decreasing finite times",
                f"sort {name} and drop repeated times (torch.unique)",
            )
        )
    if not all(abs(x) < float("inf") for x in times):
        bad = next(x for x in times if not abs(x) < float("inf"))
        raise InputError(explain(f"{name} holds the non-finite time {bad}", "finite times", f"remove it from {name}"))
    return _outside_inference(t), times


def _outside_inference(x: Tensor) -> Tensor:
    """``x`` as a tensor that autograd may save, where autograd is possible at all."""
    return x.clone() if x.is_inference() and not torch.is_inference_mode_enabled() else x
