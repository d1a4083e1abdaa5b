"""Evaluating models on a grid of the plane, where the models are and without changing them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pynode.errors import InputError, explain
from pynode.plotting.canvas import as_array

if TYPE_CHECKING:
    import numpy as np

Limits = tuple[float, float]


class Grid:
    """Points of a rectangle.

    Parameters
    ----------
    xlim, ylim : (float, float)
        The rectangle.
    resolution : int
        Points a side.
    like : Tensor
        Its dtype and device are those of ``points``.

    Attributes
    ----------
    x, y : array (resolution,)
        Coordinates along the sides.
    points : Tensor (resolution ** 2, 2)
        All of them, the rows of :meth:`square` one after the other.
    """

    def __init__(self, xlim: Limits, ylim: Limits, resolution: int, like: Tensor) -> None:
        for name, (low, high) in (("xlim", xlim), ("ylim", ylim)):
            if not low < high:
                raise InputError(explain(f"{name} = ({low}, {high})", "low < high", f"swap the ends of {name}"))
        if resolution < 2:
            raise InputError(explain(f"resolution = {resolution}", "at least 2 points a side", "raise it"))
        self.resolution = resolution
        x, y = (torch.linspace(float(a), float(b), resolution, dtype=torch.float64) for a, b in (xlim, ylim))
        self.x, self.y = as_array(x), as_array(y)
        second, first = torch.meshgrid(y, x, indexing="ij")
        self.points = torch.stack([first.reshape(-1), second.reshape(-1)], dim=1).to(like)

    def square(self, values: Tensor) -> np.ndarray[Any, Any]:
        """Values (resolution ** 2,) at ``points`` as an array whose entry [i, j] belongs to (x[j], y[i])."""
        return as_array(values).reshape(self.resolution, self.resolution)


def placement(*models: Any) -> Tensor:
    """An empty tensor of the dtype and on the device of the first floating point parameter or buffer of the models;
    of torch's defaults where they have none."""
    for model in models:
        owner = getattr(model, "__self__", model)  # a bound method stands for its module
        if isinstance(owner, torch.nn.Module):
            for tensor in (*owner.parameters(), *owner.buffers()):
                if tensor.is_floating_point():
                    return torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return torch.empty(0)


@contextmanager
def inspecting(*models: Any) -> Iterator[None]:
    """Without gradients and in evaluation mode, so that a picture moves no running statistics; restored afterwards."""
    owners = [getattr(model, "__self__", model) for model in models]
    modules = [part for owner in owners if isinstance(owner, torch.nn.Module) for part in owner.modules()]
    modes = [part.training for part in modules]
    try:
        for part in modules:
            part.training = False
        with torch.no_grad():
            yield
    finally:
        for part, mode in zip(modules, modes, strict=True):
            part.training = mode


def checked(values: Any, count: int, what: str, columns: int | None = None) -> Tensor:
    """``values`` of a model at ``count`` points, in the shape (count,), or (count, columns).

    Raises
    ------
    InputError
        For another shape.
    """
    wanted: Sequence[tuple[int, ...]] = [(count,), (count, 1)] if columns is None else [(count, columns)]
    if not isinstance(values, Tensor) or tuple(values.shape) not in wanted:
        came = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise InputError(
            explain(
                f"{what} returned {came} for points of shape ({count}, 2)",
                f"a tensor of shape {' or '.join(str(shape) for shape in wanted)}",
                "wrap it in a function that takes points of the plane",
            )
        )
    return values.reshape(wanted[0])


Callback = Callable[..., Any]
