"""Which tensors a field's gradient is owed to.

``f`` is evaluated once under autograd and its graph is walked to the leaves, so that parameters reached through
closures and globals count like a module's own. Tensors that ``f`` captured and that have a history of their own
(a hypernetwork's output, an encoded input) are found by looking where Python keeps captured objects.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from pynode.errors import GradientError, explain
from pynode.problem import ODEProblem
from pynode.solution import Counts

_LIMIT = 10_000  # captured objects looked at before giving up


class Dependencies:
    """The tensors, beside state and time, that a field depends on.

    Attributes
    ----------
    arguments : list of Tensor
        Differentiable tensors of ``args``.
    parameters : list of Tensor
        Everything else: module parameters, captured leaves and captured tensors with a history.
    derivative : Tensor or None
        ``f(t0, y0)`` of the probing evaluation, without its graph; None where no probe was needed.
    """

    def __init__(self, problem: ODEProblem, counts: Counts, params: Iterable[Tensor] | None) -> None:
        self.problem = problem
        self.arguments = problem.arguments.tensors
        self.explicit = params is not None
        given = list(params) if params is not None else []
        for index, param in enumerate(given):
            if not isinstance(param, Tensor) or not param.requires_grad:
                what = f"requires_grad={param.requires_grad}" if isinstance(param, Tensor) else type(param).__name__
                raise GradientError(
                    explain(f"params[{index}] has {what}", "tensors that require a gradient", "drop it from params=")
                )
        modules = [x for x in (problem.f, *problem.arguments.leaves) if isinstance(x, torch.nn.Module)]
        #: Parameters of which at least one must be reached, or the gradient would be silently zero.
        self.owed = given or [p for module in modules for p in module.parameters() if p.requires_grad]
        self.derivative, direct, outer = self._probe(counts)
        if self.explicit:
            self.parameters = given
        else:
            candidates = list(self.owed)
            if not isinstance(problem.f, torch.nn.Module):
                candidates += [x for x in captured_tensors((problem.f,)) if x.is_leaf]
            above = _leaves_above(outer)
            captured = self._captured(outer, above, direct)
            hidden = {id(x) for x in above}
            reached = {id(x) for x in direct}
            # A leaf above a captured tensor gets its gradient through that tensor; taken directly as well it
            # would be counted twice.
            leaves = [x for x in (*candidates, *direct) if id(x) in reached or id(x) not in hidden]
            self.parameters = list({id(x): x for x in (*leaves, *captured)}.values())
        taken = {id(x) for x in self.arguments}
        self.parameters = [x for x in self.parameters if id(x) not in taken]
        self._known = {id(x) for x in self.parameters}
        self._outer_nodes = {node for node, _ in outer}

    def _probe(self, counts: Counts) -> tuple[Tensor, list[Tensor], set[tuple[Any, int]]]:
        problem = self.problem
        with torch.enable_grad():
            own = [x.detach().requires_grad_() for x in (problem.y0, *self.arguments)]
            mark = own[0].view_as(own[0])
            field = problem.field(counts).with_args(problem.arguments.replaced(own[1:]))
            derivative = field.check_pure(field.time(problem.times[0]), mark)
        assert mark.grad_fn is not None
        direct, outer = _walk(derivative, mark.grad_fn._sequence_nr(), {id(x) for x in own})
        return derivative.detach(), direct, outer

    def _captured(self, outer: set[tuple[Any, int]], above: list[Tensor], direct: list[Tensor]) -> list[Tensor]:
        """The captured tensors with a history, each found as an object."""
        if not outer:
            return []
        problem = self.problem
        found = {(x.grad_fn, x.output_nr): x for x in captured_tensors((problem.f, *problem.arguments.leaves))}
        missing = [node for node, number in outer if (node, number) not in found]
        if missing:
            raise GradientError(
                explain(
                    f"f depends on a tensor computed outside it (by {missing[0].name()}) that pynode cannot find in its "
                    "closure, globals or attributes",
                    "every differentiable input of f to be reachable",
                    "pass it through args=(tensor,), or name it in params=[tensor]",
                )
            )
        both = {id(x) for x in above} & {id(x) for x in direct}
        if both:
            shape = next(tuple(x.shape) for x in direct if id(x) in both)
            raise GradientError(
                explain(
                    f"f uses a parameter of shape {shape} both directly and through a captured tensor computed from it",
                    "one way from each parameter into f, or its gradient would be counted twice",
                    "pass the computed tensor through args=(tensor,)",
                )
            )
        return [found[key] for key in outer]

    def check_reached(self, derivative: Tensor, own: Iterable[Tensor]) -> None:
        """Raise GradientError if a later evaluation of ``f`` reaches a leaf that is not among the parameters."""
        if self.explicit:
            return
        known = self._known | {id(x) for x in own}
        direct, _ = _walk(derivative, -1, known, self._outer_nodes | {x.grad_fn for x in self.parameters})
        if direct:
            raise GradientError(
                explain(
                    f"f reaches a parameter of shape {tuple(direct[0].shape)} that it did not reach at the initial time "
                    "and that pynode could not find in its closure, globals or attributes",
                    "to know every parameter before the solve",
                    "name all parameters in params=[...]",
                )
            )

    def check_owed(self, gradients: Iterable[Tensor | None]) -> None:
        """Raise GradientError where a gradient that was asked for does not exist.

        Every tensor of an explicit ``params=`` must have received one, and at least one of a module's parameters.
        """
        got = {id(x): g for x, g in zip(self.parameters, gradients, strict=True)}
        without = [x for x in self.owed if got.get(id(x)) is None]
        if without and (self.explicit or len(without) == len(self.owed)):
            raise GradientError(
                explain(
                    f"a parameter of shape {tuple(without[0].shape)} requires a gradient but f's result does not depend on "
                    "it in autograd's graph",
                    "f to compute with its parameters in differentiable torch operations",
                    "look for .detach(), .item(), numpy or torch.no_grad() inside f, or set requires_grad=False",
                )
            )


def captured_tensors(roots: Iterable[Any]) -> Iterator[Tensor]:
    """Tensors requiring a gradient that are reachable from Python objects: closures, defaults, globals a function
    names, bound objects, partials, containers, modules and plain attributes."""
    stack, seen, looked = list(roots), set(), 0
    while stack and looked < _LIMIT:
        thing = stack.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        looked += 1
        if isinstance(thing, Tensor):
            if thing.requires_grad:
                yield thing
        elif isinstance(thing, torch.nn.Module):
            stack += [*thing.parameters(recurse=False), *thing.buffers(recurse=False), *thing.children()]
            stack += [v for k, v in vars(thing).items() if not k.startswith("_") or isinstance(v, Tensor)]
        elif isinstance(thing, types.FunctionType):
            code = thing.__code__
            stack += [cell.cell_contents for cell in thing.__closure__ or () if _filled(cell)]
            stack += [*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
            stack += [thing.__globals__[name] for name in code.co_names if name in thing.__globals__]
        elif isinstance(thing, types.MethodType):
            stack += [thing.__self__, thing.__func__]
        elif isinstance(thing, functools.partial):
            stack += [thing.func, *thing.args, *thing.keywords.values()]
        elif isinstance(thing, dict):
            stack += thing.values()
        elif isinstance(thing, list | tuple | set | frozenset):
            stack += thing
        elif not isinstance(thing, type | types.ModuleType | str | bytes | int | float | complex | torch.dtype):
            wrapped = getattr(thing, "__wrapped__", None)
            if wrapped is not None:
                stack.append(wrapped)
            attributes = getattr(thing, "__dict__", None)
            if isinstance(attributes, dict):
                stack += attributes.values()


def _filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _walk(
    output: Tensor, mark: int, own: set[int], stop: Iterable[Any] = ()
) -> tuple[list[Tensor], set[tuple[Any, int]]]:
    """Leaves that ``output`` depends on (without ``own``), and the edges into graph built before ``mark``."""
    leaves: dict[int, Tensor] = {}
    outer: set[tuple[Any, int]] = set()
    stack = [(output.grad_fn, output.output_nr)]
    seen = set(stop)
    while stack:
        node, number = stack.pop()
        if node is None:
            continue
        if node.name() == "torch::autograd::AccumulateGrad":
            if id(node.variable) not in own:
                leaves[id(node.variable)] = node.variable
        elif node in seen:
            continue
        elif node._sequence_nr() < mark:
            outer.add((node, number))
        else:
            seen.add(node)
            stack += node.next_functions
    return list(leaves.values()), outer


def _leaves_above(outer: set[tuple[Any, int]]) -> list[Tensor]:
    """Leaves of the graph above the given edges."""
    leaves: dict[int, Tensor] = {}
    stack = [node for node, _ in outer]
    seen: set[Any] = set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "torch::autograd::AccumulateGrad":
            leaves[id(node.variable)] = node.variable
        stack += [parent for parent, _ in node.next_functions]
    return list(leaves.values())
