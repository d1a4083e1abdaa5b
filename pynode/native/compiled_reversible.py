"""Reversible steps through ``torch.compile``: one graph for a step, one for a step run backward, and one for a step
with its pullback."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from pynode.layout import Layout
from pynode.native.checkpoints import State
from pynode.native.compiled import Inputs, bound, call, compiled, scalar, stage
from pynode.native.reversible import AsynchronousLeapfrog, Evaluate, Reversible, ReversibleHeun
from pynode.problem import Field

Method = type[Reversible]


def _evaluation(f: Any, layout: Layout, args: tuple[Any, ...], y: Tensor) -> Evaluate:
    # What f returns may be a tensor of its own, which is not to be carried on.
    return lambda time, state: stage(f, layout, args, time.to(y), state).clone()


def _step(method: Method, layout: Layout) -> Callable[..., Any]:
    def step(f: Any, args: tuple[Any, ...], t: Tensor, t1: Tensor, start: State) -> State:
        return method.step(_evaluation(f, layout, args, start[0]), t, t1, t1 - t, start)

    return step


def _back(method: Method, layout: Layout) -> Callable[..., Any]:
    def back(f: Any, args: tuple[Any, ...], t: Tensor, t1: Tensor, end: State) -> State:
        return method.back(_evaluation(f, layout, args, end[0]), t, t1, t1 - t, end)

    return back


def _pull(method: Method, layout: Layout) -> Callable[..., Any]:
    taken = _step(method, layout)

    def pull(
        f: Any,
        args: tuple[Any, ...],
        names: tuple[str, ...],
        parameters: tuple[Tensor, ...],
        t: Tensor,
        t1: Tensor,
        start: State,
        adjoints: State,
    ) -> tuple[Tensor, State, State]:
        def ends(start: State, parameters: tuple[Tensor, ...]) -> State:
            end: State = taken(bound(f, names, parameters), args, t, t1, start)
            return end

        end, pulled, *_ = torch.func.vjp(ends, start, parameters)
        start_gradients, gradients = pulled(adjoints)
        return end[0], start_gradients, gradients

    return pull


class CompiledReversible(Reversible):
    """Steps, taped or not, in compiled graphs. A step at a jump of the field, one whose times have gradients and the
    first one behind a start, where what is carried is the field's value, are pulled back eagerly."""

    method: ClassVar[Method]

    #: The coming step is one to take eagerly, for autograd to look at.
    _by_eye: bool = False

    def __init__(self, field: Field, interpolation: str = "hermite") -> None:
        super().__init__(field, interpolation)
        self._inputs = Inputs()

    def attempt(self, t: Any, h: Any, y: Tensor, jump: float = 0.0, end: Any = None) -> Tensor:
        if self._by_eye or (jump and self.at_ends) or isinstance(h, Tensor):
            self._by_eye = False
            return super().attempt(t, h, y, jump, end)
        t1 = t + h if end is None else end
        graph = compiled(_step, self.method, self.field)
        found = call(graph, self.field.f, self.field.args, scalar(t), scalar(t1), self._whole(y))
        self.field.counts.nfe += 1
        y1, *carried = found
        return self._attempted(t, h, y, (y1, *carried[:-1], self.field.watched(carried[-1])))

    def reverse(self, t: float, t1: float, end: State, jump: float = 0.0, jump_end: float = 0.0) -> State:
        if jump and self.at_ends:
            return super().reverse(t, t1, end, jump, jump_end)
        graph = compiled(_back, self.method, self.field)
        found: State = call(graph, self.field.f, self.field.args, scalar(t), scalar(t1), end)
        self.field.counts.nfe += 1
        return found

    def looked(self, gradients: Sequence[Tensor | None]) -> None:
        """As of :class:`pynode.native.compiled.CompiledTapedRungeKutta`."""
        self._inputs.looked(compiled(_pull, self.method, self.field), gradients)

    def pull(
        self, t: float, t1: float, start: State, adjoints: Sequence[Tensor | None], inputs: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor | None], Sequence[Tensor]] | None:
        """As of :class:`pynode.native.compiled.CompiledTapedRungeKutta`."""
        if all(adjoint is None for adjoint in adjoints):
            return None
        graph = compiled(_pull, self.method, self.field)
        found = None
        if len(start) > 1:
            # Nothing is known yet of what is carried at the end of the last step, and None stands for zero.
            given = (*adjoints, *[None] * (len(start) - len(adjoints)))
            seeds = tuple(
                torch.zeros_like(x) if adjoint is None else adjoint for x, adjoint in zip(start, given, strict=True)
            )
            found = self._inputs.call(graph, self.field, inputs, scalar(t), scalar(t1), start, seeds)
        if found is None:
            # One step of a solve: compiling a graph for it alone would take longer than the rest.
            self._by_eye = len(start) == 1 or self._inputs.unknown(graph, self.field, inputs)
            return None
        self.field.counts.nfe += 1
        self.field.counts.nvjp += 1
        y1, start_gradients, gradients = found
        return y1, list(start_gradients), gradients


class CompiledReversibleHeun(CompiledReversible, ReversibleHeun):
    """Reversible Heun's steps, one compiled graph each."""

    method = ReversibleHeun

    def begin(self, t: Any, y: Tensor, derivative: Tensor | None = None, jump: float = 0.0) -> None:
        super().begin(t, y, derivative, jump)
        z, slope = self._carried
        self._carried = (z.clone(), slope)  # a graph given one tensor twice serves for no other steps


class CompiledAsynchronousLeapfrog(CompiledReversible, AsynchronousLeapfrog):
    """The asynchronous leapfrog's steps, one compiled graph each."""

    method = AsynchronousLeapfrog


COMPILED: dict[str, Method] = {
    cls.method.__name__: cls for cls in (CompiledReversibleHeun, CompiledAsynchronousLeapfrog)
}
