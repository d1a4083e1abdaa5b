"""What is known of a field from earlier solves, as long as nothing that it can reach has changed.

To find what a field depends on, and to capture it as a program, takes longer than to solve a small problem. Both are
kept for each field and signature (the form of its state and arguments), with a :class:`pynode.watch.Watch` that tells
whether they still hold.
"""

from __future__ import annotations

import contextlib
import copy
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from pynode.capture.sources import forgotten_sources
from pynode.dependencies import Dependencies
from pynode.errors import GradientError
from pynode.problem import ODEProblem
from pynode.solution import Counts
from pynode.watch import Watch


@dataclass
class Entry:
    """What is known of a field under a signature, as long as ``watch`` sees no change.

    ``held`` keeps the arguments alive whose identities are in the signature; ``fixed`` are tensors that are part of a
    program, not of the parameter vector, and ``versions`` how often they had been written into. ``programs`` are those
    made of the field, and ``lanes`` what repeated solves go by, both by who made them.
    """

    signature: Any
    watch: Watch
    held: list[Any]
    fixed: list[Tensor]
    versions: list[int]
    dependencies: Dependencies
    programs: dict[str, Any] = field(default_factory=dict)
    lanes: dict[str, list[Any]] = field(default_factory=dict)

    def current(self) -> bool:
        """Whether the field is still what it was."""
        return self.versions == [x._version for x in self.fixed] and self.watch.unchanged()


_ENTRIES: weakref.WeakKeyDictionary[Any, list[Entry]] = weakref.WeakKeyDictionary()
_KEPT = 8  # signatures of one field, such as the sizes of batches


def entries_of(f: Any) -> Sequence[Entry]:
    """What is known of a field, by signature."""
    try:
        return _ENTRIES.get(f, ())
    except TypeError:  # no weak reference, or no hash
        return ()


def dependencies_of(
    problem: ODEProblem, counts: Counts, params: Iterable[Tensor] | None, allow_unused: bool, jump: float
) -> Dependencies:
    """The tensors a gradient is owed to: those found before, where nothing that ``f`` reaches has changed."""
    if params is not None or not weakly(problem.f):
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
    lasting.problem, lasting.arguments, lasting.derivative = None, [], None  # type: ignore[assignment]
    entry = Entry(signature, watch, held, fixed, [x._version for x in fixed], lasting)
    entries.append(entry)
    dependencies.known = entry
    return dependencies


def _renewed(entry: Entry, problem: ODEProblem) -> Dependencies:
    found = copy.copy(entry.dependencies)
    found.problem = problem
    found.arguments = problem.arguments.tensors
    found.known = entry
    return found


def weakly(f: Any) -> bool:
    """Whether something can be kept with ``f``."""
    try:
        weakref.ref(f)
    except TypeError:
        return False
    # What compares by value would share what is known of one with another.
    return getattr(type(f), "__eq__", None) is getattr(object, "__eq__")  # noqa: B009


_TRACING = threading.RLock()  # torch's tracers patch torch itself

P = TypeVar("P")


def program_for(
    problem: ODEProblem,
    dependencies: Dependencies | None,
    who: str,
    make: Callable[[ODEProblem, Dependencies | None], P],
) -> tuple[P, list[Tensor], Entry | None]:
    """The field's program: the one made before, where that still holds, else what ``make`` makes.

    Returns
    -------
    program
    inputs : list of Tensor
        Those of its parameter vector.
    entry : Entry or None
        Where it is kept.
    """
    if dependencies is None and not torch.is_inference_mode_enabled():
        # That of a solve with gradients, so that evaluating a model while training it makes no other. Where that
        # cannot be, all tensors are constants: nothing is differentiated here.
        with problem.autocast(), contextlib.suppress(GradientError):
            dependencies = dependencies_of(problem, Counts(), None, True, 0.0)
    data = problem.arguments.values(problem.layout.dtype, problem.layout.device)
    inputs = data if dependencies is None else [*dependencies.arguments, *dependencies.parameters, *data]
    entry: Entry | None = None if dependencies is None else dependencies.known
    if entry is None:
        with _TRACING, forgotten_sources():
            return make(problem, dependencies), inputs, None
    if who not in entry.programs:
        with _TRACING:
            if who not in entry.programs:
                with forgotten_sources():
                    entry.programs[who] = make(problem, dependencies)
    program: P = entry.programs[who]
    return program, inputs, entry


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
