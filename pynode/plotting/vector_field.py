"""Fields: in the plane at one time, and of one component over time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pynode.errors import InputError, explain
from pynode.plotting.canvas import axes_or_new
from pynode.plotting.grid import Callback, Grid, Limits, checked, inspecting, placement

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINES: dict[str, Any] = {"color": "black", "linewidth": 0.6, "arrowsize": 0.7}


def plot_vector_field(
    f: Callback,
    *,
    xlim: Limits,
    ylim: Limits,
    t: float = 0.0,
    args: tuple[Any, ...] = (),
    resolution: int = 40,
    kind: str = "stream",
    speed: bool = True,
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """Draw a field of the plane at one time.

    Parameters
    ----------
    f : callable
        ``f(t, y, *args)`` with ``y`` of shape (N, 2); a ``NeuralODE``'s is its ``f``.
    xlim, ylim : (float, float)
        The rectangle.
    t : float
    args : tuple
    resolution : int
        Points a side at which ``f`` is evaluated, in one call.
    kind : "stream" or "quiver"
        Stream lines, or an arrow at every point.
    speed : bool
        Colour the background by ``|f|``, a quad mesh with a colour bar.
    ax : matplotlib Axes, optional
    **style
        Of ``ax.streamplot`` or ``ax.quiver``.

    Returns
    -------
    matplotlib Axes
    """
    if kind not in ("stream", "quiver"):
        raise InputError(explain(f"kind = {kind!r}", "'stream' or 'quiver'", "choose one of them"))
    grid = Grid(xlim, ylim, resolution, placement(f))
    with inspecting(f):
        value = f(grid.points.new_tensor(t), grid.points, *args)
    field = checked(value, len(grid.points), "f", columns=2)
    u, v = grid.square(field[:, 0]), grid.square(field[:, 1])
    ax = _with_speed(ax, grid, field.norm(dim=1) if speed else None, "|f|")
    if kind == "stream":
        ax.streamplot(grid.x, grid.y, u, v, **(_LINES | style))
    else:
        ax.quiver(grid.x, grid.y, u, v, **style)
    ax.set_xlim(*xlim)
    ax.set_ylim(*ylim)
    ax.set_xlabel("$y_0$")
    ax.set_ylabel("$y_1$")
    return ax


def plot_field_over_time(
    f: Callback,
    *,
    tlim: Limits,
    ylim: Limits,
    args: tuple[Any, ...] = (),
    resolution: int = 40,
    speed: bool = True,
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """Draw the field of a scalar state over time: the stream lines of ``(1, f(t, y))`` are its solutions.

    Parameters
    ----------
    f : callable
        ``f(t, y, *args)`` with ``y`` of shape (N, 1) and a 0-dim ``t``.
    tlim, ylim : (float, float)
        The rectangle.
    args : tuple
    resolution : int
        Times, and values at each of them: ``f`` is called once a time.
    speed : bool
        Colour the background by ``|f|``.
    ax : matplotlib Axes, optional
    **style
        Of ``ax.streamplot``.

    Returns
    -------
    matplotlib Axes
    """
    grid = Grid(tlim, ylim, resolution, placement(f))
    states = grid.points[:: grid.resolution, 1:]
    columns = []
    with inspecting(f):
        for t in grid.points[: grid.resolution, 0]:
            columns.append(checked(f(t, states, *args), len(states), "f"))
    slopes = torch.stack(columns, dim=1).reshape(-1)  # rows of one value, like the grid's points
    ax = _with_speed(ax, grid, slopes.abs() if speed else None, "|f|")
    v = grid.square(slopes)
    ax.streamplot(grid.x, grid.y, v * 0 + 1, v, **(_LINES | style))
    ax.set_xlim(*tlim)
    ax.set_ylim(*ylim)
    ax.set_xlabel("t")
    ax.set_ylabel("y")
    return ax


def _with_speed(ax: Axes | None, grid: Grid, values: Tensor | None, name: str) -> Axes:
    ax = axes_or_new(ax)
    if values is not None:
        mesh = ax.pcolormesh(grid.x, grid.y, grid.square(values), cmap="viridis", alpha=0.8, shading="gouraud")
        ax.figure.colorbar(mesh, ax=ax, label=name)
    return ax
