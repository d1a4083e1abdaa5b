"""Where a classifier changes its mind: in the input plane, and at every depth of its flow."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pynode.algorithms import FixedStep
from pynode.errors import InputError, explain
from pynode.nn.neural_ode import NeuralODE
from pynode.plotting.canvas import as_array, axes_or_new, line_colors
from pynode.plotting.grid import Callback, Grid, Limits, inspecting, placement

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_decision_boundary(
    classify: Callback,
    *,
    xlim: Limits,
    ylim: Limits,
    points: Any = None,
    labels: Any = None,
    colors: Sequence[Any] | None = None,
    resolution: int = 200,
    ax: Axes | None = None,
) -> Axes:
    """Colour the plane by what a classifier says, with the boundaries between its classes.

    Parameters
    ----------
    classify : callable
        From points (N, 2) to logits (N, C), or to one logit (N, 1) or (N,), positive for class 1.
    xlim, ylim : (float, float)
    points, labels : (M, 2) and (M,), optional
        Data drawn on top, in the colours of their classes.
    colors : sequence, optional
        Of the classes.
    resolution : int
        Points a side.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
        With a quad mesh of the predicted classes.
    """
    from matplotlib.colors import ListedColormap

    grid = Grid(xlim, ylim, resolution, placement(classify))
    with inspecting(classify):
        margins = class_margins(classify(grid.points), len(grid.points))
    classes = margins.shape[1]
    palette = line_colors(range(classes), colors, classes)
    ax = axes_or_new(ax)
    predicted = grid.square(margins.argmax(dim=1))
    style: dict[str, Any] = {"cmap": ListedColormap(palette), "vmin": -0.5, "vmax": classes - 0.5}
    ax.pcolormesh(grid.x, grid.y, predicted, alpha=0.25, shading="nearest", **style)
    for margin in margins.T[1:]:
        _zero_line(ax, grid, margin, color="#333333")
    if points is not None:
        at = as_array(points)
        ax.scatter(at[:, 0], at[:, 1], s=8, c=line_colors(labels, palette, len(at)), linewidth=0, zorder=3)
    ax.set_xlim(*xlim)
    ax.set_ylim(*ylim)
    return ax


def plot_boundary_over_depth(
    ode: NeuralODE,
    head: Callback | None,
    depths: Sequence[float],
    *,
    xlim: Limits,
    ylim: Limits,
    resolution: int = 100,
    cmap: str = "viridis",
    ax: Axes | None = None,
) -> Axes:
    """Draw the decision boundary among the states at several depths of a flow.

    A state ``y`` at depth ``s`` is classified as ``head(flow from s to the end (y))``: at the end the boundary is the
    head's own, at the start it is the one in the input plane, and in between the flow carries the one to the other.
    Fixed steps keep their size, so that depths at their ends are exactly those of the whole flow.

    Parameters
    ----------
    ode : NeuralODE
        With states (N, 2) and neither ``input`` nor ``condition``; its ``t[-1]`` is the final depth.
    head : callable or None
        From final states (N, 2) to logits (N, C), or one logit (N, 1) or (N,); ``ode.output`` by default.
    depths : sequence of float
        Between ``ode.t[0]`` and ``ode.t[-1]``.
    xlim, ylim : (float, float)
    resolution : int
        Points a side.
    cmap : str
        Colour map of the depths.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
        With one contour set for each depth and each class after the first, and a colour bar.
    """
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    head = ode.output if head is None else head
    if head is None or ode.input is not None or ode.condition is not None:
        came = "neither a head nor ode.output" if head is None else "an ode with input= or condition="
        raise InputError(
            explain(came, "a flow of the plane itself and a head", "use plot_decision_boundary for the input's plane")
        )
    times = _times(ode)
    start, end = times[0], times[-1]
    low, high = min(start, end), max(start, end)
    if not len(depths) or not all(low <= s <= high for s in depths):
        raise InputError(explain(f"depths = {list(depths)}", f"depths in [{low:g}, {high:g}]", "choose others"))
    grid = Grid(xlim, ylim, resolution, placement(ode, head))
    ax = axes_or_new(ax)
    scale: Any = ScalarMappable(Normalize(low, high), matplotlib.colormaps[cmap])
    for depth in map(float, depths):
        with inspecting(ode, head):
            final = grid.points if depth == end else _rest(ode, times, depth, grid.points)
            margins = class_margins(head(final), len(grid.points))
        for margin in margins.T[1:]:
            _zero_line(ax, grid, margin, color=scale.to_rgba(depth))
    ax.figure.colorbar(scale, ax=ax, label="depth")
    ax.set_xlim(*xlim)
    ax.set_ylim(*ylim)
    return ax


def _times(ode: NeuralODE) -> list[float]:
    return [float(t) for t in as_array(ode.t() if isinstance(ode.t, torch.nn.Module) else ode.t)]


def _rest(ode: NeuralODE, times: list[float], depth: float, y: Tensor) -> Tensor:
    """The flow from ``depth`` to the end, in the steps of the whole one where these are fixed."""
    start, end = times[0], times[-1]
    own = copy.copy(ode)  # shares the parameters, not the options
    if isinstance(own.algorithm, FixedStep) and own.algorithm.steps is not None:
        own.algorithm = dataclasses.replace(own.algorithm, steps=None, dt=abs(end - start) / own.algorithm.steps)
    later = [t for t in times if (t - depth) * (end - start) > 0]
    final: Tensor = own.solve(y, [depth, *later]).ys[-1]
    return final


def class_margins(logits: Any, count: int) -> Tensor:
    """By how much each class's logit exceeds the best of the others, (count, C); one logit stands for ``[0, logit]``.

    Raises
    ------
    InputError
        If the logits do not have one row a point.
    """
    if not isinstance(logits, Tensor) or logits.ndim not in (1, 2) or len(logits) != count:
        came = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise InputError(
            explain(
                f"the classifier returned {came} for {count} points",
                "logits of shape (N, C), (N, 1) or (N,)",
                "return one row for each point",
            )
        )
    logits = logits.reshape(count, -1)
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    best, second = logits.topk(2, dim=1).values.T
    others = torch.where(logits == best[:, None], second[:, None], best[:, None])
    margins: Tensor = logits - others
    return margins


def _zero_line(ax: Axes, grid: Grid, margin: Tensor, color: Any) -> None:
    values = grid.square(margin)
    if values.min() < 0 < values.max():  # matplotlib warns where there is no line
        ax.contour(grid.x, grid.y, values, levels=[0.0], colors=[color], linewidths=1.2)
