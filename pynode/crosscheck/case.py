"""The user's problem as something that can be solved and differentiated in many ways, and copied to float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pynode.dependencies import Dependencies, captured_tensors
from pynode.errors import InputError, PynodeError, explain
from pynode.layout import leaves_of, rebuild
from pynode.problem import Arguments, ODEProblem
from pynode.solution import Counts

if TYPE_CHECKING:
    from pynode.problems import Problem

#: What a solve computes, each flat, real, in float64: ``solution``, ``y0``, ``args[0]``, ``parameters.NAME``, ``t``.
#: All but the first are gradients of the loss.
Quantities = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """``f, y0, t, args``, a loss of the saved states, and the tensors the loss is differentiated by.

    ``inputs`` are those of ``args`` that require a gradient; ``parameters`` whatever else ``f`` depends on, by name;
    ``given`` the user's ``params=``.
    """

    f: Callable[..., Any]
    y0: Any
    t: Tensor
    args: tuple[Any, ...]
    loss: Callable[[Any], Tensor]
    inputs: list[Tensor]
    parameters: dict[str, Tensor]
    given: list[Tensor] | None
    problem: Problem | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Real dtype of the state."""
        leaf: Tensor = next(leaf for _, leaf in leaves_of(self.y0))
        return leaf.dtype.to_real()

    @property
    def count(self) -> int:
        """How many numbers the loss is differentiated by."""
        tensors = [*self.inputs, *self.parameters.values(), *(leaf for _, leaf in leaves_of(self.y0))]
        return sum(x.numel() * (2 if x.is_complex() else 1) for x in tensors)


def make_case(
    f: Callable[..., Any],
    y0: Any,
    t: Any,
    args: tuple[Any, ...],
    loss: Callable[[Any], Tensor],
    params: Iterable[Tensor] | None,
    problem: Problem | None = None,
) -> Case:
    """The case, after the checks of ``pynode.solve``.

    Raises
    ------
    InputError, FieldError, GradientError
        As ``pynode.solve`` does.
    """
    given = None if params is None else list(params)
    stated = ODEProblem(f, y0, t, args)
    with torch.enable_grad():
        found = Dependencies(stated, Counts(), given).parameters
    names = {id(x): name for name, x in f.named_parameters()} if isinstance(f, nn.Module) else {}
    parameters = {names.get(id(x), str(index)): x for index, x in enumerate(found)}
    return Case(f, y0, stated.t, args, loss, stated.arguments.tensors, parameters, given, problem)


Solver = Callable[[Case, Any, Tensor, tuple[Any, ...]], Any]
"""``solver(case, y0, t, args)``: the tree of states at ``t``, differentiable in everything."""


@dataclass(frozen=True)
class Gradient:
    """The states by a solver, the loss of them, and its gradient in the order of ``named``."""

    ys: Any
    loss: Tensor
    gradients: list[Tensor]


def differentiate(case: Case, solver: Solver) -> Gradient:
    """The states by ``solver``, and the gradient of the loss by autograd through it."""
    with torch.enable_grad():
        leaves = [_leaf(x) for _, x in leaves_of(case.y0)]
        inputs = [_leaf(x) for x in case.inputs]
        t = _leaf(case.t) if case.t.requires_grad else case.t
        args = Arguments(case.args).replaced(inputs)
        ys = solver(case, rebuild(case.y0, iter(leaves)), t, args)
        loss = case.loss(ys)
        if not isinstance(loss, Tensor) or loss.shape != () or loss.is_complex():
            found = f"a {type(loss).__name__}"
            if isinstance(loss, Tensor):
                found = f"a tensor of shape {tuple(loss.shape)} and {loss.dtype}"
            raise InputError(explain(f"loss(ys) is {found}", "a real tensor without dimensions", "sum or average it"))
        wanted = [*leaves, *inputs, *case.parameters.values(), *([t] if t.requires_grad else [])]
        computed = torch.autograd.grad(loss, wanted, allow_unused=True)
    gradients = [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, computed, strict=True)]
    return Gradient(ys, loss.detach(), gradients)


def named(case: Case, found: Gradient) -> Quantities:
    """States and gradients by name."""
    rest = iter(found.gradients)
    start = [next(rest) for _ in leaves_of(case.y0)]
    quantities = {"solution": _flat(leaf for _, leaf in leaves_of(found.ys)), "y0": _flat(start)}
    quantities |= {f"args[{i}]": _flat([next(rest)]) for i in range(len(case.inputs))}
    quantities |= {f"parameters.{name}": _flat([next(rest)]) for name in case.parameters}
    if case.t.requires_grad:
        quantities["t"] = _flat([next(rest)])
    return quantities


def group(name: str) -> str:
    """The column a quantity is shown in."""
    return name.partition(".")[0]


def loss_of(case: Case, solver: Solver) -> float:
    """The loss alone."""
    with torch.no_grad():
        return float(case.loss(solver(case, case.y0, case.t.detach(), case.args)))


@contextmanager
def displaced(case: Case, direction: Sequence[Tensor], step: float) -> Iterator[Case]:
    """The case with everything it is differentiated by displaced by ``step`` times ``direction``.

    Parameters are those of the user's own objects: they are displaced inside the context and restored to the bit.
    """
    rest = iter(direction)
    with torch.no_grad():
        y0 = rebuild(case.y0, iter([x.detach() + step * next(rest) for _, x in leaves_of(case.y0)]))
        inputs = [(x.detach() + step * next(rest)).requires_grad_() for x in case.inputs]
        kept = [x.data for x in case.parameters.values()]
        others = [x + step * next(rest) for x in kept]
        t = case.t
        if t.requires_grad:
            t = (t.detach() + step * next(rest)).requires_grad_()
    args = Arguments(case.args).replaced(inputs)
    try:
        for x, other in zip(case.parameters.values(), others, strict=True):
            x.data = other
        yield replace(case, y0=y0, t=t, args=args, inputs=inputs)
    finally:
        for x, old in zip(case.parameters.values(), kept, strict=True):
            x.data = old


def random_direction(case: Case, generator: torch.Generator) -> list[Tensor]:
    """A random direction in everything the loss is differentiated by, of each tensor's own size."""
    tensors = [*(x for _, x in leaves_of(case.y0)), *case.inputs, *case.parameters.values()]
    direction = [_random(x, generator) * (_rms(x) or 1.0) for x in tensors]
    if case.t.requires_grad:
        gap = case.t.detach().diff().abs().min().item()
        direction.append(_random(case.t, generator) * gap)
    return direction


def precise(case: Case) -> tuple[Case, str]:
    """The case in float64 and an empty note, or the case as it is and why it could not be copied."""
    if case.dtype == torch.float64:
        return case, ""
    try:
        copied = _copied(case)
        result = copied.f(copied.t[0].detach(), copied.y0, *copied.args)
        kinds = {leaf.dtype.to_real() for _, leaf in leaves_of(result, "f")}
        if kinds != {torch.float64}:
            raise TypeError(f"its copy returned {', '.join(map(str, kinds))}")
        # The loss may hold targets that only go with the model's own precision.
        still = [x.expand(len(copied.t), *x.shape) for _, x in leaves_of(copied.y0)]
        copied.loss(rebuild(copied.y0, iter(still)))
    except (RuntimeError, TypeError, ValueError, KeyError, PynodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return case, f"f cannot be copied to float64 ({reason}): the reference runs in {case.dtype}, no better than it"
    return copied, ""


def _copied(case: Case) -> Case:
    f = case.f
    if not isinstance(f, nn.Module) and any(True for _ in captured_tensors((f,))):
        raise TypeError("a function that captures tensors")
    memo: dict[int, Any] = {}
    # A loss or an argument may be a module as well; one memo keeps what they share shared.
    f, args, loss = copy.deepcopy((f, Arguments(case.args).replaced([_leaf(x) for x in case.inputs]), case.loss), memo)
    for thing in (f, loss, *(leaf for _, leaf in leaves_of(args, "args"))):
        if isinstance(thing, nn.Module):
            for x in (*thing.parameters(), *thing.buffers()):
                x.data = _widened(x.data)
    parameters = {name: memo[id(x)] for name, x in case.parameters.items()}
    for x in parameters.values():
        x.data = _widened(x.data)
    leaves = [
        _widened(x.detach()).requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x
        for _, x in leaves_of(args, "args")
    ]
    args = rebuild(args, iter(leaves))
    y0 = rebuild(case.y0, iter([_widened(x.detach()) for _, x in leaves_of(case.y0)]))
    t = case.t.detach().double().requires_grad_(case.t.requires_grad)
    given = None if case.given is None else list(parameters.values())
    return Case(f, y0, t, args, loss, Arguments(args).tensors, parameters, given, case.problem)


def _widened(x: Tensor) -> Tensor:
    if x.is_complex():
        return x.to(torch.complex128)
    return x.double() if x.is_floating_point() else x


def _leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    parts = []
    for x in tensors:
        x = x.detach()
        parts.append((torch.view_as_real(x.resolve_conj()) if x.is_complex() else x).reshape(-1).double().cpu())
    return torch.cat(parts)


def _random(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(device=x.device, dtype=x.dtype)


def _rms(x: Tensor) -> float:
    return math.sqrt(x.detach().abs().double().pow(2).mean().item()) if x.numel() else 0.0
