"""torchdyn.datasets and torchdyn.utils over pynode: where the points lie, and what is drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import pynode
from pynode.compat.torchdyn.core import NeuralODE
from pynode.compat.torchdyn.datasets import ToyDataset, randnsphere


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def utils():
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("Agg")
    from pynode.compat.torchdyn import utils

    yield utils
    plt.close("all")


def test_spheres():
    x, y = ToyDataset().generate(200, "spheres", dim=4, inner_radius=0.25, outer_radius=2, noise=0.0)
    torch.testing.assert_close(x[y == 1].norm(dim=1), torch.full((100,), 0.25))
    torch.testing.assert_close(x[y == 0].norm(dim=1), torch.full((100,), 2.0))
    assert x[y == 0].mean(dim=0).abs().max() < 0.4  # all around: 2 / sqrt(4 * 100) is one deviation
    assert randnsphere(3, 5.0).norm().item() == pytest.approx(5)


def test_moons():
    x, y = ToyDataset().generate(101, "moons", noise=0.0)
    torch.testing.assert_close(x[y == 0].norm(dim=1), torch.ones(50))
    torch.testing.assert_close((x[y == 1] - torch.tensor([1.0, 0.5])).norm(dim=1), torch.ones(51))
    assert x[y == 0][:, 1].min() > -1e-6
    assert x[y == 1][:, 1].max() < 0.5 + 1e-6
    shift = (ToyDataset().generate(100, "moons", noise=0.3)[0] - ToyDataset().generate(100, "moons", noise=0.0)[0])[
        :, 0
    ]
    assert 0 <= shift.min() < 0.05
    assert 0.25 < shift.max() <= 0.3


def test_spirals():
    x, y = ToyDataset().generate(50, "spirals", noise=0.0)
    torch.testing.assert_close(x[y == 0], -x[y == 1])
    first = x[y == 0].double()
    radius = first.norm(dim=1)  # Archimedes: the angle is the radius
    torch.testing.assert_close(
        torch.stack([-radius.cos(), radius.sin()], 1) * radius[:, None], first, rtol=0, atol=1e-4
    )
    assert radius.max() < math.radians(780)


def test_gaussians():
    x, y = ToyDataset().generate(400, "gaussians", n_gaussians=6, dim=3, radius=2.0, std_gaussians=0.1)
    for k in range(6):
        angle = 2 * math.pi * (k + 1) / 6
        center = torch.tensor([2 * math.cos(angle), 2 * math.sin(angle), 0.0])
        assert (x[y == k].mean(dim=0) - center).abs().max() < 5 * 0.1 / 20 + 0.005
        torch.testing.assert_close(x[y == k].std(dim=0), torch.full((3,), 0.1), rtol=0.2, atol=0)
    x, y = ToyDataset().generate(400, "gaussians_spiral", n_gaussians=5, noise=0.0)
    radii = torch.stack([x[y == k].mean(dim=0).norm() for k in range(5)])
    torch.testing.assert_close(radii, torch.linspace(1, 0.2, 5), rtol=0, atol=0.08)
    assert x[y == 0].std() > 2 * x[y == 4].std()


def test_diffeqml_lies_on_its_curves():
    x, y = ToyDataset().generate(500, "diffeqml", noise=0.0)
    assert y is None
    radius = x.norm(dim=1)
    assert radius.max() < 2.1
    assert ((radius - 2).abs() < 0.05).float().mean() > 0.3
    assert (radius > 0.9).all()  # the orbits approach the unit circle from outside
    with pytest.raises(pynode.InputError, match="one of moons"):
        ToyDataset().generate(3, "circles")


def test_trajectory_pictures(utils):
    s, path, y = torch.linspace(0, 1, 4), torch.randn(4, 6, 2).requires_grad_(), torch.tensor([0, 1, 0, 1, 1, 0])
    for dimension, ax in enumerate(utils.plot_2D_depth_trajectory(s, path, y, n_samples=5)):
        assert len(ax.lines) == 5
        np.testing.assert_allclose(ax.lines[3].get_xdata(), s)
        np.testing.assert_allclose(ax.lines[3].get_ydata(), path[:, 3, dimension].detach(), rtol=1e-6)
        assert [line.get_color() for line in ax.lines] == ["orange", "blue", "orange", "blue", "blue"]
    ax = utils.plot_2D_state_space(path, y)
    np.testing.assert_allclose(ax.lines[2].get_xydata(), path[:, 2].detach(), rtol=1e-6)
    ax = utils.plot_2D_space_depth(s, path, y, 4)
    np.testing.assert_allclose(np.stack(ax.lines[1].get_data_3d(), 1)[:, 1:], path[:, 1].detach(), rtol=1e-6)
    for dimension, ax in enumerate(utils.plot_2d_flows(path, num_flows=3)):
        np.testing.assert_allclose(ax.lines[2].get_ydata(), path[:, 2, dimension].detach(), rtol=1e-6)
    ax = utils.plot_3D_dataset(torch.randn(7, 3), torch.tensor([0, 1, 0, 1, 0, 1, 0]))
    assert ax.name == "3d"


def test_field_pictures_need_no_device(utils):
    from matplotlib.collections import QuadMesh

    model = NeuralODE(nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)))
    path = model.trajectory(torch.randn(5, 2), torch.linspace(0, 1, 3))
    ax = utils.plot_static_vector_field(model, path, N=9)
    (mesh,) = [c for c in ax.collections if isinstance(c, QuadMesh)]
    corner = path.detach().reshape(-1, 2).amin(dim=0)
    with torch.no_grad():
        speed = model.vf(0.0, corner[None]).norm().item()
    assert mesh.get_array().ravel()[0] == pytest.approx(speed, rel=1e-5)
    scalar = NeuralODE(lambda t, x: t - x)
    path = scalar.trajectory(torch.randn(4, 1), torch.linspace(0, 1, 3))
    ax = utils.plot_traj_vf_1D(scalar, torch.linspace(0, 1, 3), path, None, [-1, 1], 11)
    np.testing.assert_allclose(ax.lines[-1].get_ydata(), path[:, -1, 0].detach(), rtol=1e-6)


def test_the_boundary_of_a_classifier_of_the_mesh(utils):
    from matplotlib.collections import QuadMesh

    mesh = torch.stack(torch.meshgrid(torch.linspace(-1, 1, 5), torch.linspace(-2, 2, 7), indexing="xy"), dim=-1)
    x, y = torch.randn(6, 2), torch.tensor([0, 1, 0, 1, 0, 1])
    ax = utils.plot_2d_boundary(lambda z: torch.stack([-z[:, 0] - 0.1, z[:, 0]], 1), x, y, mesh)
    (quad,) = [c for c in ax.collections if isinstance(c, QuadMesh)]
    np.testing.assert_array_equal(quad.get_array(), (mesh[..., 0] > -0.05).float())
    np.testing.assert_allclose(ax.collections[1].get_offsets(), x[y == 0], rtol=1e-6)
    with pytest.raises(pynode.InputError, match=r"\(rows, columns, 2\)"):
        utils.plot_2d_boundary(nn.Identity(), x, y, mesh.reshape(-1, 2))
