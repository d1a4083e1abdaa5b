"""The time of an event, and the state there, as differentiable functions of all they depend on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pynode.errors import GradientError, explain


@dataclass(frozen=True)
class Root:
    """A root at time ``t``, where the condition changes at the rate ``slope`` and the state at ``rate`` (n,).

    ``least``: a slope this small is none. ``name``: of the event.
    """

    t: float
    slope: float
    rate: Tensor
    least: float
    name: str


class _Moved(torch.autograd.Function):
    """``t*`` and ``y(t*)`` from the condition's value ``g`` and the state ``y`` (n,) at the fixed time ``t`` at which
    the root was found, by the implicit function theorem: ``dt* = -dg / slope``, ``dy* = dy + rate dt*``."""

    @staticmethod
    def forward(ctx: Any, root: Root, g: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        ctx.root, ctx.like = root, g
        return torch.tensor(root.t, dtype=torch.float64, device=y.device), y.clone()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[None, Tensor | None, Tensor]:
        along_t, along_y = cotangents
        root: Root = ctx.root
        if torch.is_grad_enabled():
            raise GradientError(
                explain(
                    f"the gradient through the time of {root.name} was differentiated again (create_graph=True)",
                    "one differentiation through an event",
                    "differentiate once, or solve from event to event by hand at fixed times",
                )
            )
        moved = along_t.item() + torch.dot(along_y, root.rate).item()
        if moved == 0.0:
            return None, None, along_y
        if not abs(root.slope) > root.least:
            raise GradientError(
                explain(
                    f"the condition of {root.name} grazes zero at t = {root.t:.9g}: it changes at the rate "
                    f"{root.slope:.3g} there, which is zero as far as one can tell",
                    "a condition that crosses zero, so that the event's time is differentiable",
                    "use a condition with a simple root (g instead of g**3), that depends on t or y by differentiable "
                    "operations, or detach() the event's time and states",
                )
            )
        return None, ctx.like.new_tensor(-moved / root.slope), along_y


def moved(
    condition: Callable[[Tensor, Tensor], Tensor],
    time: Callable[[float], Tensor],
    t: float,
    y: Tensor,
    rate: Tensor,
    step: tuple[float, float],
    name: str,
) -> tuple[Tensor, Tensor]:
    """Time (0-dim, float64) and state (n,) of a root, differentiable once.

    Parameters
    ----------
    condition : callable
        ``condition(t, y)``: the root function, a 0-dim tensor.
    time : callable
        ``time(t)``: the tensor that stands for ``t``.
    t : float
        Where the root was found.
    y : Tensor (n,)
        The state there, as a differentiable function at that fixed time.
    rate : Tensor (n,)
        Its time derivative.
    step : tuple of float
        Length of the step that holds the root, and the largest value of the condition in it: the scale of its slope.
    name : str
    """
    if not torch.is_grad_enabled():
        return torch.tensor(t, dtype=torch.float64, device=y.device), y
    g = condition(time(t), y)
    if not (g.requires_grad or y.requires_grad):
        return torch.tensor(t, dtype=torch.float64, device=y.device), y
    at, state = time(t).requires_grad_(), y.detach().requires_grad_()
    value = condition(at, state)
    slope = 0.0
    if value.requires_grad:
        by_time, by_state = torch.autograd.grad(value, [at, state], allow_unused=True)
        slope = 0.0 if by_time is None else by_time.item()
        slope += 0.0 if by_state is None else torch.dot(by_state, rate).item()
    h, scale = step
    least = math.sqrt(torch.finfo(y.dtype).eps) * scale / abs(h)
    found: tuple[Tensor, Tensor] = _Moved.apply(Root(t, slope, rate, least, name), g, y)  # type: ignore[no-untyped-call]
    return found
