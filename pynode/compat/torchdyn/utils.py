"""torchdyn.utils: its pictures, by :mod:`pynode.plotting`.

Each returns the axes it drew (a list where there are two). Models are evaluated where their parameters are; ``device=``
is accepted, and needed nowhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from pynode.compat.torchdyn.core.neuralde import NeuralODE
from pynode.errors import InputError, explain
from pynode.plotting import plot_field_over_time, plot_space_depth, plot_trajectories, plot_vector_field
from pynode.plotting.canvas import as_array
from pynode.plotting.grid import inspecting, placement

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "plot_2D_depth_trajectory",
    "plot_2D_space_depth",
    "plot_2D_state_space",
    "plot_2d_boundary",
    "plot_2d_flows",
    "plot_3D_dataset",
    "plot_static_vector_field",
    "plot_traj_vf_1D",
]

_COLORS = ("orange", "blue")


def plot_2d_boundary(
    model: Any,
    X: Tensor,
    y: Tensor,
    mesh: Tensor,
    num_classes: int = 2,
    figsize: tuple[float, float] = (8, 4),
    alpha: float = 0.8,
) -> Axes:
    """The class that ``model`` gives each point of ``mesh`` (rows, columns, 2), and the data."""
    if mesh.ndim != 3 or mesh.shape[-1] != 2:
        raise InputError(
            explain(f"mesh has shape {tuple(mesh.shape)}", "(rows, columns, 2)", "stack torch.meshgrid's two tensors")
        )
    with inspecting(model):
        classes = model(mesh.reshape(-1, 2).to(placement(model))).argmax(dim=1).reshape(mesh.shape[:2])
    ax: Axes = _axes(1, figsize)[0]
    x0, x1 = as_array(mesh[..., 0]), as_array(mesh[..., 1])
    ax.pcolormesh(x0, x1, as_array(classes), cmap="winter", alpha=alpha, shading="nearest")
    points = as_array(X)
    for label in range(num_classes):
        ax.scatter(*points[as_array(y) == label, :2].T, alpha=alpha)
    return ax


def plot_2d_flows(
    trajectory: Tensor, num_flows: int = 2, figsize: tuple[float, float] = (8, 4), alpha: float = 0.8
) -> list[Axes]:
    """Both dimensions of the first trajectories (T, batch, 2) against the number of the time."""
    axes = _axes(2, figsize)
    for dimension, (ax, color) in enumerate(zip(axes, ("red", "blue"), strict=True)):
        paths = trajectory[:, :num_flows, dimension : dimension + 1]
        plot_trajectories(range(len(paths)), paths, colors=[color], alpha=alpha, ax=ax)
        ax.set_title(f"Dimension: {dimension}")
    return axes


def plot_2D_depth_trajectory(s_span: Tensor, trajectory: Tensor, yn: Tensor, n_samples: int = 128) -> list[Axes]:
    """Both dimensions of trajectories (T, batch, 2) over depth, in the colours of their classes."""
    axes = _axes(2, (8, 2))
    for dimension, ax in enumerate(axes):
        paths = trajectory[:, :n_samples, dimension : dimension + 1]
        plot_trajectories(s_span, paths, labels=yn[:n_samples], colors=_COLORS, alpha=0.1, ax=ax)
        ax.set_xlabel("$s$ [Depth]")
        ax.set_ylabel(f"$h_{dimension}(s)$")
        ax.set_title(f"Dimension {dimension}")
    return axes


def plot_2D_state_space(trajectory: Tensor, yn: Tensor, n_samples: int = 128) -> Axes:
    """Trajectories (T, batch, 2) in the plane, in the colours of their classes."""
    ax: Axes = _axes(1, (3, 3))[0]
    paths = as_array(trajectory[:, :n_samples])
    for index, label in enumerate(yn[:n_samples].tolist()):
        ax.plot(paths[:, index, 0], paths[:, index, 1], color=_COLORS[int(label)], alpha=0.1)
    ax.set_xlabel("$h_0$")
    ax.set_ylabel("$h_1$")
    ax.set_title("Flows in the state-space")
    return ax


def plot_2D_space_depth(s_span: Tensor, trajectory: Tensor, yn: Tensor, n_lines: int) -> Axes:
    """Trajectories (T, batch, 2) over depth in three dimensions."""
    ax: Any = plot_space_depth(s_span, trajectory[:, :n_lines], labels=yn[:n_lines], colors=_COLORS, alpha=0.1)
    ax.view_init(30, -110)
    ax.set_xlabel("$s$ [Depth]")
    ax.set_ylabel("$h_0$")
    ax.set_zlabel("$h_1$")
    ax.set_title("Flows in the space-depth")
    return ax  # type: ignore[no-any-return]


def plot_static_vector_field(
    model: NeuralODE, trajectory: Tensor, t: float = 0.0, N: int = 50, device: Any = None
) -> Axes:
    """The model's field at one time, over the rectangle of trajectories (T, batch, 2)."""
    points = trajectory.detach().reshape(-1, trajectory.shape[-1])
    low, high = points.amin(dim=0).tolist(), points.amax(dim=0).tolist()
    ax: Axes = _axes(1, (3, 3))[0]
    plot_vector_field(model.vf, xlim=(low[0], high[0]), ylim=(low[1], high[1]), t=t, resolution=N, ax=ax, color="k")
    ax.set_xlabel("$h_0$")
    ax.set_ylabel("$h_1$")
    ax.set_title("Learned Vector Field")
    return ax


def plot_traj_vf_1D(
    model: NeuralODE,
    s_span: Tensor,
    traj: Tensor | None,
    device: Any = None,
    x_span: Any = (-1, 1),
    n_grid: int = 100,
    n_levels: int = 30,
    contour_alpha: float = 0.7,
    cmap: str = "winter",
    traj_color: str = "orange",
    traj_alpha: float = 0.1,
) -> Axes:
    """The field of a scalar state over depth, and trajectories (T, batch, 1)."""
    if model.controlled:
        raise InputError(
            explain("the model has a DataControl", "one field for all inputs", "plot its trajectories instead")
        )
    ax = plot_field_over_time(
        model.vf,
        tlim=(float(s_span[0]), float(s_span[-1])),
        ylim=(float(x_span[0]), float(x_span[-1])),
        resolution=n_grid,
    )
    if traj is not None:
        plot_trajectories(s_span, traj, colors=[traj_color], alpha=traj_alpha, ax=ax)
    ax.set_xlabel("$s$ [Depth]")
    ax.set_ylabel("$h(s)$")
    return ax


def plot_3D_dataset(X: Tensor, yn: Tensor) -> Axes:
    """Points (N, 3) in the colours of their classes."""
    ax: Axes = _axes(1, (4, 4), projection="3d")[0]
    points = as_array(X)
    ax.scatter(points[:, 0], points[:, 1], points[:, 2], color=[_COLORS[int(y)] for y in yn.tolist()], alpha=0.1)
    ax.set_title("Data Points")
    return ax


def _axes(count: int, size: tuple[float, float], projection: str | None = None) -> list[Any]:
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=size, layout="constrained")
    return [figure.add_subplot(1, count, i + 1, projection=projection) for i in range(count)]
