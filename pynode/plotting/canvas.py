"""What every picture starts from: axes, colours, and tensors as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pynode.errors import InputError, explain

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

#: Colours of classes, told apart by hue and lightness (Paul Tol's bright scheme, then darker ones).
CLASS_COLORS = (
    *("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee"),
    *("#aa3377", "#8c564b", "#ff7f0e", "#777777", "#000000"),
)


def axes_or_new(ax: Axes | None, projection: str | None = None) -> Axes:
    """``ax``, or the axes of a new pyplot figure."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.figure(layout="constrained").add_subplot(projection=projection)


def as_array(x: Any) -> np.ndarray[Any, Any]:
    """Numbers of any tensor or sequence, in float64 on the CPU, without their gradient."""
    return torch.as_tensor(x, dtype=torch.float64).detach().cpu().numpy()


def as_trajectories(ys: Any) -> np.ndarray[Any, Any]:
    """``ys`` (T, ..., D), (T, N) with one state each, or (T,), as an array (T, N, D).

    Raises
    ------
    InputError
        For what is no tensor of numbers, or has fewer than two times.
    """
    if not isinstance(ys, Tensor) or ys.ndim == 0 or ys.is_complex():
        came = f"dtype {ys.dtype}, shape {tuple(ys.shape)}" if isinstance(ys, Tensor) else f"a {type(ys).__name__}"
        raise InputError(
            explain(
                f"trajectories are {came}",
                "a real tensor of shape (T, ..., D)",
                "choose one leaf of a tree, the real part of complex states",
            )
        )
    if len(ys) < 2:
        raise InputError(explain(f"{len(ys)} time(s)", "at least two", "save more of the solution"))
    flat = ys.reshape(len(ys), 1, -1) if ys.ndim < 3 else ys.flatten(start_dim=1, end_dim=-2)
    return as_array(flat)


def line_colors(labels: Any, colors: Sequence[Any] | None, count: int) -> list[Any]:
    """A colour for each of ``count`` lines: of its label, in the palette by default.

    Raises
    ------
    InputError
        If there is not one label a line, or not one colour a label.
    """
    palette = list(CLASS_COLORS) if colors is None else list(colors)
    if labels is None:
        return [palette[0]] * count
    classes = [int(label) for label in torch.as_tensor(labels).reshape(-1).tolist()]
    if len(classes) != count:
        raise InputError(explain(f"{len(classes)} labels", f"one for each of {count} trajectories", "pass them all"))
    if min(classes) < 0 or (colors is not None and max(classes) >= len(palette)):
        raise InputError(
            explain(
                f"labels from {min(classes)} to {max(classes)}",
                f"class numbers from 0 to {len(palette) - 1}, one of the colours each",
                "number the classes from 0 and pass a colour for each",
            )
        )
    return [palette[label % len(palette)] for label in classes]
