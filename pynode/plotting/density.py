"""The density of a flow in the plane."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pynode.errors import InputError, explain
from pynode.plotting.canvas import as_array, axes_or_new
from pynode.plotting.grid import Callback, Grid, Limits, checked, inspecting, placement

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_density(
    model: Any,
    *,
    xlim: Limits,
    ylim: Limits,
    resolution: int = 100,
    log: bool = False,
    samples: Any = None,
    chunk: int = 4096,
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """Draw ``exp(log_prob(x))`` over a rectangle of the plane.

    Parameters
    ----------
    model : callable, or object with a method ``log_prob``
        Log-density of points (N, 2), shape (N,): a :class:`pynode.nn.CNF`, a ``torch.distributions`` object, a
        function. ``log_prob`` is taken where there is one.
    xlim, ylim : (float, float)
    resolution : int
        Points a side.
    log : bool
        Draw the log-density itself.
    samples : Tensor (M, 2), optional
        Points drawn on top.
    chunk : int
        Points of one call.
    ax : matplotlib Axes, optional
    **style
        Of ``ax.pcolormesh``.

    Returns
    -------
    matplotlib Axes
        With a quad mesh of the densities at the grid's points.
    """
    log_prob: Callback | None = getattr(model, "log_prob", model if callable(model) else None)
    if log_prob is None:
        raise InputError(
            explain(f"model is a {type(model).__name__}", "a callable or something with log_prob", "pass its log_prob")
        )
    if chunk < 1:
        raise InputError(explain(f"chunk = {chunk}", "at least 1", "leave it out"))
    grid = Grid(xlim, ylim, resolution, placement(model))
    with inspecting(model):
        values = torch.cat([checked(log_prob(part), len(part), "log_prob") for part in torch.split(grid.points, chunk)])
    drawn = grid.square(values if log else values.double().exp())
    ax = axes_or_new(ax)
    defaults: dict[str, Any] = {"cmap": "magma", "shading": "nearest"}
    mesh = ax.pcolormesh(grid.x, grid.y, drawn, **(defaults | style))
    ax.figure.colorbar(mesh, ax=ax, label="log p" if log else "p")
    if samples is not None:
        points = as_array(samples)
        ax.scatter(points[:, 0], points[:, 1], s=2, color="white", alpha=0.5, linewidth=0)
    ax.set_xlim(*xlim)
    ax.set_ylim(*ylim)
    ax.set_aspect("equal")
    return ax
