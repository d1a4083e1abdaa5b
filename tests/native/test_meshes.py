"""Step boundaries of fixed-step algorithms."""

from __future__ import annotations

import math

import pytest
import torch

import pynode
from pynode.native.meshes import mesh_of

both_directions = pytest.mark.parametrize("sign", [1.0, -1.0], ids=["forward", "reversed"])


def times(*values: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


@both_directions
def test_without_options_the_times_are_the_mesh(sign):
    t = sign * times(0.0, 0.3, 1.0)
    assert torch.equal(mesh_of(pynode.Euler(), t), t)


@both_directions
@pytest.mark.parametrize(
    ("dt", "count"), [(0.25, 4), (0.3, 4), (0.1, 10), (1.0, 1), (5.0, 1), (1.0 / 3.0, 3), (0.07, 15)]
)
def test_dt(sign, dt, count):
    """Steps of dt; the last one shorter, and no sliver where dt divides the span up to rounding (0.1 * 10)."""
    t = times(2.0, 2.0 + sign * 0.4, 2.0 + sign)
    mesh = mesh_of(pynode.Euler(dt=dt), t)
    assert len(mesh) == count + 1
    assert mesh[0] == t[0]
    assert mesh[-1] == t[-1]
    lengths = mesh.diff() * sign
    assert (lengths > 0).all()
    torch.testing.assert_close(lengths[:-1], torch.full_like(lengths[:-1], dt), rtol=1e-12, atol=0)
    assert lengths[-1] <= dt * (1 + 1e-9)


@both_directions
@pytest.mark.parametrize("steps", [1, 3, 7, 100])
def test_steps(sign, steps):
    t = sign * times(-1.0, 0.1, 2.3)
    mesh = mesh_of(pynode.Euler(steps=steps), t)
    assert len(mesh) == steps + 1
    assert mesh[0] == t[0]
    assert mesh[-1] == t[-1]
    torch.testing.assert_close(mesh.diff(), torch.full((steps,), sign * 3.3 / steps, dtype=torch.float64))


@both_directions
def test_mesh_callable(sign):
    t = sign * times(0.0, 0.5, 1.0)
    seen = []

    def mesh(t):
        seen.append(t)
        return torch.cat([t[:1], t[-1:] * 0.1, t[1:]])

    torch.testing.assert_close(mesh_of(pynode.Euler(mesh=mesh), t), sign * times(0.0, 0.1, 0.5, 1.0))
    assert torch.equal(seen[0], t)


def test_mesh_callable_in_single_precision_ends_exactly_at_the_times():
    t = times(0.1, 0.7)
    mesh = mesh_of(pynode.Euler(mesh=lambda t: torch.linspace(0.1, 0.7, 4)), t)
    assert mesh.dtype == torch.float64
    assert mesh[0] == t[0]
    assert mesh[-1] == t[-1]


def test_single_precision_times_make_a_double_precision_mesh():
    mesh = mesh_of(pynode.Euler(dt=0.01), times(0.0, 1.0, dtype=torch.float32))
    assert mesh.dtype == torch.float64
    assert len(mesh) == 101


@pytest.mark.parametrize(
    "boundaries",
    [
        [0.0, 0.5],
        [0.1, 1.0],
        [1.0, 0.5, 0.0],
        [0.0, 0.7, 0.5, 1.0],
        [0.0],
        [0.0, math.nan, 1.0],
        [0.0, 1.0, 1.0 + 1e-7],
    ],
    ids=str,
)
def test_a_mesh_that_does_not_cover_the_span_is_refused(boundaries):
    with pytest.raises(pynode.InputError, match="mesh"):
        mesh_of(pynode.Euler(mesh=lambda t: times(*boundaries)), times(0.0, 1.0))


def test_an_endless_mesh_is_refused_before_it_is_made():
    with pytest.raises(pynode.InputError, match="raise dt"):
        mesh_of(pynode.Euler(dt=1e-15), times(0.0, 1.0))


@both_directions
@pytest.mark.parametrize(
    "algorithm",
    [
        pynode.Euler(),
        pynode.Euler(dt=0.3),
        pynode.Euler(steps=4),
        pynode.Euler(mesh=lambda t: t[0] + (t - t[0]) ** 2 / (t[-1] - t[0])),
    ],
    ids=["times", "dt", "steps", "mesh"],
)
def test_the_mesh_is_a_differentiable_function_of_the_times(sign, algorithm):
    t = (sign * times(0.0, 0.4, 1.0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: mesh_of(algorithm, t), (t,))
