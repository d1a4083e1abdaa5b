"""Pictures of solutions. Needs matplotlib (``pip install 'pynode[plot]'``), imported when something is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pynode.errors import InputError, explain

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def principal_plane(points: Tensor) -> tuple[Tensor, Tensor]:
    """The plane that keeps most of the variance of some points.

    Parameters
    ----------
    points : Tensor
        Shape (N, D) with N >= 2 and D >= 2.

    Returns
    -------
    center : Tensor
        Mean of the points, shape (D,).
    directions : Tensor
        Two orthonormal vectors, shape (2, D), the one with the larger variance first, each with its largest entry
        positive.
    """
    if points.ndim != 2 or min(points.shape) < 2:
        raise InputError(
            explain(f"points have shape {tuple(points.shape)}", "shape (N, D) with N, D >= 2", "pass more points")
        )
    center = points.mean(dim=0)
    directions = torch.linalg.svd(points - center, full_matrices=False).Vh[:2]
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    return center, directions * largest.sign()


def plot_flow(axes: Axes, ys: Tensor, labels: Tensor, colors: list[str]) -> None:
    """Draw trajectories in the principal plane of their end points: a line for each, a ring where it starts, a disc
    where it ends.

    Parameters
    ----------
    axes : matplotlib Axes
    ys : Tensor
        Trajectories, shape (T, batch, ...): what ``NeuralODE.trajectory`` returns.
    labels : Tensor
        Class of each trajectory, shape (batch,).
    colors : list of str
        Of each class.
    """
    flat = ys.detach().flatten(start_dim=2).double().cpu()
    center, directions = principal_plane(flat[-1])
    paths = ((flat - center) @ directions.T).numpy()
    for index, label in enumerate(labels.tolist()):
        color = colors[label]
        x, y = paths[:, index, 0], paths[:, index, 1]
        axes.plot(x, y, color=color, linewidth=0.7, alpha=0.45, zorder=1)
        axes.scatter(x[0], y[0], s=9, facecolor="white", edgecolor=color, linewidth=0.7, zorder=2)
        axes.scatter(x[-1], y[-1], s=20, color=color, edgecolor="white", linewidth=0.4, zorder=3)
