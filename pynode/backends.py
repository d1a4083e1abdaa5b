"""What a backend is: something that solves, evaluates what it solved, and pulls a cotangent back."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from pynode.algorithms import Algorithm
from pynode.controllers import PIDController
from pynode.errors import InputError, explain
from pynode.problem import ODEProblem
from pynode.sensealg import SensitivityAlgorithm
from pynode.solution import Counts, ReturnCode, Solution, Stats

if TYPE_CHECKING:
    from pynode.dependencies import Dependencies
    from pynode.events import Watch


@dataclass(frozen=True)
class Request:
    """A validated solve, as every backend receives it.

    ``times`` are the save times in float64 in the direction of integration, ``times_tensor`` the same connected to the
    user's tensor. ``own_times`` tells that they were given apart from ``t`` (``SaveAt(ts=...)``); ``save_steps`` that
    the ends of the steps are saved instead. ``differentiable`` tells that the result needs a gradient,
    ``time_gradient`` that some time needs one. ``question`` is every option as the user gave it.
    ``watch``: what ends the solve early, and hears about it.
    """

    problem: ODEProblem
    algorithm: Algorithm
    sensealg: SensitivityAlgorithm
    dependencies: Dependencies | None
    differentiable: bool
    time_gradient: bool
    rtol: float | Tensor
    atol: float | Tensor
    norm: Callable[[Any], Any] | None
    controller: PIDController
    max_steps: int
    dt0: float | None
    dtmin: float
    dtmax: float
    force_dtmin: bool
    tstops: Sequence[float]
    jumps: frozenset[float]
    times: list[float]
    times_tensor: Tensor
    own_times: bool
    save_steps: bool
    dense: bool | None
    observer: Any
    compile: bool | str
    stats: Stats
    question: tuple[Any, ...]
    watch: Watch | None


class Record(Protocol):
    """What a backend remembers of a solve."""

    @property
    def request(self) -> Request:
        """What was asked."""
        ...

    retcode: ReturnCode
    #: Time reached.
    t: float
    #: State there, (n,).
    end: Tensor
    #: What went wrong, in a clause.
    detail: str
    #: States at the save times that were reached, (m, n).
    values: Tensor
    #: The times of ``values``.
    saved: list[float]


@dataclass(frozen=True)
class Query:
    """What was looked at in a solve: the states, or their time ``derivative``, at ``times``.

    ``own_times`` tells that the times were given apart from the problem's ``t``; ``time_gradient`` that a gradient
    with respect to some time is needed.
    """

    times: list[float]
    derivative: bool
    own_times: bool
    time_gradient: bool


@dataclass
class Gradients:
    """Result of a pullback; None where there is no dependence.

    ``y0`` (n,); ``mesh`` (2,) for the initial and final time of an adaptive solve or (N + 1,) for the boundaries of a
    fixed one; ``times`` (m,); one entry per differentiable argument and per parameter.
    """

    y0: Tensor
    mesh: Tensor | None
    times: Tensor | None
    arguments: list[Tensor | None]
    parameters: list[Tensor | None]


class Backend(Protocol):
    """Who integrates."""

    name: str

    def absent(self) -> str | None:
        """None, or why the backend cannot be used here without installing something."""

    def supports(self, algorithm: Algorithm, sensealg: SensitivityAlgorithm) -> str | None:
        """None, or a clause saying what is not supported."""

    def repeated(self, f: Any, y0: Any, t: Any, question: tuple[Any, ...]) -> Solution | None:
        """The solution where the same was asked before with other values, without the checks that it passed then;
        None where it has to be asked in full."""

    def dependencies(
        self,
        problem: ODEProblem,
        counts: Counts,
        params: Iterable[Tensor] | None,
        allow_unused: bool,
        jump: float,
    ) -> Dependencies:
        """The tensors a gradient is owed to, found as the backend needs it: see :class:`Dependencies`."""
        ...

    def solve(self, request: Request) -> Record:
        """Integrate. Records only what the sensitivity algorithm and dense output need."""
        ...

    def evaluate(self, record: Any, times: list[float], times_tensor: Tensor | None, derivative: bool) -> Tensor:
        """States (m, n), or their time derivatives, at any times within the span."""
        ...

    def pull_back(self, record: Any, query: Query, cotangents: Tensor) -> Gradients:
        """Gradients from cotangents (m, n) of what ``query`` asked of the solve."""
        ...

    def pull_back_tangent(
        self, record: Any, query: Query, cotangents: Tensor, directions: Gradients
    ) -> tuple[Gradients, Tensor] | None:
        """The gradient of ``<pull_back(record, query, cotangents), directions>`` with respect to what the solve depends
        on, and to the cotangents (m, n); None where second derivatives are not offered."""

    def mesh(self, record: Any, t: Tensor) -> Tensor:
        """The step boundaries that depend on ``t``, as a differentiable function of it."""
        ...


#: Backends by name: the module that holds each one's ``BACKEND``, loaded on first use.
_REGISTRY: dict[str, str] = {"torch": "pynode.native.backend", "julia": "pynode.julia.backend"}


def backend_names() -> tuple[str, ...]:
    """The names of all backends."""
    return tuple(_REGISTRY)


def backend_from_name(name: str) -> Backend:
    """The backend called ``name``.

    Raises
    ------
    InputError
        If there is none.
    """
    if name not in _REGISTRY:
        raise InputError(
            explain(f"unknown backend {name!r}", f"one of {', '.join(map(repr, _REGISTRY))}", "use backend='torch'")
        )
    return _loaded(_REGISTRY[name])


@functools.cache
def _loaded(module: str) -> Backend:
    backend: Backend = importlib.import_module(module).BACKEND
    return backend
