"""Pictures of solutions."""

from __future__ import annotations

import pytest
import torch

from pynode.errors import InputError
from pynode.plotting import plot_flow, principal_plane


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


def test_plot_flow_draws_a_line_for_each_trajectory_from_its_start_to_its_end():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = figure.add_subplot()
    ys = torch.randn(7, 4, 2, 3, generator=torch.Generator().manual_seed(0)).cumsum(dim=0)
    plot_flow(axes, ys, torch.tensor([0, 1, 1, 0]), ["red", "blue"])
    assert [line.get_color() for line in axes.lines] == ["red", "blue", "blue", "red"]
    assert all(len(line.get_xdata()) == 7 for line in axes.lines)
    # The plane is that of the end points, whose mean is its origin.
    assert sum(line.get_xdata()[-1] for line in axes.lines) == pytest.approx(0, abs=1e-6)
