"""How Julia gets at a field: as a program of its own, or by calling back; found once for each field and signature."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from pynode.backends import Request
from pynode.capture.capturing import NotCapturable, capture
from pynode.dependencies import Dependencies
from pynode.errors import CallbackWarning
from pynode.julia.callback import CallbackRoute
from pynode.julia.emit import Program, emit
from pynode.julia.emitted import EmittedRoute, LoadedProgram
from pynode.julia.latest import Latest
from pynode.julia.runtime import Julia
from pynode.known_fields import Entry, entries_of, program_for, weakly
from pynode.problem import ODEProblem
from pynode.strict import is_strict, warn


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


#: For models made anew that are written alike. A program that falls out goes with the last field that has it.
_PROGRAMS: Latest[tuple[str, int], LoadedProgram] = Latest(256)
_FORCED: list[str] = []
_ANNOUNCED: weakref.WeakSet[Any] = weakref.WeakSet()


def known_entries(f: Any) -> Sequence[Entry]:
    """What is known of a field, by signature; nothing while fields are called back."""
    return () if _FORCED else entries_of(f)


@contextlib.contextmanager
def callbacks() -> Iterator[None]:
    """Within it, Julia calls torch back for every field, also for those that could be captured."""
    _FORCED.append("callback")
    try:
        yield
    finally:
        _FORCED.pop()


def route_for(engine: Julia, request: Request) -> Route:
    """The route of a request's field."""
    problem = request.problem
    captured, inputs, entry = program_for(problem, request.dependencies, "julia", _captured)
    if captured.program is None or _FORCED:
        return CallbackRoute(engine, problem, request.dependencies)
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
        if not weakly(f) or f not in _ANNOUNCED or is_strict():
            warn(f"Julia calls torch back for this field. {refusal}", CallbackWarning)
            if weakly(f):
                _ANNOUNCED.add(f)
        return Capture(None, [])
    outputs: Any = found.graphs["vjp_p"].graph.output_node().args[0]
    return Capture(program, [x is not None for x in outputs])


def _loaded(engine: Julia, captured: Capture, problem: ODEProblem, inputs: list[Tensor], device: int) -> LoadedProgram:
    if device not in captured.loaded:
        assert captured.program is not None
        source, layout, size = captured.program.source, problem.layout, sum(x.numel() for x in inputs)
        captured.loaded[device] = _PROGRAMS.get(
            (source, device), lambda: LoadedProgram(engine, source, layout.dtype, layout.size, size, device)
        )
    return captured.loaded[device]
