"""Which tensors a field's gradient is owed to.

``f`` is evaluated once under autograd and its graph is walked to the leaves, so that parameters reached through
closures and globals count like a module's own. Tensors that ``f`` captured and that have a history of their own
(a hypernetwork's output, an encoded input) are found by looking where Python keeps captured objects.
"""

from __future__ import annotations

import contextlib
import functools
import math
import types
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pynode import wrapped_layers
from pynode.autograd_graph import Edge, above, nodes, unknown_leaf, walk
from pynode.errors import GradientError, explain
from pynode.inference_tensors import explained
from pynode.problem import Field, ODEProblem, check_pure
from pynode.read_parameters import ReadParameters
from pynode.solution import Counts

_LIMIT = 10_000  # captured objects looked at before giving up
_INTERNAL = frozenset(vars(torch.nn.Module()))  # a module's own attributes: hooks and registries


class Dependencies:
    """The tensors, beside state and time, that a field depends on.

    Attributes
    ----------
    arguments : list of Tensor
        Differentiable tensors of ``args``.
    parameters : list of Tensor
        Everything else: module parameters, captured leaves and captured tensors with a history.
    derivative : Tensor or None
        ``f(t0, y0)`` of the probing evaluation, without its graph; None where the dependencies were known.

    ``jump`` is infinity in the direction of integration where ``f`` is to be evaluated just after ``t0``.
    """

    def __init__(
        self,
        problem: ODEProblem,
        counts: Counts,
        params: Iterable[Tensor] | None,
        allow_unused: bool = False,
        jump: float = 0.0,
    ) -> None:
        self.problem = problem
        self.allow_unused = allow_unused
        self.arguments = problem.arguments.tensors
        self.explicit = params is not None
        given = list(params) if params is not None else []
        for index, param in enumerate(given):
            if not isinstance(param, Tensor) or not param.requires_grad:
                what = f"requires_grad={param.requires_grad}" if isinstance(param, Tensor) else type(param).__name__
                raise GradientError(
                    explain(f"params[{index}] has {what}", "tensors that require a gradient", "drop it from params=")
                )
        f, *costs = problem.callables
        modules = [
            [x for x in group if isinstance(x, torch.nn.Module)] for group in ((f, *problem.arguments.leaves), costs)
        ]
        #: Groups of parameters, f's and a running cost's, of each of which at least one must be reached, or the
        #: gradient would be silently zero.
        self.groups = [given] if given else [_parameters(group) for group in modules]
        self.owed = [x for group in self.groups for x in group]
        # Looked for before f runs: what f leaves behind in itself (weight_norm's product) is none of its inputs.
        seen = []
        if not self.explicit or wrapped_layers.talking():
            seen = list(captured_objects((problem.f, *problem.arguments.leaves)))
        search = [] if self.explicit else [x for x in seen if isinstance(x, Tensor)]
        found = {(x.grad_fn, x.output_nr): x for x in search if not x.is_leaf}
        read = ReadParameters([*search, *self.owed, *self.arguments])
        self.derivative: Tensor | None
        with wrapped_layers.refused(seen):
            self.derivative, direct, outer = self._probe(counts, jump, found)
        read.check_solved()
        reached = {id(x) for x in direct}
        if self.explicit:
            self.parameters = given
        else:
            higher, nested = above(outer)
            captured = self._captured(outer, found, [x for x in higher if id(x) in reached], nested)
            hidden = {id(x) for x in higher}
            candidates = [*self.owed, *(x for x in search if x.is_leaf)]
            # A leaf above a captured tensor gets its gradient through that tensor; taken directly as well it
            # would be counted twice.
            leaves = [x for x in (*candidates, *direct) if id(x) in reached or id(x) not in hidden]
            self.parameters = list({id(x): x for x in (*leaves, *captured)}.values())
            reached |= {id(x) for x in captured}
        #: Where a backend keeps what it found out about the same field earlier.
        self.known: Any = None
        #: Identities of the parameters that f reached in the probing evaluation.
        self.reached = reached
        # f gets the tensors in args as arguments; whether it reaches one of them on another way too has been seen.
        taken = {id(x) for x in self.arguments} - reached
        self.parameters = [x for x in self.parameters if id(x) not in taken]
        self.groups = [[x for x in group if id(x) not in taken] for group in self.groups]
        self.owed = [x for group in self.groups for x in group]
        self._known = {id(x) for x in self.parameters}
        # Nodes behind which no look is needed: those of what f depends on.
        self._ends = {node for node, _ in outer} | {x.grad_fn for x in self.parameters}

    def _probe(self, counts: Counts, jump: float, found: Container[Edge]) -> tuple[Tensor, list[Tensor], set[Edge]]:
        problem = self.problem
        with torch.enable_grad():
            own = [x.detach().requires_grad_() for x in (problem.y0, *self.arguments)]
            field = problem.field(counts).with_args(problem.arguments.replaced(own[1:]))
            time = field.time(problem.times[0])
            if jump:
                time = torch.nextafter(time, torch.full_like(time, jump))
            self._time = time
            start = own[0].clone()  # neither leaf nor view, so that writing into it is seen below, not by torch
            with explained("gradients"):
                derivative = check_pure(field, time, start)
            assert start.grad_fn is not None
            known = {id(x) for x in own}
            direct, outer = walk([derivative], known, found, mark=start.grad_fn._sequence_nr())
            if any(edge not in found for edge in outer):
                # Numbers do not tell what another thread computed (torch's backward threads among them). What f did
                # not compute itself is in the graph of a second evaluation again.
                again = field(time, own[0].clone())
                direct, outer = walk([derivative], known, found, shared=nodes(again))
        # A copy, as f may write its next result into the same memory.
        return derivative.detach().clone(), direct, outer

    @staticmethod
    def _captured(outer: set[Edge], found: dict[Edge, Tensor], both: list[Tensor], nested: set[Edge]) -> list[Tensor]:
        """The captured tensors with a history, each found as an object.

        ``both``: leaves that ``f`` reaches directly and through one of them; ``nested``: those above another one.
        """
        missing = [node for node, number in outer if (node, number) not in found]
        if missing:
            raise GradientError(
                explain(
                    f"f depends on a tensor computed outside it (by {missing[0].name()}) that pynode cannot find in "
                    "its closure, globals or attributes",
                    "every differentiable input of f to be reachable",
                    "pass it through args=(tensor,), or name it in params=[tensor]",
                )
            )
        twice = [*both, *(found[key] for key in nested)]
        if twice:
            what = "parameter" if twice[0].is_leaf else "captured tensor"
            raise GradientError(
                explain(
                    f"f uses a {what} of shape {tuple(twice[0].shape)} both directly and through a captured tensor "
                    "computed from it",
                    f"one way from each {what} into f, or its gradient would be counted twice",
                    "pass the computed tensor through args=(tensor,)",
                )
            )
        return [found[key] for key in outer]

    def check_reached(self, outputs: Iterable[Tensor], own: Iterable[Tensor]) -> None:
        """Raise GradientError if later evaluations of ``f`` reach a leaf that is not among the parameters."""
        if self.explicit:
            return
        unknown = unknown_leaf(outputs, self._known, {id(x) for x in own}, self._ends)
        if unknown is not None:
            raise GradientError(
                explain(
                    f"f reaches a parameter of shape {tuple(unknown.shape)} that it did not reach at the initial "
                    "time and that pynode could not find in its closure, globals or attributes",
                    "to know every parameter before the solve",
                    "name all parameters in params=[...]",
                )
            )

    def check_repeated(self, field: Field) -> None:
        """Raise GradientError unless ``f`` has the value at the initial time that it had before the solve, to half the
        digits of its precision: of its own size, or of a rate that moves the state by its size over the span."""
        problem, before = self.problem, self.derivative
        assert before is not None
        y0, times = problem.y0.detach(), problem.times
        with torch.no_grad():
            again = field(self._time, y0)
            rate = y0.abs().max() / abs(times[-1] - times[0])
            size = torch.stack([before.abs().max(), again.abs().max(), rate]).max().item()
            distance = (again - before).abs().max().item()
        if not distance <= math.sqrt(problem.autocast.eps) * size:
            raise GradientError(
                explain(
                    f"f at the initial time, evaluated again for the gradient, was {distance:.3g} from what it had "
                    "been in the forward solve: f gave other values than before",
                    "the same f in the backward pass as in the solve",
                    "take randomness out of f (.eval() for dropout, noise passed through args=), change neither f nor "
                    "what it uses before the backward pass, or use DirectAdjoint()",
                )
            )

    def zeros(self) -> list[Tensor | None]:
        """The parameters' gradients where no evaluation of ``f`` counts for the loss."""
        owed = {id(x) for x in self.owed} | self.reached
        return [torch.zeros_like(x) if id(x) in owed else None for x in self.parameters]

    def owed_gradients(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The parameters' gradients, after raising GradientError where one that was asked for does not exist.

        Every tensor of an explicit ``params=`` must have received one, and at least one of a module's parameters;
        with ``allow_unused`` it is zero instead.
        """
        if self.allow_unused:
            zeros = zip(self.parameters, gradients, strict=True)
            return [torch.zeros_like(x) if g is None else g for x, g in zeros]
        got = {id(x): g for x, g in zip(self.parameters, gradients, strict=True)}
        for group in self.groups:
            without = [x for x in group if got.get(id(x)) is None]
            if not without or not (self.explicit or len(without) == len(group)):
                continue
            raise GradientError(
                explain(
                    f"a parameter of shape {tuple(without[0].shape)} requires a gradient but f's result does not "
                    "depend on it in autograd's graph",
                    "f to compute with its parameters in differentiable torch operations",
                    "look for .detach(), .item(), numpy or torch.no_grad() inside f, or set requires_grad=False",
                )
            )
        return list(gradients)


def without_communication(problem: ODEProblem, look: bool) -> contextlib.AbstractContextManager[None]:
    """Within it, UnsupportedError where ``f`` calls a layer that communicates, if ``look``: where no dependencies are
    looked for, which would see it."""
    look = look and wrapped_layers.talking()
    reachable = captured_objects((problem.f, *problem.arguments.leaves)) if look else ()
    return wrapped_layers.refused(reachable, adjoint=False)


def _parameters(modules: Iterable[torch.nn.Module]) -> list[Tensor]:
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def captured_tensors(roots: Iterable[Any]) -> Iterator[Tensor]:
    """Tensors requiring a gradient that are reachable from Python objects: see :func:`captured_objects`."""
    return (x for x in captured_objects(roots) if isinstance(x, Tensor))


def captured_objects(roots: Iterable[Any]) -> Iterator[Tensor | torch.nn.Module]:
    """Modules, and tensors requiring a gradient, that are reachable from Python objects: closures, defaults, globals a
    function names, bound objects, partials, containers, modules, plain attributes, and the methods of callable
    objects."""
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
            yield thing
            stack += [*thing.parameters(recurse=False), *thing.buffers(recurse=False), *thing.children()]
            stack += [value for name, value in vars(thing).items() if name not in _INTERNAL]
            stack += _members(type(thing), ("forward",))
        elif isinstance(thing, types.FunctionType):
            stack += [cell.cell_contents for cell in thing.__closure__ or () if _filled(cell)]
            stack += [*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
            stack += _globals(thing)
            stack += [getattr(thing, "__wrapped__", None)]
        elif isinstance(thing, types.MethodType):
            stack += [thing.__self__, thing.__func__]
            if isinstance(thing.__func__, types.FunctionType):
                stack += _members(type(thing.__self__), _names(thing.__func__))
        elif isinstance(thing, functools.partial):
            stack += [thing.func, *thing.args, *thing.keywords.values()]
        elif isinstance(thing, dict):
            stack += thing.values()
        elif isinstance(thing, list | tuple | set | frozenset):
            stack += thing
        elif not isinstance(thing, type | types.ModuleType | str | bytes | int | float | complex | torch.dtype | None):
            stack += [getattr(thing, "__wrapped__", None)]
            attributes = getattr(thing, "__dict__", None)
            if isinstance(attributes, dict):
                stack += attributes.values()
            stack += _members(type(thing), ("__call__",))


def _members(cls: type, names: Iterable[str]) -> Iterator[Any]:
    """Functions and tensors that a class defines under the given names, and under those that these functions use.
    Libraries' classes are left out."""
    own = [base for base in reversed(cls.__mro__) if base.__module__.partition(".")[0] not in ("builtins", "torch")]
    if not own:
        return
    table = {name: value for base in own for name, value in vars(base).items()}
    wanted = list(names)
    while wanted:
        member = table.pop(wanted.pop(), None)
        if isinstance(member, staticmethod | classmethod):
            member = member.__func__
        elif isinstance(member, property):
            member = member.fget
        if isinstance(member, types.FunctionType):
            wanted += _names(member)
            yield member
        elif isinstance(member, Tensor):
            yield member


def _names(function: types.FunctionType) -> dict[str, None]:
    """Globals and attributes that a function, or one inside it, names, in an order that every process finds."""
    names: dict[str, None] = {}
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        names.update(dict.fromkeys(code.co_names))
        codes += [x for x in code.co_consts if isinstance(x, types.CodeType)]
    return names


def _globals(function: types.FunctionType) -> list[Any]:
    """The globals a function names, and what it names in imported modules."""
    names = _names(function)
    named = [function.__globals__[name] for name in names if name in function.__globals__]
    modules = [x for x in named if isinstance(x, types.ModuleType) and x.__name__.partition(".")[0] != "torch"]
    return named + [vars(module)[name] for module in modules for name in names if name in vars(module)]


def _filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True
