"""``event_fn=`` and ``odeint_event`` of torchdiffeq, in pynode's terms.

Differences: the first zero of any component is found to the spacing of float64 times (torchdiffeq bisects to ``atol``),
also where two of them lie in one step; a component that is zero at the start ends the solve there with every method;
and :func:`linked` gives the event function's own parameters their gradients, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pynode.compat.torchdiffeq_options import AssertedInputError, AssertedSolveError, Settings
from pynode.errors import explain
from pynode.event_time import moved
from pynode.events import Event, Watch
from pynode.layout import Layout, leaves_of, rebuild
from pynode.native.root_finding import checked
from pynode.solution import ReturnCode, Solution

#: Steps of a fixed-step method before torchdiffeq gives an event up.
FIXED_STEPS = 20_000
#: The time span of an adaptive method, which its event or its limit of steps ends.
FAR = 1e30


def span(t: Tensor, chosen: Settings) -> Tensor:
    """Where to look for the event: from ``t[0]`` in the direction of ``t[1]``, float64.

    Raises
    ------
    InputError
        If ``t`` has other than two entries, or a fixed-step method no ``step_size``.
    """
    if len(t) != 2:
        raise AssertedInputError(
            explain(
                f"t has {len(t)} entries and event_fn is given",
                "two: the start, and any other time for the direction (We require len(t) == 2)",
                "give t[:2], and solve again up to the event's time for states in between",
            )
        )
    far = FAR
    if not chosen.algorithm.adaptive:
        step = getattr(chosen.algorithm, "dt", None)
        if step is None:
            raise AssertedInputError(
                explain(
                    f"method {chosen.method!r} got event_fn without options['step_size']",
                    "a step size, as nobody knows when the event will be",
                    "pass options={'step_size': ...}",
                )
            )
        far = FIXED_STEPS * step
    start = t[:1].double()
    return torch.cat([start, start.detach() + math.copysign(far, (t[1] - t[0]).item())])


def looks(chosen: Settings) -> int:
    """How often ``event_fn`` is looked at inside a step: fixed steps are meant to be short."""
    return 10 if chosen.algorithm.adaptive else 0


def until(
    solved: Callable[[Watch], Solution],
    event_fn: Callable[..., Any],
    y0: Any,
    t: Tensor,
    attached: bool,
    points: int,
) -> tuple[Tensor, Any]:
    """The event's time (0-dim, of the dtype of ``t``) and the states at the start and there.

    ``points``: how often the condition is looked at inside every step. ``solved(watch)`` solves until the event.
    Gradients of the states are those at a fixed time, as in torchdiffeq; the time has none (zero ones if ``attached``):
    :func:`linked` gives it one.
    """
    layout = Layout(y0)
    with torch.no_grad():
        start = event_fn(t[0].to(dtype=layout.dtype), y0)
    if bool((checked(start, 0) == 0).any()):
        return t[0].detach().clone(), _map(lambda x: torch.stack([x, x]), y0)
    watch = Watch((Event(event_fn, interp_points=points),), ())
    solution = solved(watch)
    if solution.retcode is not ReturnCode.Terminated or watch.state is None:
        reached = solution.span[1]
        message = explain(
            f"no event until t = {reached:.9g}, after the maximum number of iterations {FIXED_STEPS}",
            "event_fn to change its sign",
            "raise options['step_size'], or check event_fn and the direction of t",
        )
        raise AssertedSolveError(message, ReturnCode.MaxIters, reached, solution)
    state = layout.unpack(watch.state)
    event_t = t.new_tensor(solution.span[1])
    if attached:
        event_t = event_t + 0.0 * layout.pack(state).sum().to(event_t)
    ends = zip((leaf for _, leaf in leaves_of(y0)), (leaf for _, leaf in leaves_of(state)), strict=True)
    return event_t, rebuild(layout.template, iter([torch.stack(pair) for pair in ends]))


def linked(
    func: Callable[[Tensor, Any], Any],
    event_fn: Callable[..., Any],
    start: tuple[Tensor, Any],
    event_t: Tensor,
    ends: Any,
) -> tuple[Tensor, Any]:
    """Event time and states ``ends`` (at the start and there) with the gradient of the event's time.

    ``start``: initial time and state, at which ``event_fn`` tells its signs; ``func`` is the field.
    """
    t0, y0 = start
    layout = Layout(y0)
    flat = layout.pack(_map(lambda x: x[-1], ends))
    now = event_t.detach().double().item()

    def time(at: float) -> Tensor:
        return torch.scalar_tensor(at, dtype=layout.dtype, device=layout.device)

    with torch.no_grad():
        signs = torch.sign(checked(event_fn(t0.reshape(()).to(dtype=layout.dtype), y0), 0))
        rate = layout.pack_derivative(func(time(now), layout.unpack(flat.detach())))

    def combined(at: Tensor, state: Tensor) -> Tensor:
        return (checked(event_fn(at, layout.unpack(state)), 0) * signs).min()

    # A slope is only refused where it is exactly zero: the step that holds the root is not known here.
    t, state = moved(combined, time, now, flat, rate, (1.0, 0.0), "event_fn")
    there = [leaf for _, leaf in leaves_of(layout.unpack(state))]
    before = [leaf for _, leaf in leaves_of(ends)]
    stacked = [torch.cat([x[:-1], y[None]]) for x, y in zip(before, there, strict=True)]
    return t.to(event_t), rebuild(layout.template, iter(stacked))


def _map(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    return rebuild(tree, iter([function(leaf) for _, leaf in leaves_of(tree)]))
