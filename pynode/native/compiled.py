"""The same steps through ``torch.compile``: one graph for a step, one for a step and its pullback.

Time, step size and parameters are inputs of the graphs, so that only another field, shape, dtype or method compiles
anew. Compiled functions are kept as long as the field they belong to.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.compile_stats import COUNTS
from pynode.errors import UnsupportedError, explain
from pynode.layout import Layout
from pynode.native.adjoints.backward import Against
from pynode.native.checkpoints import State
from pynode.native.runge_kutta import RungeKutta, TapedRungeKutta
from pynode.native.tableaus import Tableau
from pynode.problem import Field
from pynode.running_cost import Costed

_CACHE: weakref.WeakKeyDictionary[Any, dict[Any, Callable[..., Any]]] = weakref.WeakKeyDictionary()
_KEPT = 64  # graphs of one field: shapes, methods, and what is compiled of each
#: Graphs that differentiate: whether they may stand in for autograd, once that is known.
_TRUSTED: weakref.WeakKeyDictionary[Callable[..., Any], bool] = weakref.WeakKeyDictionary()


def _combination(y: Tensor, h: Tensor, weights: Sequence[float], stages: Sequence[Tensor]) -> Tensor:
    total: Tensor | None = None
    for weight, stage in zip(weights, stages, strict=False):
        if weight:
            total = weight * stage if total is None else total + weight * stage
    return y if total is None else y + h * total


def stage(f: Any, layout: Layout, args: tuple[Any, ...], t: Tensor, y: Tensor) -> Tensor:
    """The derivative, flat, as it is traced."""
    return layout.pack_derivative(f(t, layout.unpack(y), *args))


def bound(f: Any, names: tuple[str, ...], parameters: tuple[Tensor, ...]) -> Callable[..., Any]:
    """The module ``f`` with other tensors for its parameters; what has none need not be a module."""
    if not names:
        return f  # type: ignore[no-any-return]
    own = dict(zip(names, parameters, strict=True))

    def field(t: Tensor, state: Any, *args: Any) -> Any:
        return torch.func.functional_call(f, own, (t, state, *args))

    return field


def _forward_step(tableau: Tableau, layout: Layout) -> Callable[..., Any]:
    def step(f: Any, args: tuple[Any, ...], y: Tensor, first: Tensor, t: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        size = h.to(y.dtype)
        stages = [first]
        state = y
        for i in range(1, len(tableau.c)):
            state = _combination(y, size, tableau.a[i], stages)
            stages.append(stage(f, layout, args, (t + tableau.c[i] * h).to(y.dtype), state))
        end = state if tableau.fsal else _combination(y, size, tableau.b, stages)
        return end, torch.stack(stages)

    return step


def _taped_step(tableau: Tableau, layout: Layout) -> Callable[..., Any]:
    needed = max(i for i, weight in enumerate(tableau.b) if weight) + 1

    def step(f: Any, args: tuple[Any, ...], y: Tensor, t: Tensor, h: Tensor) -> Tensor:
        size = h.to(y.dtype)
        stages: list[Tensor] = []
        for i in range(needed):
            state = _combination(y, size, tableau.a[i], stages)
            stages.append(stage(f, layout, args, (t + tableau.c[i] * h).to(y.dtype), state))
        return _combination(y, size, tableau.b, stages)

    return step


def _pull_step(tableau: Tableau, layout: Layout) -> Callable[..., Any]:
    taped = _taped_step(tableau, layout)

    def pull(
        f: Any, args: tuple[Any, ...], names: tuple[str, ...], parameters: tuple[Tensor, ...], *rest: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        y, t, h, adjoint = rest

        def end(y: Tensor, parameters: tuple[Tensor, ...]) -> Tensor:
            stepped: Tensor = taped(bound(f, names, parameters), args, y, t, h)
            return stepped

        y1, pulled, *_ = torch.func.vjp(end, y, parameters)
        y_gradient, gradients = pulled(adjoint)
        return y1, y_gradient, gradients

    return pull


def _adjoint_step(tableau: Tableau, layout: Layout) -> Callable[..., Any]:
    def step(
        f: Any, args: tuple[Any, ...], a: Tensor, first: Tensor, ys: Tensor, times: Tensor, h: Tensor
    ) -> tuple[Tensor, Tensor]:
        size = h.to(a.dtype)
        stages = [first]
        state = a
        for i in range(1, len(tableau.c)):
            state = _combination(a, size, tableau.a[i], stages)
            pulled = torch.func.vjp(lambda y, time=times[i - 1]: stage(f, layout, args, time, y), ys[i - 1])[1]
            stages.append(-pulled(state)[0])
        end = state if tableau.fsal else _combination(a, size, tableau.b, stages)
        return end, torch.stack(stages)

    return step


def _nodes(tableau: Tableau | None, layout: Layout) -> Callable[..., Any]:
    def nodes(
        f: Any,
        args: tuple[Any, ...],
        names: tuple[str, ...],
        parameters: tuple[Tensor, ...],
        times: Tensor,
        ys: Tensor,
        weighted: tuple[Tensor, ...],
    ) -> list[tuple[Tensor, ...]]:
        def rates(parameters: tuple[Tensor, ...]) -> Tensor:
            field = bound(f, names, parameters)
            return torch.stack([stage(field, layout, args, times[j], ys[j]) for j in range(ys.shape[0])])

        pulled = torch.func.vjp(rates, parameters)[1]
        return [pulled(a)[0] for a in weighted]

    return nodes


def compiled(make: Callable[[Any, Layout], Callable[..., Any]], method: Any, field: Field) -> Callable[..., Any]:
    """``make(method, layout)`` compiled for a field, or as it had been. ``method``: a tableau, a class, or None."""
    layout = field.layout
    key: tuple[Any, ...] = (
        make,
        getattr(method, "name", method),
        layout.device,
        repr(layout.template),
        tuple(layout.shapes),
        tuple(layout.dtypes),
    )
    owner = field.f
    if isinstance(owner, Costed):  # made anew for every solve: kept with f, apart for every running cost
        key, owner = (*key, weakref.ref(owner.cost)), owner.f
    try:
        known = _CACHE.setdefault(owner, {})
    except TypeError as error:
        raise UnsupportedError(
            explain(
                f"compile='step' got f of type {type(field.f).__name__}",
                "a module or a plain function, which compiled code can be kept with",
                "wrap the field in a torch.nn.Module, or use compile=False",
            )
        ) from error
    if key not in known:
        step = make(method, layout.released())
        # torch.compile counts recompilations per code object: every field gets its own.
        assert isinstance(step, types.FunctionType)
        step.__code__ = step.__code__.replace(co_name=f"step_{len(known)}")
        # On the CPU the time goes into calling small kernels: the C++ wrapper calls them without Python.
        options: dict[str, Any] = {"cpp_wrapper": True} if layout.device.type == "cpu" else {}
        COUNTS.graphs += 1
        for oldest in list(known)[: len(known) - _KEPT + 1]:
            del known[oldest]
        known[key] = torch.compile(step, dynamic=False, options=options)
    return known[key]


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a compiled function; UnsupportedError where torch cannot compile it."""
    try:
        return function(*arguments)
    except torch._dynamo.exc.TorchDynamoException as error:
        raise UnsupportedError(
            explain(
                f"torch.compile failed on a step of this field ({type(error).__name__}: {str(error).splitlines()[0]})",
                "a field torch.compile can trace, and a C++ compiler",
                "use compile=False",
            )
        ) from error


class Inputs:
    """Calls graphs that differentiate a module with respect to its parameters without autograd.

    A graph does not tell a zero from what it does not depend on. It is trusted only after autograd has found a gradient
    for every input.
    """

    def __init__(self) -> None:
        self._names: tuple[str, ...] | None = None

    def looked(self, function: Callable[..., Any], gradients: Sequence[Tensor | None]) -> None:
        """What autograd found of that which ``function`` computes."""
        _TRUSTED.setdefault(function, all(gradient is not None for gradient in gradients))

    def unknown(self, function: Callable[..., Any], field: Field, inputs: Sequence[Tensor]) -> bool:
        """Whether one look by autograd would let ``function`` be called from then on."""
        return function not in _TRUSTED and self._named(field, inputs)

    def call(self, function: Callable[..., Any], field: Field, inputs: Sequence[Tensor], *rest: Any) -> Any:
        """What ``function`` returns; None where ``inputs`` are not all parameters of the module, where it is not
        trusted, or where torch cannot compile it."""
        if not _TRUSTED.get(function, False) or not self._named(field, inputs):
            return None
        try:
            with torch.no_grad():
                return function(field.f, field.args, self._names, tuple(inputs), *rest)
        except torch._dynamo.exc.TorchDynamoException:
            # What torch.func cannot follow, autograd behind a compiled step may.
            _TRUSTED[function] = False
            return None

    def _named(self, field: Field, inputs: Sequence[Tensor]) -> bool:
        if self._names is None:
            names = {}
            if isinstance(field.f, torch.nn.Module):
                names = {id(p): name for name, p in field.f.named_parameters()}
            self._names = tuple(names.get(id(x), "") for x in inputs)
        return "" not in self._names


class CompiledNodes:
    """Products with respect to parameters at several times, one compiled graph for every number of them."""

    def __init__(self, field: Field) -> None:
        self._field = field
        self._function = compiled(_nodes, None, field)
        self._inputs = Inputs()

    def looked(self, found: Sequence[Sequence[Tensor | None]]) -> None:
        """What autograd found of them."""
        self._inputs.looked(self._function, found[0])

    def __call__(
        self, inputs: Sequence[Tensor], times: Sequence[float], ys: Tensor, weighted: Sequence[Tensor]
    ) -> list[tuple[Tensor, ...]] | None:
        """As ``Products.along``; None where autograd has to do it."""
        stacked = torch.tensor(times, dtype=ys.dtype, device=ys.device)
        found = self._inputs.call(self._function, self._field, inputs, stacked, ys, tuple(weighted))
        if found is not None:
            self._field.counts.nfe += len(times)
            self._field.counts.nvjp += len(times) * len(weighted)
        graphed: list[tuple[Tensor, ...]] | None = found
        return graphed


def scalar(x: float) -> Tensor:
    """A number that a graph takes as an input, not as a constant to be compiled for."""
    return torch.scalar_tensor(x, dtype=torch.float64)


class CompiledRungeKutta(RungeKutta):
    """Forward steps, one compiled graph each."""

    def __init__(self, tableau: Tableau, field: Field) -> None:
        super().__init__(tableau, field)
        self._compiled = compiled(_forward_step, tableau, field)

    def attempt(self, t: float, h: float, y: Tensor, jump: float = 0.0, end: float | None = None) -> Tensor:
        if jump:
            return super().attempt(t, h, y, jump, end)
        self._start = (t, h, y, jump)
        self._end_time = t + h if end is None else end
        main = self.coefficients.main
        first = self._buffer[0]
        y1, stages = call(self._compiled, self.field.f, self.field.args, y, first, scalar(t), scalar(h))
        self.field.counts.nfe += main - 1
        self._buffer[:main].copy_(stages)
        state: Tensor = y1
        return state


class CompiledTapedRungeKutta(TapedRungeKutta):
    """Steps to pull back, step and pullback one compiled graph each. Dense output of a step is taped eagerly."""

    #: The coming step is one to look at by eager autograd.
    _by_eye: bool = False

    def __init__(self, tableau: Tableau, field: Field) -> None:
        super().__init__(tableau, field)
        self._compiled = compiled(_taped_step, tableau, field)
        self._begin: tuple[float, Tensor, float] | None = None
        self._pullback = compiled(_pull_step, tableau, field)
        self._inputs = Inputs()

    def begin(self, t: Any, y: Tensor, derivative: Tensor | None = None, jump: float = 0.0) -> None:
        self._begin = (t, y, jump)

    def attempt(self, t: Any, h: Any, y: Tensor, jump: float = 0.0, end: Any = None) -> Tensor:
        assert self._begin is not None
        self._start = (t, h, y, jump)
        self._end_time = t + h if end is None else end
        if jump or self._begin[2] or isinstance(t, Tensor) or self._by_eye:
            self._by_eye = False
            return self._eager()
        y1 = call(self._compiled, self.field.f, self.field.args, y, scalar(t), scalar(h))
        self.field.counts.nfe += self.coefficients.needed
        self._stages = [y1]  # stands for the whole step where someone asks which leaves f reached
        state: Tensor = y1
        return state

    def looked(self, gradients: Sequence[Tensor | None]) -> None:
        """The gradients of a first step, taken through autograd: those of the inputs of later graphs."""
        self._inputs.looked(self._pullback, gradients)

    def pull(
        self, t: float, t1: float, start: State, adjoints: Sequence[Tensor | None], inputs: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor | None], Sequence[Tensor]] | None:
        """A step's end, the gradients of its start (state and what is carried), and those of ``inputs``, in one graph;
        None where autograd has to do it. ``adjoints``: of the end, the leading ones."""
        (y, *_), (adjoint, *_) = start, adjoints
        if adjoint is None:
            return None
        found = self._inputs.call(self._pullback, self.field, inputs, y, scalar(t), scalar(t1 - t), adjoint)
        if found is None:
            # The one look is taken in eager steps: compiling them for it would take longer than the rest.
            self._by_eye = self._inputs.unknown(self._pullback, self.field, inputs)
            return None
        self.field.counts.nfe += self.coefficients.needed
        self.field.counts.nvjp += self.coefficients.needed
        y1, gradient, gradients = found
        return y1, [gradient], gradients

    def interpolate(self, thetas: Any, derivative: bool = False) -> Tensor:
        self._eager()
        return super().interpolate(thetas, derivative)

    def _eager(self) -> Tensor:
        assert self._begin is not None
        t, h, y, jump = self._start
        super().begin(self._begin[0], self._begin[1], jump=self._begin[2])
        return super().attempt(t, h, y, jump, self._end_time)


class CompiledDirectRungeKutta(TapedRungeKutta):
    """Steps on torch's tape, one compiled graph each, with the stages of error estimate and next step."""

    def __init__(self, tableau: Tableau, field: Field) -> None:
        super().__init__(tableau, field)
        self._compiled = compiled(_forward_step, tableau, field)

    def attempt(self, t: Any, h: Any, y: Tensor, jump: float = 0.0, end: Any = None) -> Tensor:
        if jump or isinstance(h, Tensor):
            return super().attempt(t, h, y, jump, end)
        self._start = (t, h, y, jump)
        self._end_time = t + h if end is None else end
        later = self.coefficients.main - 1
        y1, stages = call(self._compiled, self.field.f, self.field.args, y, self._stages[0], scalar(t), scalar(h))
        self.field.counts.nfe += later
        for _ in range(later):
            y1 = self.field.watched(y1)
        self._stages = [self._stages[0], *stages.unbind()[1:]]
        state: Tensor = y1
        self._end = state
        return state


class CompiledAdjoint(RungeKutta):
    """Steps of the adjoint equation against a dense forward solution, one compiled graph each."""

    def __init__(self, tableau: Tableau, field: Against) -> None:
        super().__init__(tableau, field)
        self._products, self._forward = field.products, field.forward
        self._compiled = compiled(_adjoint_step, tableau, field.products.plain)

    def attempt(self, t: float, h: float, y: Tensor, jump: float = 0.0, end: float | None = None) -> Tensor:
        if jump:
            return super().attempt(t, h, y, jump, end)
        self._start = (t, h, y, jump)
        self._end_time = t1 = t + h if end is None else end
        k, plain = self.coefficients, self._products.plain
        times = [t1 if c == 1.0 else t + c * h for c in k.c[1 : k.main]]
        ys = self._forward.at_all(times, plain)
        stacked = torch.tensor(times, dtype=k.dtype, device=k.device)
        a1, stages = call(self._compiled, plain.f, plain.args, y, self._buffer[0], ys, stacked, scalar(h))
        plain.counts.nfe += k.main - 1
        plain.counts.nvjp += k.main - 1
        self._buffer[: k.main].copy_(stages)
        state: Tensor = a1
        return state
