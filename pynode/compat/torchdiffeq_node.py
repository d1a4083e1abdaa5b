"""``ys.grad_fn.adjoint_options``: torchdiffeq keeps the options of the adjoint solve there, to read and to change.

The node is the identity, put behind the solve; its backward runs first, and hands a norm that was exchanged there to
the sensitivity algorithm. For a tuple state the components are views of what the node gives, one flat tensor per time,
as they are in torchdiffeq.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pynode.layout import Layout
from pynode.sensealg import BacksolveAdjoint

#: ``norm((t, y, adj_y, *adj_params))`` with the state of a tuple in one flat tensor.
Norm = Callable[[tuple[Tensor, ...]], Any]


def behind(ys: Any, y0: Any, layout: Layout, options: dict[str, Any], sensealg: BacksolveAdjoint) -> Any:
    """``ys`` with the node behind the solve; ``options``: what it shows, with a ``norm``."""
    if isinstance(ys, Tensor):
        return _shown(ys, layout, options, sensealg) if ys.requires_grad else ys
    if not any(y.requires_grad for y in ys):
        return ys
    if len(set(layout.dtypes)) > 1:  # components that no one tensor holds
        return tuple(_shown(y, layout, options, sensealg) for y in ys)
    flat = _shown(torch.cat([y.flatten(1) if y.ndim > 1 else y[:, None] for y in ys], 1), layout, options, sensealg)
    found, start = [], 0
    for y in ys:
        end = start + y[0].numel()
        found.append(flat[..., start:end].view(y.shape))
        start = end
    return tuple(found)


def default_norm(forward: Any, y0: Any, seminorm: bool) -> Norm:
    """torchdiffeq's: the largest of the state's norm, the adjoint's and, without ``seminorm``, each parameter's root
    mean square. ``forward``: the norm of the state, None for the default one."""
    single = isinstance(y0, Tensor)

    def of_state(flat: Tensor) -> Tensor:
        components = (flat,) if single else _split(flat, y0)
        if forward is not None:
            return torch.as_tensor(forward(flat if single else components))
        return torch.stack([_rms(x) for x in components if x.numel()]).max()

    def norm(parts: tuple[Tensor, ...]) -> Tensor:
        t, y, adjoint, *params = parts
        counted = [] if seminorm else [_rms(x) for x in params if x.numel()]
        return torch.stack([t.abs(), of_state(y), of_state(adjoint), *counted]).max()

    return norm


def user_norm(norm: Norm, y0: Any) -> Norm:
    """The user's norm, which takes a tuple state by its components, as the node shows it."""
    if isinstance(y0, Tensor):
        return norm
    return lambda parts: norm((parts[0], *_split(parts[1], y0), *_split(parts[2], y0), *parts[3:]))


def _split(flat: Tensor, y0: Any) -> tuple[Tensor, ...]:
    parts = torch.split(flat, [y.numel() for y in y0])
    return tuple(part.reshape(y.shape) for part, y in zip(parts, y0, strict=True))


def _rms(x: Tensor) -> Tensor:
    return x.abs().pow(2).mean().sqrt()


def _shown(ys: Tensor, layout: Layout, options: dict[str, Any], sensealg: BacksolveAdjoint) -> Tensor:
    shown: Tensor = _Shown.apply(ys, layout, options, sensealg)  # type: ignore[no-untyped-call]
    return shown


class _Shown(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ys: Tensor, layout: Layout, options: dict[str, Any], sensealg: BacksolveAdjoint) -> Tensor:
        ctx.adjoint_options, ctx.layout, ctx.sensealg = options, layout, sensealg
        ctx.norm = options["norm"]
        return ys.view_as(ys)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        norm = ctx.adjoint_options.get("norm")
        if norm is not ctx.norm and norm is not None:
            # The algorithm is this solve's own, made in odeint_adjoint; its pullback has not begun yet.
            object.__setattr__(ctx.sensealg, "norm", _native(norm, ctx.layout))
        return grad_outputs[0], None, None, None


def _native(norm: Norm, layout: Layout) -> Callable[[tuple[Tensor, ...]], Any]:
    """A norm as BacksolveAdjoint calls it: with ``(y, adjoint, *parameters)``, the first two flat and real."""

    def called(parts: tuple[Tensor, ...]) -> Any:
        y, adjoint, *params = parts
        states = [layout.unpack(y), layout.unpack(adjoint)]
        if not layout.is_tensor:
            states = [torch.cat([x.reshape(-1) for x in state]) for state in states]
        return norm((y.new_zeros(()), *states, *params))

    return called
