"""Solutions as curves: over time, in the plane, and in both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pynode.errors import InputError, explain
from pynode.plotting.canvas import CLASS_COLORS, as_array, as_trajectories, axes_or_new, line_colors
from pynode.plotting.plane import principal_plane

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

_STYLES = ("-", "--", ":", "-.")


def plot_trajectories(
    ts: Any,
    ys: Tensor,
    *,
    labels: Any = None,
    colors: Sequence[Any] | None = None,
    components: Sequence[int] | None = None,
    ax: Axes | None = None,
    **line: Any,
) -> Axes:
    """Draw components of trajectories over time, a line each.

    Parameters
    ----------
    ts : Tensor or sequence (T,)
        Times.
    ys : Tensor (T, ..., D), or (T, D), or (T,)
        States: what ``NeuralODE.trajectory`` returns, or ``sol.ys``.
    labels : sequence of int (N,), optional
        Class of each trajectory, which is its colour; components differ in the line's style then. Without labels each
        component has a colour.
    colors : sequence, optional
        Of the classes, or of the components.
    components : sequence of int, optional
        Which of the D; all by default.
    ax : matplotlib Axes, optional
    **line
        Of ``ax.plot`` (``alpha``, ``linewidth``, ...).

    Returns
    -------
    matplotlib Axes
        With the lines of the first trajectory first, a line for each of its components.
    """
    paths, times = as_trajectories(ys), _times(ts, len(ys))
    chosen = list(range(paths.shape[2]) if components is None else components)
    if any(not -paths.shape[2] <= c < paths.shape[2] for c in chosen):
        raise InputError(
            explain(f"components = {chosen}", f"indices of {paths.shape[2]} components", "count from 0, or drop them")
        )
    ax = axes_or_new(ax)
    palette = list(CLASS_COLORS) if colors is None else list(colors)
    by_label = None if labels is None else line_colors(labels, colors, paths.shape[1])
    for i in range(paths.shape[1]):
        for k, component in enumerate(chosen):
            style: dict[str, Any] = {"linewidth": 1.0}
            if by_label is None:
                style["color"] = palette[k % len(palette)]
            else:
                style |= {"color": by_label[i], "linestyle": _STYLES[k % len(_STYLES)]}
            if i == 0 and len(chosen) > 1:
                style["label"] = f"component {component}"
            ax.plot(times, paths[:, i, component], **(style | line))
    ax.set_xlabel("t")
    ax.set_ylabel("y(t)")
    if len(chosen) > 1:
        ax.legend(frameon=False)
    return ax


def plot_flow(ys: Tensor, *, labels: Any = None, colors: Sequence[Any] | None = None, ax: Axes | None = None) -> Axes:
    """Draw trajectories in the plane: a line for each, a ring where it starts, a disc where it ends.

    Parameters
    ----------
    ys : Tensor (T, batch, ...)
        States: what ``NeuralODE.trajectory`` returns. Everything behind the batch is one vector; with two components
        these are the coordinates, with more the plane is the principal one of the end points.
    labels : sequence of int (batch,), optional
        Class of each trajectory, which is its colour.
    colors : sequence, optional
        Of each class.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
        With one line for each trajectory, in their order.
    """
    if not isinstance(ys, Tensor) or ys.ndim < 3:
        came = f"shape {tuple(ys.shape)}" if isinstance(ys, Tensor) else f"a {type(ys).__name__}"
        raise InputError(
            explain(f"trajectories have {came}", "a tensor of shape (T, batch, ...)", "add a batch dimension")
        )
    paths = as_trajectories(ys.flatten(start_dim=2))
    colored = line_colors(labels, colors, paths.shape[1])
    ax = axes_or_new(ax)
    if paths.shape[2] == 1:
        raise InputError(explain("states of one component", "at least two", "use plot_trajectories"))
    if paths.shape[2] > 2:
        flat = torch.from_numpy(paths)
        center, directions = principal_plane(flat[-1])
        paths = ((flat - center) @ directions.T).numpy()
    for index, color in enumerate(colored):
        x, y = paths[:, index, 0], paths[:, index, 1]
        ax.plot(x, y, color=color, linewidth=0.7, alpha=0.45, zorder=1)
        ax.scatter(x[0], y[0], s=9, facecolor="white", edgecolor=color, linewidth=0.7, zorder=2)
        ax.scatter(x[-1], y[-1], s=20, color=color, edgecolor="white", linewidth=0.4, zorder=3)
    return ax


def plot_space_depth(
    ts: Any,
    ys: Tensor,
    *,
    labels: Any = None,
    colors: Sequence[Any] | None = None,
    ax: Axes | None = None,
    **line: Any,
) -> Axes:
    """Draw 2-D trajectories over time in three dimensions, where those of one flow never cross.

    Parameters
    ----------
    ts : Tensor or sequence (T,)
    ys : Tensor (T, ..., 2)
    labels, colors
        As in :func:`plot_flow`.
    ax : matplotlib Axes3D, optional
    **line
        Of ``ax.plot``.

    Returns
    -------
    matplotlib Axes3D
        With one line for each trajectory: time, first and second component.
    """
    paths, times = as_trajectories(ys), _times(ts, len(ys))
    if paths.shape[2] != 2:
        raise InputError(explain(f"states of {paths.shape[2]} components", "two", "choose two with ys[..., [i, j]]"))
    ax = axes_or_new(ax, projection="3d")
    for index, color in enumerate(line_colors(labels, colors, paths.shape[1])):
        style = {"color": color, "linewidth": 0.8, "alpha": 0.7} | line
        ax.plot(times, paths[:, index, 0], paths[:, index, 1], **style)
    ax.set_xlabel("t")
    ax.set_ylabel("$y_0$")
    ax.set_zlabel("$y_1$")  # type: ignore[attr-defined,unused-ignore]
    return ax


def _times(ts: Any, count: int) -> np.ndarray[Any, Any]:
    times = as_array(ts)
    if times.shape != (count,):
        raise InputError(
            explain(f"times of shape {times.shape}", f"({count},), one for each saved state", "pass sol.ts and sol.ys")
        )
    return times
