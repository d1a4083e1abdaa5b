"""Trajectories: what is drawn is where the states are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pynode.errors import InputError
from pynode.nn import NeuralODE
from pynode.plotting import plot_flow, plot_space_depth, plot_trajectories, principal_plane


@pytest.fixture
def ax():
    return pytest.importorskip("matplotlib.figure").Figure().add_subplot()


def walk(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).cumsum(dim=0)


def test_principal_plane_finds_the_two_directions_of_largest_variance():
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([0.1, 5.0, 0.01, 2.0], dtype=torch.float64)
    points = torch.randn(400, 4, generator=generator, dtype=torch.float64) * spread + 3
    center, directions = principal_plane(points)
    torch.testing.assert_close(center, points.mean(dim=0))
    torch.testing.assert_close(directions @ directions.T, torch.eye(2, dtype=torch.float64))
    expected = torch.eye(4, dtype=torch.float64)[[1, 3]]
    torch.testing.assert_close(directions, expected, atol=0.05, rtol=0)


@pytest.mark.parametrize("shape", [(5,), (1, 5), (5, 1)])
def test_principal_plane_refuses_what_has_none(shape):
    with pytest.raises(InputError, match=r"N, D >= 2"):
        principal_plane(torch.zeros(shape))


def test_plot_flow_draws_a_line_for_each_trajectory_from_its_start_to_its_end(ax):
    assert plot_flow(walk(7, 4, 2, 3), labels=[0, 1, 1, 0], colors=["red", "blue"], ax=ax) is ax
    assert [line.get_color() for line in ax.lines] == ["red", "blue", "blue", "red"]
    assert all(len(line.get_xdata()) == 7 for line in ax.lines)
    # The plane is that of the end points, whose mean is its origin.
    assert sum(line.get_xdata()[-1] for line in ax.lines) == pytest.approx(0, abs=1e-6)


def test_plot_flow_of_the_plane_draws_the_coordinates_themselves(ax):
    ys = walk(7, 4, 2)
    plot_flow(ys.requires_grad_(), ax=ax)
    for i, line in enumerate(ax.lines):
        np.testing.assert_allclose(line.get_xydata(), ys[:, i].detach().numpy(), rtol=1e-7)
    # Rings and discs in turn: at the start and at the end of each line.
    marks = np.concatenate([c.get_offsets() for c in ax.collections])
    ends = ys[[0, -1]].detach().transpose(0, 1).reshape(-1, 2).numpy()
    np.testing.assert_allclose(marks, ends, rtol=1e-7)


def test_plot_trajectories_draws_each_component_over_time(ax):
    ts, ys = torch.linspace(0, 2, 5), walk(5, 3, 2).requires_grad_()
    plot_trajectories(ts, ys, ax=ax, linewidth=3)
    assert len(ax.lines) == 6
    for line, (i, c) in zip(ax.lines, [(i, c) for i in range(3) for c in range(2)], strict=True):
        np.testing.assert_allclose(line.get_xdata(), ts)
        np.testing.assert_allclose(line.get_ydata(), ys[:, i, c].detach(), rtol=1e-7)
        assert line.get_linewidth() == 3
    colors = [line.get_color() for line in ax.lines]
    assert colors[0] == colors[2] == colors[4] != colors[1]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["component 0", "component 1"]


@pytest.mark.parametrize(("shape", "lines"), [((5,), 1), ((5, 3), 3), ((5, 4, 2, 3), 24)])
def test_plot_trajectories_takes_states_of_any_shape(ax, shape, lines):
    plot_trajectories(range(5), walk(*shape), ax=ax)
    drawn = np.stack([line.get_ydata() for line in ax.lines], axis=1)
    np.testing.assert_allclose(drawn, walk(*shape).reshape(5, lines), rtol=1e-7)


def test_plot_trajectories_colors_labels_and_picks_components(ax):
    ys = walk(5, 3, 4)
    plot_trajectories(range(5), ys, labels=torch.tensor([1, 0, 1]), colors=["red", "blue"], components=[3], ax=ax)
    assert [line.get_color() for line in ax.lines] == ["blue", "red", "blue"]
    np.testing.assert_allclose(ax.lines[1].get_ydata(), ys[:, 1, 3], rtol=1e-7)


def test_space_depth_draws_time_and_both_components():
    ts, ys = torch.linspace(0, 1, 6), walk(6, 3, 2)
    ax = pytest.importorskip("matplotlib.figure").Figure().add_subplot(projection="3d")
    plot_space_depth(ts, ys, labels=[0, 1, 0], ax=ax)
    for i, line in enumerate(ax.lines):
        t, x, y = line.get_data_3d()
        np.testing.assert_allclose(t, ts)
        np.testing.assert_allclose(np.stack([x, y], axis=1), ys[:, i], rtol=1e-7)


def test_without_ax_there_is_a_figure_of_its_own(monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("Agg")
    first, second = plot_flow(walk(3, 2, 2)), plot_trajectories(range(3), walk(3, 2))
    assert first.figure is not second.figure
    assert plot_space_depth(range(3), walk(3, 2, 2)).name == "3d"
    plt.close("all")


def test_trajectories_of_a_neural_ode_are_drawn_as_they_are_returned(ax):
    ode = NeuralODE(torch.nn.Linear(2, 2).double(), algorithm="rk4")
    ode.f.forward = lambda t, y: torch.nn.functional.linear(y, ode.f.weight)
    ts = torch.linspace(0, 1, 4)
    ys = ode.trajectory(torch.randn(5, 2, dtype=torch.float64), ts)
    plot_flow(ys, ax=ax)
    np.testing.assert_array_equal(ax.lines[2].get_xydata(), ys[:, 2].detach())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda ax: plot_flow(walk(5, 3), ax=ax), "add a batch dimension"),
        (lambda ax: plot_flow(walk(5, 3, 1), ax=ax), "use plot_trajectories"),
        (lambda ax: plot_flow(walk(1, 3, 2), ax=ax), "at least two"),
        (lambda ax: plot_flow(walk(5, 3, 2), labels=[0, 1], ax=ax), "2 labels.*each of 3"),
        (lambda ax: plot_flow(walk(5, 2, 2), labels=[0, 2], colors=["red", "blue"], ax=ax), "labels from 0 to 2"),
        (lambda ax: plot_trajectories(range(4), walk(5, 3), ax=ax), r"shape \(4,\).*\(5,\)"),
        (lambda ax: plot_trajectories(range(5), walk(5, 3), components=[3], ax=ax), "3 components"),
        (lambda ax: plot_trajectories(range(5), walk(5, 3).to(torch.complex64), ax=ax), "real"),
        (lambda ax: plot_trajectories(range(5), (walk(5, 3),), ax=ax), "one leaf"),
        (lambda ax: plot_space_depth(range(5), walk(5, 3, 3), ax=ax), "choose two"),
    ],
)
def test_bad_input_is_explained(ax, call, message):
    with pytest.raises(InputError, match=message):
        call(ax)
