"""Events: where the solution makes a condition zero, the solve stops, or goes on from another state.

What is written here are names and options; the search is the backend's
(:mod:`pynode.native.root_finding`), the course of a solve over its events :mod:`pynode.segments`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pynode.errors import InputError, explain


@dataclass(frozen=True)
class Event:
    """A root of ``condition`` along the solution.

    Parameters
    ----------
    condition : callable
        ``condition(t, y, *args)`` returns a real tensor: a scalar, or one of any shape each element of which is a root
        function of its own. It fires where it changes its sign. Where it is zero at the start of a solve, or after
        an event of its own, it does not fire at once but when it next crosses zero. A zero that it touches without
        crossing is no event.
    terminal : bool
        The solve ends there, with ``ReturnCode.Terminated``. Otherwise it goes on.
    direction : {0, 1, -1}
        Fires for crossings of every kind, from below to above, or from above to below, in the order in which the solve
        passes them (which is against time where ``t`` decreases).
    effect : callable, optional
        ``effect(t, y, *args)`` returns the state after the event, of the form of ``y``; for a terminal event, too.
    root_tol : float, optional
        Width in time to which the root is bracketed on the dense output of its step; to the spacing of float64 times
        by default, which takes only evaluations of the condition.
    interp_points : int
        At how many points inside every step the condition is looked at, so that two roots in one step are not missed;
        0 for the ends of the steps alone. ``dtmax`` bounds what may happen between two looks.

    Notes
    -----
    The time of an event is a differentiable function of all that ``f``, ``y0``, ``condition``, earlier effects and
    times depend on, by the implicit function theorem (Chen, Amos and Nickel 2021, "Learning Neural Event Functions for
    Ordinary Differential Equations"), here for the dense output of the steps taken: the gradient is exact for these,
    and exists once (it cannot be differentiated again). Where the condition grazes zero, its time has none:
    ``GradientError``.

    Examples
    --------
    >>> fall = lambda t, y: torch.stack([y[1], torch.full_like(y[1], -9.81)])
    >>> height = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    >>> ground = pynode.Event(lambda t, y: y[0], direction=-1)
    >>> sol = pynode.solve(fall, torch.stack([height, 0 * height]), [0.0, 10.0], events=ground)
    >>> round(sol.events[0].t.item(), 4)  # sqrt(2 h / g)
    0.4515
    >>> (slope,) = torch.autograd.grad(sol.events[0].t, height)
    >>> round(slope.item(), 4)  # 1 / sqrt(2 g h)
    0.2258
    """

    condition: Callable[..., Any]
    terminal: bool = True
    direction: int = 0
    effect: Callable[..., Any] | None = None
    root_tol: float | None = None
    interp_points: int = 10

    def __post_init__(self) -> None:
        for name in ("condition", "effect"):
            value = getattr(self, name)
            if not callable(value) and not (name == "effect" and value is None):
                raise InputError(
                    explain(
                        f"Event's {name} is a {type(value).__name__}",
                        f"a callable {name}(t, y, *args)",
                        "pass a function or module",
                    )
                )
        if self.direction not in (-1, 0, 1):
            raise InputError(
                explain(f"Event(direction={self.direction!r})", "-1, 0 or 1", "use 0 for crossings of both kinds")
            )
        if self.root_tol is not None and not self.root_tol > 0:
            raise InputError(
                explain(f"Event(root_tol={self.root_tol!r})", "a positive width in time", "drop it for the finest")
            )
        points = self.interp_points
        if isinstance(points, bool) or not isinstance(points, int) or points < 0:
            raise InputError(explain(f"Event(interp_points={points!r})", "an integer >= 0", "10 is the default"))


@dataclass(frozen=True)
class Firing:
    """An event that fired.

    Attributes
    ----------
    t : Tensor
        When, 0-dim, float64; differentiable.
    event, component : int
        Which of the solve's events, and which element of its condition, flattened.
    before, after : tree of tensors
        The state just before it and after its effect, of the form of ``y``; differentiable.

    Examples
    --------
    >>> half = pynode.Event(lambda t, y: y[0] - 0.5, terminal=False, effect=lambda t, y: y + 1)
    >>> sol = pynode.solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], events=half)
    >>> (firing,) = sol.events
    >>> round(firing.t.item(), 3), round(firing.before.item(), 3), round(firing.after.item(), 3), firing.event
    (0.693, 0.5, 1.5, 0)
    """

    t: Tensor
    event: int
    component: int
    before: Any
    after: Any


@dataclass(frozen=True)
class RowFiring:
    """What fired in the rows of a solve under ``batching="independent"``, one event in each at most: ``sol.events[i]``
    is the ``i``-th event of every row, wherever it came.

    Attributes
    ----------
    t : Tensor (B,)
        When, float64, NaN in rows where none did; differentiable.
    event, component : Tensor (B,)
        Which of the solve's events, and which element of its condition, flattened; int64, -1 in rows where none did.
    before, after : tree of tensors
        The states just before it and after its effect, leaves (B, ...), NaN in rows where none fired; differentiable.

    Examples
    --------
    >>> y0 = torch.tensor([[1.0], [2.0], [0.2]])
    >>> half = pynode.Event(lambda t, y: y[:, 0] - 0.5)
    >>> sol = pynode.solve(lambda t, y: -y, y0, [0.0, 5.0], events=half, batching="independent")
    >>> [round(t, 3) for t in sol.events[0].t.tolist()]  # log 2, log 4, never
    [0.693, 1.386, nan]
    """

    t: Tensor
    event: Tensor
    component: Tensor
    before: Any
    after: Any


@dataclass(frozen=True)
class Crossing:
    """A root that was found.

    Attributes
    ----------
    event, component : int
    noise : float
        Values of the condition this small are zero as far as one can tell.
    scale : float
        The largest value in the step that holds the root.
    """

    event: int
    component: int
    noise: float
    scale: float


@dataclass
class Watch:
    """What one solve, up to its first event, is asked to look for, and what it found.

    Parameters
    ----------
    events : tuple of Event
    args : tuple
        Passed to the conditions after ``y``.
    fired : tuple of Crossing
        What fired at the start of this solve.
    stats : Stats or None
        Counts to go on with.

    Attributes
    ----------
    found : list of Crossing
        What fired at its end, in order: several only where their times cannot be told apart.
    h : float
        The step that holds it.
    tolerance : float
        Times closer than this are one.
    rate : Tensor (n,)
        Time derivative of the dense output there.
    state : Tensor (n,)
        The state there, at that fixed time: connected to autograd.
    size : float or None
        Size of the step that would have been next.
    """

    events: tuple[Event, ...]
    args: tuple[Any, ...]
    fired: tuple[Crossing, ...] = ()
    stats: Any = None
    found: list[Crossing] = field(default_factory=list)
    h: float = 0.0
    tolerance: float = 0.0
    rate: Tensor | None = None
    state: Tensor | None = None
    size: float | None = None


@dataclass(frozen=True)
class Resumed:
    """Events of a solve that goes on where ``fired`` had just fired."""

    events: Any
    fired: tuple[Crossing, ...]


def as_events(events: Any) -> tuple[Event, ...]:
    """The events that ``events=`` means."""
    listed = (events,) if isinstance(events, Event) else events
    if not isinstance(listed, Sequence) or not all(isinstance(event, Event) for event in listed):
        raise InputError(
            explain(f"events is {events!r}", "an Event or a sequence of them", "write events=Event(condition)")
        )
    if not listed:
        raise InputError(explain("events is empty", "at least one Event", "drop events="))
    return tuple(listed)


def check_limit(max_events: Any) -> None:
    """Raise InputError for a bound on the number of events that is none."""
    if isinstance(max_events, bool) or not isinstance(max_events, int) or max_events < 1:
        raise InputError(
            explain(f"max_events = {max_events!r}", "an integer >= 1", "give the largest number of events")
        )
