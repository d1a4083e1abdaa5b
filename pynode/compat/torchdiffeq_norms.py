"""The norms by which torchdiffeq measures errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from pynode.errors import InputError, explain
from pynode.layout import Layout


def largest_rms(tensors: Iterable[Tensor]) -> float:
    """The largest of the root mean squares: torchdiffeq's mixed norm. NaN if one is NaN."""
    held = [x for x in tensors if x.numel()]
    if not held:
        return 0.0
    norms = torch.stack(torch._foreach_norm(held)).tolist()
    return _largest([norm / math.sqrt(x.numel()) for norm, x in zip(norms, held, strict=True)])


def _largest(sizes: list[float]) -> float:
    return math.nan if any(map(math.isnan, sizes)) else max(sizes)


def state_norm(norm: Any, y0: Any) -> Callable[[Any], Any] | None:
    """The forward norm: the user's, the mixed norm for tuples, None for the root mean square."""
    if norm is not None or isinstance(y0, Tensor):
        chosen: Callable[[Any], Any] | None = norm
        return chosen
    return largest_rms


def adjoint_norm(option: Any, forward: Any, y0: Any, layout: Layout) -> Any:
    """The norm of the adjoint solve, for ``BacksolveAdjoint``.

    Parameters
    ----------
    option : None, "seminorm" or callable
        ``adjoint_options["norm"]``; a callable takes ``(t, y, adj_y, *adj_params)``, with the components of ``y`` and
        ``adj_y`` in place of each for a tuple state.
    forward : callable or None
        ``options["norm"]``.
    """
    single = isinstance(y0, Tensor)
    if option == "seminorm" and single and forward is None:
        return "seminorm"
    if callable(option):

        def custom(parts: tuple[Tensor, ...]) -> Any:
            y, adjoint, *params = parts
            states = [layout.unpack(y), layout.unpack(adjoint)]
            if not single:
                states = [*states[0], *states[1]]
            return option((y.new_zeros(()), *states, *params))

        return custom
    if option not in (None, "seminorm"):
        raise InputError(explain(f"adjoint_options['norm'] = {option!r}", "'seminorm' or a callable", "use 'seminorm'"))

    def default(parts: tuple[Tensor, ...]) -> float:
        y, adjoint, *params = parts
        states = [layout.unpack(y), layout.unpack(adjoint)]
        counted = params if option is None else []
        if forward is not None:
            return _largest([*(float(forward(state)) for state in states), largest_rms(counted)])
        leaves = states if single else [*states[0], *states[1]]
        return largest_rms([*leaves, *counted])

    return default
