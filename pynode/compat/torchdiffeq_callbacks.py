"""torchdiffeq's callbacks: attributes of the user's field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.compat.torchdiffeq_options import Settings
from pynode.layout import Layout
from pynode.strict import warn

CALLBACKS = ("callback_step", "callback_accept_step", "callback_reject_step")


class Callbacks:
    """The ``callback_*`` attributes of the user's field, called from the solver's loop.

    Each is called with ``(t0, y0, dt)``: ``t0`` in the user's time, ``dt`` a magnitude.
    """

    def __init__(self, functions: dict[str, Callable[..., Any]], view: Callable[[Tensor], Any], time: Tensor) -> None:
        self._functions = functions
        self._view = view
        self._time = time

    def step(self, t: float, y: Tensor, h: float) -> None:
        """A step is about to be attempted."""
        self._call("callback_step", t, y, h)

    def accepted(self, t: float, y: Tensor, h: float) -> None:
        """The step was accepted."""
        self._call("callback_accept_step", t, y, h)

    def rejected(self, t: float, y: Tensor, h: float) -> None:
        """The step was rejected."""
        self._call("callback_reject_step", t, y, h)

    def _call(self, name: str, t: float, y: Tensor, h: float) -> None:
        function = self._functions.get(name)
        if function is not None:
            function(self._time.new_tensor(t), self._view(y), self._time.new_tensor(abs(h)))


def callbacks(
    func: Any, chosen: Settings, t: Tensor, view: Callable[[Tensor], Any], suffix: str = ""
) -> Callbacks | None:
    """The callbacks of ``func``, None if it has none; warns about those the method never calls."""
    functions = {name: getattr(func, name + suffix, None) for name in CALLBACKS}
    found = {name: function for name, function in functions.items() if function is not None}
    if not chosen.algorithm.adaptive:
        never = {name + suffix for name in found if name != "callback_step"}
        if never:
            warn(f"Solver '{chosen.method}' does not support callbacks {never}")
    time = t.detach().double() if chosen.algorithm.adaptive else t.detach()
    return Callbacks(found, view, time) if found else None


def augmented_view(y0: Any, layout: Layout, params: Sequence[Tensor]) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """From the flat state of the adjoint solve to torchdiffeq's ``(vjp_t, y, adj_y, *adj_params)``.

    ``vjp_t`` is always zero: the gradient of the initial time is had without integrating it. ``y`` and ``adj_y`` of a
    tuple state are flat.
    """
    n = layout.size
    sizes = [p.numel() * (2 if p.is_complex() else 1) for p in params]

    def view(flat: Tensor) -> tuple[Tensor, ...]:
        y, adjoint, *rest = torch.split(flat, [n, n, *sizes])
        if isinstance(y0, Tensor):
            y, adjoint = layout.unpack(y), layout.unpack(adjoint)
        shaped = [
            torch.view_as_complex(part.clone().reshape(*p.shape, 2)) if p.is_complex() else part.reshape(p.shape)
            for part, p in zip(rest, params, strict=True)
        ]
        return (flat.new_zeros(()), y, adjoint, *shaped)

    return view
