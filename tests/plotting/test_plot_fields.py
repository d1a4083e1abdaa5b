"""Fields, densities and decisions on a grid: what is drawn at a point is the model's value there."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import pynode
from pynode.errors import InputError
from pynode.nn import Augment, NeuralODE
from pynode.plotting import (
    plot_boundary_over_depth,
    plot_decision_boundary,
    plot_density,
    plot_field_over_time,
    plot_vector_field,
)

BOX = {"xlim": (-2.0, 2.0), "ylim": (-1.0, 3.0)}


@pytest.fixture
def ax():
    return pytest.importorskip("matplotlib.figure").Figure().add_subplot()


class Rotation(torch.nn.Module):
    """``(-w y, w x)``, with a field that counts and depends on time."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(2.0, dtype=dtype))
        self.norm = torch.nn.BatchNorm1d(2, dtype=dtype)
        self.seen = []

    def forward(self, t, y):
        self.seen.append((y.dtype, torch.is_grad_enabled(), self.training))
        self.norm(y)
        return self.w * torch.stack([-y[:, 1], y[:, 0]], dim=1) + t


def mesh_of(ax):
    from matplotlib.collections import QuadMesh

    (mesh,) = [c for c in ax.collections if isinstance(c, QuadMesh)]
    return mesh


def test_vector_field_arrows_and_speed_are_the_field_at_their_points(ax):
    from matplotlib.quiver import Quiver

    f = Rotation()
    assert plot_vector_field(f, **BOX, resolution=5, kind="quiver", t=0.5, ax=ax) is ax
    (arrows,) = [c for c in ax.collections if isinstance(c, Quiver)]
    x, y = arrows.XY.T
    np.testing.assert_allclose(np.unique(x), np.linspace(-2, 2, 5))
    np.testing.assert_allclose(np.unique(y), np.linspace(-1, 3, 5))
    np.testing.assert_allclose(arrows.U, -2 * y + 0.5)
    np.testing.assert_allclose(arrows.V, 2 * x + 0.5)
    np.testing.assert_allclose(mesh_of(ax).get_array().ravel(), np.hypot(-2 * y + 0.5, 2 * x + 0.5))


def test_a_picture_leaves_the_model_as_it_was(ax):
    f = Rotation(torch.float32)
    mean = f.norm.running_mean.clone()
    plot_vector_field(f, **BOX, resolution=5, ax=ax)
    assert f.seen == [(torch.float32, False, False)]  # one call, in the model's precision
    assert f.training
    assert f.norm.training
    torch.testing.assert_close(f.norm.running_mean, mean, rtol=0, atol=0)
    assert f.w.grad is None


def test_stream_lines_follow_the_field(ax):
    plot_vector_field(lambda t, y: torch.stack([-y[:, 1], y[:, 0]], dim=1), xlim=(-2, 2), ylim=(-2, 2), ax=ax)
    from matplotlib.collections import LineCollection

    (lines,) = [c for c in ax.collections if isinstance(c, LineCollection)]
    lines = [line for line in lines.get_segments() if len(line) > 1]
    # Circles, up to matplotlib's integrator; with the axes swapped they would be hyperbolas.
    spreads = [np.ptp(np.hypot(*line.T)) for line in lines]
    lengths = [np.abs(np.diff(np.unwrap(np.arctan2(line[:, 1], line[:, 0])))).sum() for line in lines]
    assert max(spreads) < 0.05
    assert max(lengths) > 3


def test_field_over_time_is_evaluated_at_every_time(ax):
    plot_field_over_time(lambda t, y: t * y**2, tlim=(0, 3), ylim=(-1, 2), resolution=7, ax=ax)
    t, y = np.meshgrid(np.linspace(0, 3, 7), np.linspace(-1, 2, 7))
    np.testing.assert_allclose(mesh_of(ax).get_array().ravel(), (t * y**2).ravel(), atol=1e-6)
    np.testing.assert_allclose(mesh_of(ax).get_coordinates()[..., 0].max(), 3)


class Gaussian(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mean = torch.nn.Parameter(torch.tensor([0.5, 1.0], dtype=torch.float64))

    def log_prob(self, x):
        return -((x - self.mean) ** 2).sum(dim=1) / 2 - math.log(2 * math.pi)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("make", [lambda g: g, lambda g: g.log_prob, lambda g: lambda x: g.log_prob(x.double())])
def test_density_is_drawn_where_it_is(ax, log, make):
    g = Gaussian()
    plot_density(make(g), **BOX, resolution=9, log=log, chunk=20, samples=torch.tensor([[0.1, 0.2]]), ax=ax)
    x, y = np.meshgrid(np.linspace(-2, 2, 9), np.linspace(-1, 3, 9))
    expected = np.exp(-((x - 0.5) ** 2 + (y - 1) ** 2) / 2) / (2 * math.pi)
    np.testing.assert_allclose(mesh_of(ax).get_array(), np.log(expected) if log else expected, rtol=1e-6)
    # The cell of a value is centred at its point.
    corners = mesh_of(ax).get_coordinates()
    np.testing.assert_allclose((corners[:-1, :-1, 0] + corners[1:, 1:, 0]) / 2, x, atol=1e-12)
    np.testing.assert_allclose(ax.collections[-1].get_offsets(), [[0.1, 0.2]], rtol=1e-6)


def test_a_distribution_integrates_to_one(ax):
    normal = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    plot_density(normal, xlim=(-6, 6), ylim=(-6, 6), resolution=121, ax=ax)
    assert mesh_of(ax).get_array().sum() * 0.1**2 == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "classify",
    [
        lambda y: y[:, 0] - y[:, 1],
        lambda y: (y[:, 0] - y[:, 1])[:, None],
        lambda y: torch.stack([y[:, 1], y[:, 0]], dim=1),
    ],
    ids=["logit", "column", "two logits"],
)
def test_decision_boundary_is_the_line_where_logits_are_equal(ax, classify):
    points = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    plot_decision_boundary(classify, **BOX, points=points, labels=[1, 0], colors=["red", "blue"], ax=ax)
    x, y = np.meshgrid(np.linspace(-2, 2, 200), np.linspace(-1, 3, 200))
    drawn = np.asarray(mesh_of(ax).get_array())
    off = np.abs(x - y) > 1e-6
    np.testing.assert_array_equal(drawn[off], (x > y)[off])
    (line,) = zero_lines(ax)
    assert len(line) > 50
    np.testing.assert_allclose(line[:, 0], line[:, 1], atol=1e-5)
    np.testing.assert_allclose(ax.collections[-1].get_facecolor()[:, 2], [1, 0])  # blue for class 1


def test_three_classes_have_boundaries_between_every_two(ax):
    centers = torch.tensor([[0.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    plot_decision_boundary(lambda y: -torch.cdist(y, centers), xlim=(-2, 2), ylim=(-2, 2), ax=ax)
    drawn = np.asarray(mesh_of(ax).get_array())
    assert set(np.unique(drawn)) == {0, 1, 2}
    on = np.concatenate(zero_lines(ax))
    distances = np.sort(torch.cdist(torch.from_numpy(on).float(), centers).numpy(), axis=1)
    assert np.abs(distances[:, 0] - distances[:, 1]).max() < 0.02  # a cell is 0.02 wide
    nearest = np.argsort(torch.cdist(torch.from_numpy(on).float(), centers).numpy(), axis=1)[:, :2]
    assert {tuple(sorted(pair)) for pair in nearest.tolist()} == {(0, 1), (0, 2), (1, 2)}


def test_the_flow_turns_the_boundary_of_its_head(ax):
    """A quarter turn: a head that looks at the first component sees the second one of the input, with sign."""
    f = Rotation()
    f.forward = lambda t, y: f.w * torch.stack([-y[:, 1], y[:, 0]], dim=1)
    end = torch.nn.Parameter(torch.tensor(math.pi / 4, dtype=torch.float64))  # w = 2: a quarter turn in all
    ode = NeuralODE(f, (0.0, end), output=lambda y: y[:, 0], rtol=1e-8, atol=1e-8)
    depths = [math.pi / 4, math.pi / 8, 0.0]
    plot_boundary_over_depth(ode, None, depths, xlim=(-1, 1.2), ylim=(-1, 1), resolution=41, ax=ax)
    lines = zero_lines(ax)
    assert len(lines) == 3
    for depth, line in zip(depths, lines, strict=True):
        angle = 2 * (math.pi / 4 - depth)  # still to turn
        assert np.abs(line[:, 0] * math.cos(angle) - line[:, 1] * math.sin(angle)).max() < 1e-6
        assert np.ptp(line, axis=0).max() > 1.9


@pytest.mark.parametrize(
    ("whole", "first"),
    [
        (([0.0, 0.3, 0.5, 1.0], pynode.Euler()), ([0.0, 0.3, 0.5], pynode.Euler())),
        (([0.0, 1.0], pynode.Euler(steps=4)), ([0.0, 0.5], pynode.Euler(steps=2))),
        (([1.0, 0.5, 0.0], pynode.Euler()), ([1.0, 0.5], pynode.Euler())),
    ],
    ids=["steps at t", "equal steps", "backward"],
)
def test_coarse_fixed_steps_are_those_of_the_whole_flow(ax, whole, first):
    """The boundary is that of Euler's map, far from the exact flow's, and Euler's first half carries it along."""
    f = Rotation()
    f.forward = lambda t, y: f.w * torch.stack([-y[:, 1], y[:, 0]], dim=1)
    ode, start = (NeuralODE(f, t, algorithm=algorithm) for t, algorithm in (whole, first))
    depths = [whole[0][0], 0.5]
    plot_boundary_over_depth(ode, lambda y: y[:, 0], depths, xlim=(-1, 1.2), ylim=(-1, 1), resolution=41, ax=ax)
    at_start, at_half = (torch.from_numpy(line) for line in zero_lines(ax))
    assert ode(at_start)[:, 0].abs().max() < 1e-6
    across = (at_half[-1] - at_half[0]).flip(0) * torch.tensor([1.0, -1.0])  # lines through the origin
    assert (start(at_start) @ across).abs().max() < 1e-6
    assert (at_start @ across).abs().max() > 0.1


def test_no_boundary_inside_draws_none(ax):
    ode = NeuralODE(lambda t, y: -y, algorithm=pynode.RK4(steps=2))
    plot_boundary_over_depth(ode, lambda y: y[:, 0] ** 2 + 1, [0.0], xlim=(-1, 1), ylim=(-1, 1), ax=ax)
    assert zero_lines(ax) == []


def zero_lines(ax):
    from matplotlib.contour import ContourSet

    return [np.concatenate(c.allsegs[0]) for c in ax.collections if isinstance(c, ContourSet)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda ax: plot_vector_field(lambda t, y: y, xlim=(1, -1), ylim=(0, 1), ax=ax), "xlim.*low < high"),
        (lambda ax: plot_vector_field(lambda t, y: y[:, 0], **BOX, ax=ax), r"returned shape \(1600,\)"),
        (lambda ax: plot_vector_field(lambda t, y: y, **BOX, kind="dots", ax=ax), "'stream' or 'quiver'"),
        (lambda ax: plot_vector_field(lambda t, y: y, **BOX, resolution=1, ax=ax), "at least 2"),
        (lambda ax: plot_density(3, **BOX, ax=ax), "log_prob"),
        (lambda ax: plot_density(lambda x: x, **BOX, resolution=4, ax=ax), r"log_prob returned shape \(16, 2\)"),
        (lambda ax: plot_decision_boundary(lambda x: x[0], **BOX, ax=ax), r"shape \(N, C\)"),
        (
            lambda ax: plot_boundary_over_depth(NeuralODE(lambda t, y: y), lambda y: y, [2.0], **BOX, ax=ax),
            r"depths in \[0, 1\]",
        ),
        (
            lambda ax: plot_boundary_over_depth(NeuralODE(lambda t, y: y), None, [0.0], **BOX, ax=ax),
            "neither a head nor ode.output",
        ),
        (
            lambda ax: plot_boundary_over_depth(
                NeuralODE(lambda t, y: y, input=Augment(1)), lambda y: y, [0.0], **BOX, ax=ax
            ),
            "use plot_decision_boundary",
        ),
    ],
)
def test_bad_input_is_explained(ax, call, message):
    with pytest.raises(InputError, match=message):
        call(ax)
