"""How Julia gets at a field: as a program of its own, or by calling back; found once for each field and signature."""

from __future__ import annotations

import contextlib
import copy
import threading
import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from pynode.backends import Request
from pynode.dependencies import Dependencies
from pynode.errors import GradientError
from pynode.julia.callback import CallbackRoute
from pynode.julia.capture import NotCapturable, capture
from pynode.julia.emit import Program, emit
from pynode.julia.emitted import EmittedRoute, LoadedProgram
from pynode.julia.runtime import Julia
from pynode.julia.watch import Watch
from pynode.problem import ODEProblem
from pynode.solution import Counts


class CallbackWarning(UserWarning):
    """A field could not be captured: Julia calls torch back for every evaluation, which is slower."""


class Route(Protocol):
    """A field as Julia knows it."""

    number: int
    captured: bool
    inputs: list[Tensor]
    used: list[bool]

    def prepare(self) -> None:
        """Before Julia evaluates the field."""

    def vector(self) -> Tensor:
        """The parameter vector."""
        ...

    def failed(self) -> BaseException:
        """What Python code that Julia had called raised."""
        ...


@dataclass
class Capture:
    """What a field was captured as; ``program`` is None where it cannot be. ``used`` tells which of the tensors of the
    parameter vector the field depends on."""

    program: Program | None
    used: list[bool]
    loaded: dict[int, LoadedProgram] = field(default_factory=dict)


@dataclass
class Entry:
    """What is known of a field under a signature, as long as ``watch`` sees no change.

    ``held`` keeps the arguments alive whose identities are in the signature; ``fixed`` are tensors that are part of a
    program, not of the parameter vector, and ``versions`` how often they had been written into.
    """

    signature: Any
    watch: Watch
    held: list[Any]
    fixed: list[Tensor]
    versions: list[int]
    dependencies: Dependencies
    capture: Capture | None = None
    #: What repeated solves go by (:mod:`pynode.julia.lanes`).
    lanes: list[Any] = field(default_factory=list)

    def current(self) -> bool:
        """Whether the field is still what it was."""
        return self.versions == [x._version for x in self.fixed] and self.watch.unchanged()


_ENTRIES: weakref.WeakKeyDictionary[Any, list[Entry]] = weakref.WeakKeyDictionary()
_KEPT = 8  # signatures of one field, such as the sizes of batches

_TRACING = threading.RLock()  # torch's tracers patch torch itself

_PROGRAMS: dict[tuple[str, int], LoadedProgram] = {}
_FORCED: list[str] = []
_ANNOUNCED: weakref.WeakSet[Any] = weakref.WeakSet()


def entries_of(f: Any) -> Sequence[Entry]:
    """What is known of a field, by signature; nothing while fields are called back."""
    if _FORCED:
        return ()
    try:
        return _ENTRIES.get(f, ())
    except TypeError:  # no weak reference, or no hash
        return ()


@contextlib.contextmanager
def callbacks() -> Iterator[None]:
    """Within it, Julia calls torch back for every field, also for those that could be captured."""
    _FORCED.append("callback")
    try:
        yield
    finally:
        _FORCED.pop()


def dependencies_of(
    problem: ODEProblem, counts: Counts, params: Iterable[Tensor] | None, allow_unused: bool, jump: float
) -> Dependencies:
    """The tensors a gradient is owed to: those found before, where nothing that ``f`` reaches has changed."""
    if params is not None or not _weakly(problem.f):
        return Dependencies(problem, counts, params, allow_unused, jump)
    signature = _signature(problem, allow_unused, jump)
    entries = _ENTRIES.setdefault(problem.f, [])
    for entry in entries:
        if entry.signature == signature and entry.current():
            return _renewed(entry, problem)
    entries[:] = [x for x in entries if x.signature != signature][-_KEPT + 1 :]
    dependencies = Dependencies(problem, counts, None, allow_unused, jump)
    # What is kept here must hold neither the field, which would never be forgotten, nor this solve's arguments, whose
    # history would not be.
    given = {id(x) for x in problem.arguments.tensors}
    data = problem.arguments.values(problem.layout.dtype, problem.layout.device)
    given |= {id(x) for x in data}
    held = [x for x in problem.arguments.leaves if id(x) not in given]
    watch = Watch([problem.f, *held])
    inputs = {id(x) for x in (*dependencies.parameters, *problem.arguments.tensors)}
    fixed = [x for x in watch.tensors if id(x) not in inputs and not x.is_inference()]
    lasting = copy.copy(dependencies)
    lasting.problem, lasting.arguments = None, []  # type: ignore[assignment]
    entry = Entry(signature, watch, held, fixed, [x._version for x in fixed], lasting)
    entries.append(entry)
    return _renewed(entry, problem)


def _renewed(entry: Entry, problem: ODEProblem) -> Dependencies:
    found = copy.copy(entry.dependencies)
    found.problem = problem
    found.arguments = problem.arguments.tensors
    found.known = entry
    return found


def _weakly(f: Any) -> bool:
    try:
        weakref.ref(f)
    except TypeError:
        return False
    # What compares by value would share what is known of one with another.
    return getattr(type(f), "__eq__", None) is getattr(object, "__eq__")  # noqa: B009


def _signature(problem: ODEProblem, allow_unused: bool, jump: float) -> Any:
    layout, cast = problem.layout, problem.autocast
    data = {id(x) for x in problem.arguments.values(layout.dtype, layout.device)}
    leaves = [
        (tuple(x.shape), x.dtype, x.device, x.requires_grad)
        if isinstance(x, Tensor) and (x.requires_grad or id(x) in data)
        else (id(x), x if isinstance(x, int | float | str | bool) else None)
        for x in problem.arguments.leaves
    ]
    return (
        (layout.template, layout.shapes, layout.dtypes, layout.device, problem.cost_layout is None),
        (cast.enabled, cast.dtype, allow_unused, jump, torch.is_inference_mode_enabled()),
        leaves,
    )


def route_for(engine: Julia, request: Request) -> Route:
    """The route of a request's field."""
    problem = request.problem
    dependencies = request.dependencies
    if dependencies is None and not torch.is_inference_mode_enabled():
        # The program is that of a solve with gradients, so that evaluating a model while training it costs no other.
        # Where that cannot be, all tensors are constants: nothing is differentiated here.
        with problem.autocast(), contextlib.suppress(GradientError):
            dependencies = dependencies_of(problem, Counts(), None, True, 0.0)
    data = problem.arguments.values(problem.layout.dtype, problem.layout.device)
    inputs = data if dependencies is None else [*dependencies.arguments, *dependencies.parameters, *data]
    entry: Entry | None = None if dependencies is None else dependencies.known
    captured = None if entry is None else entry.capture
    if captured is None:
        with _TRACING:
            captured = (entry and entry.capture) or _captured(problem, dependencies)
            if entry is not None:
                entry.capture = captured
    if captured.program is None or _FORCED:
        return CallbackRoute(engine, problem, dependencies)
    device = 0 if problem.layout.device.type == "cpu" else 1
    program = _loaded(engine, captured, problem, inputs, device)
    route = EmittedRoute(program, captured.program.constants, inputs, captured.used)
    route.entry = entry
    return route


def _captured(problem: ODEProblem, dependencies: Dependencies | None) -> Capture:
    try:
        found = capture(problem, dependencies, data=True)
        array = "Array" if problem.layout.device.type == "cpu" else "CuArray"
        program = emit(found, array)
    except NotCapturable as refusal:
        f = problem.f
        if not _weakly(f) or f not in _ANNOUNCED:
            if _weakly(f):
                _ANNOUNCED.add(f)
            warnings.warn(f"Julia calls torch back for this field. {refusal}", CallbackWarning, stacklevel=6)
        return Capture(None, [])
    outputs: Any = found.graphs["vjp_p"].graph.output_node().args[0]
    return Capture(program, [x is not None for x in outputs])


def _loaded(engine: Julia, captured: Capture, problem: ODEProblem, inputs: list[Tensor], device: int) -> LoadedProgram:
    if device not in captured.loaded:
        assert captured.program is not None
        key = (captured.program.source, device)
        if key not in _PROGRAMS:
            size = sum(x.numel() for x in inputs)
            layout = problem.layout
            _PROGRAMS[key] = LoadedProgram(engine, captured.program.source, layout.dtype, layout.size, size, device)
        captured.loaded[device] = _PROGRAMS[key]
    return captured.loaded[device]
