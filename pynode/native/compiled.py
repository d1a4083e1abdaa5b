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

from pynode.errors import UnsupportedError, explain
from pynode.layout import Layout
from pynode.native.runge_kutta import RungeKutta, TapedRungeKutta
from pynode.native.tableaus import Tableau
from pynode.problem import Field
from pynode.running_cost import Costed

_CACHE: weakref.WeakKeyDictionary[Any, dict[Any, Callable[..., Any]]] = weakref.WeakKeyDictionary()


def _combination(y: Tensor, h: Tensor, weights: Sequence[float], stages: Sequence[Tensor]) -> Tensor:
    total: Tensor | None = None
    for weight, stage in zip(weights, stages, strict=False):
        if weight:
            total = weight * stage if total is None else total + weight * stage
    return y if total is None else y + h * total


def _stage(f: Any, layout: Layout, args: tuple[Any, ...], t: Tensor, y: Tensor) -> Tensor:
    return layout.pack_derivative(f(t, layout.unpack(y), *args))


def _forward_step(tableau: Tableau, layout: Layout) -> Callable[..., Any]:
    def step(f: Any, args: tuple[Any, ...], y: Tensor, first: Tensor, t: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        size = h.to(y.dtype)
        stages = [first]
        state = y
        for i in range(1, len(tableau.c)):
            state = _combination(y, size, tableau.a[i], stages)
            stages.append(_stage(f, layout, args, (t + tableau.c[i] * h).to(y.dtype), state))
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
            stages.append(_stage(f, layout, args, (t + tableau.c[i] * h).to(y.dtype), state))
        return _combination(y, size, tableau.b, stages)

    return step


def _compiled(
    make: Callable[[Tableau, Layout], Callable[..., Any]], tableau: Tableau, field: Field
) -> Callable[..., Any]:
    layout = field.layout
    key: tuple[Any, ...] = (
        make,
        tableau.name,
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
        step = make(tableau, layout.released())
        # torch.compile counts recompilations per code object: every field gets its own.
        assert isinstance(step, types.FunctionType)
        step.__code__ = step.__code__.replace(co_name=f"step_{len(known)}")
        # On the CPU the time goes into calling small kernels: the C++ wrapper calls them without Python.
        options: dict[str, Any] = {"cpp_wrapper": True} if layout.device.type == "cpu" else {}
        known[key] = torch.compile(step, dynamic=False, options=options)
    return known[key]


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
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


def _scalar(x: float) -> Tensor:
    return torch.scalar_tensor(x, dtype=torch.float64)


class CompiledRungeKutta(RungeKutta):
    """Forward steps, one compiled graph each."""

    def __init__(self, tableau: Tableau, field: Field) -> None:
        super().__init__(tableau, field)
        self._compiled = _compiled(_forward_step, tableau, field)

    def attempt(self, t: float, h: float, y: Tensor, jump: float = 0.0, end: float | None = None) -> Tensor:
        if jump:
            return super().attempt(t, h, y, jump, end)
        self._start = (t, h, y, jump)
        self._end_time = t + h if end is None else end
        main = self.coefficients.main
        first = self._buffer[0]
        y1, stages = _call(self._compiled, self.field.f, self.field.args, y, first, _scalar(t), _scalar(h))
        self.field.counts.nfe += main - 1
        self._buffer[:main].copy_(stages)
        state: Tensor = y1
        return state


class CompiledTapedRungeKutta(TapedRungeKutta):
    """Steps to pull back, step and pullback one compiled graph each. Dense output of a step is taped eagerly."""

    def __init__(self, tableau: Tableau, field: Field) -> None:
        super().__init__(tableau, field)
        self._compiled = _compiled(_taped_step, tableau, field)
        self._begin: tuple[float, Tensor, float] | None = None

    def begin(self, t: Any, y: Tensor, derivative: Tensor | None = None, jump: float = 0.0) -> None:
        self._begin = (t, y, jump)

    def attempt(self, t: Any, h: Any, y: Tensor, jump: float = 0.0, end: Any = None) -> Tensor:
        assert self._begin is not None
        self._start = (t, h, y, jump)
        self._end_time = t + h if end is None else end
        if jump or self._begin[2] or isinstance(t, Tensor):
            return self._eager()
        y1 = _call(self._compiled, self.field.f, self.field.args, y, _scalar(t), _scalar(h))
        self.field.counts.nfe += self.coefficients.needed
        self._stages = [y1]  # stands for the whole step where someone asks which leaves f reached
        state: Tensor = y1
        return state

    def interpolate(self, thetas: Any, derivative: bool = False) -> Tensor:
        self._eager()
        return super().interpolate(thetas, derivative)

    def _eager(self) -> Tensor:
        assert self._begin is not None
        t, h, y, jump = self._start
        super().begin(self._begin[0], self._begin[1], jump=self._begin[2])
        return super().attempt(t, h, y, jump, self._end_time)
