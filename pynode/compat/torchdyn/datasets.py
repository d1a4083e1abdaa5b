"""torchdyn.datasets: points of the plane, and of spheres, with their classes. Random numbers are torch's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pynode.errors import InputError, explain
from pynode.solve import solve

__all__ = [
    "ToyDataset",
    "generate_concentric_spheres",
    "generate_diffeqml",
    "generate_gaussians",
    "generate_gaussians_spiral",
    "generate_moons",
    "generate_spirals",
    "randnsphere",
]


def randnsphere(dim: int, radius: float) -> Tensor:
    """A point (dim,) uniformly on the sphere of that radius."""
    return _on_sphere(1, dim, radius)[0]


def _on_sphere(count: int, dim: int, radius: float) -> Tensor:
    return radius * torch.nn.functional.normalize(torch.randn(count, dim), dim=1)


def generate_concentric_spheres(
    n_samples: int = 100, noise: float = 1e-4, dim: int = 3, inner_radius: float = 0.5, outer_radius: float = 1
) -> tuple[Tensor, Tensor]:
    """Two spheres: (n_samples, dim), and classes, 1.0 for the inner half and 0.0 for the outer one."""
    half = n_samples // 2
    points = torch.cat([_on_sphere(half, dim, inner_radius), _on_sphere(n_samples - half, dim, outer_radius)])
    return points + noise * torch.randn_like(points), (torch.arange(n_samples) < half).float()


def generate_moons(n_samples: int = 100, noise: float | None = 1e-4, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Two half circles that reach into one another: (n_samples, 2), and classes 0 and 1.

    The noise is uniform on [0, noise] and the same for both coordinates of a point, as in torchdyn.
    """
    outer, inner = (torch.linspace(0, math.pi, n) for n in (n_samples // 2, n_samples - n_samples // 2))
    first = torch.stack([outer.cos(), outer.sin()], dim=1)
    second = torch.stack([1 - inner.cos(), 0.5 - inner.sin()], dim=1)
    points = torch.cat([first, second])
    labels = torch.cat([torch.zeros(len(first)), torch.ones(len(second))]).long()
    return points + (noise or 0.0) * torch.rand(n_samples, 1), labels


def generate_spirals(n_samples: int = 100, noise: float = 1e-4, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Two spirals of ``n_samples`` points each: (2 n_samples, 2), and classes 0 and 1."""
    angle = torch.rand(n_samples, 1).sqrt() * math.radians(780)
    arm = angle * torch.cat([-angle.cos(), angle.sin()], dim=1) + noise * torch.rand(n_samples, 2)
    return torch.cat([arm, -arm]), torch.arange(2).repeat_interleave(n_samples)


def generate_gaussians(
    n_samples: int = 100,
    n_gaussians: int = 7,
    dim: int = 2,
    radius: float = 0.5,
    std_gaussians: float = 0.1,
    noise: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """Normals on a circle of the first two dimensions: (n_samples n_gaussians, dim), and the number of each."""
    turns = [(k + 1) / n_gaussians for k in range(n_gaussians)]
    return _normals(n_samples, dim, turns, [radius] * n_gaussians, [std_gaussians] * n_gaussians, noise)


def generate_gaussians_spiral(
    n_samples: int = 100,
    n_gaussians: int = 7,
    n_gaussians_per_loop: int = 4,
    dim: int = 2,
    radius_start: float = 1,
    radius_end: float = 0.2,
    std_gaussians_start: float = 0.3,
    std_gaussians_end: float = 0.1,
    noise: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """Normals on a spiral of the first two dimensions, their radius and deviation changing linearly along it."""
    turns = [(k + 1) / n_gaussians_per_loop for k in range(n_gaussians)]
    radii = torch.linspace(radius_start, radius_end, n_gaussians).tolist()
    deviations = torch.linspace(std_gaussians_start, std_gaussians_end, n_gaussians).tolist()
    return _normals(n_samples, dim, turns, radii, deviations, noise)


def _normals(
    count: int, dim: int, turns: list[float], radii: list[float], deviations: list[float], noise: float
) -> tuple[Tensor, Tensor]:
    parts = []
    for turn, radius, deviation in zip(turns, radii, deviations, strict=True):
        center = torch.zeros(dim)
        center[0], center[1] = radius * math.cos(2 * math.pi * turn), radius * math.sin(2 * math.pi * turn)
        # torchdyn's noise moves a whole group.
        parts.append(center + deviation * torch.randn(count, dim) + noise * torch.randn(dim))
    return torch.cat(parts), torch.arange(len(parts)).repeat_interleave(count)


def generate_diffeqml(n_samples: int = 100, noise: float = 1e-3) -> tuple[Tensor, None]:
    """Points near three orbits that approach a circle, and a circle around them: (n_samples, 2), without classes."""

    def field(t: Tensor, x: Tensor) -> Tensor:
        a, b = x.unbind(dim=1)
        growth = 1 - a**2 - b**2
        return torch.stack([a * growth - b, b * growth + a], dim=1)

    starts = torch.tensor([[0.0, 2.0], [-1.6, -1.2], [1.6, -1.2]])
    with torch.no_grad():
        orbits = solve(field, starts, torch.linspace(0, 3.2, 500)).ys.transpose(0, 1).reshape(-1, 2)
    angle = torch.linspace(0, 2 * math.pi, 1000)
    curve = torch.cat([orbits, 2 * torch.stack([angle.cos(), angle.sin()], dim=1)])
    drawn = curve[torch.randint(len(curve), (n_samples,))]
    return drawn + 0.01 * torch.randn_like(drawn) + noise * torch.randn_like(drawn), None


_GENERATORS: dict[str, Callable[..., tuple[Tensor, Tensor | None]]] = {
    "moons": generate_moons,
    "spirals": generate_spirals,
    "spheres": generate_concentric_spheres,
    "gaussians": generate_gaussians,
    "gaussians_spiral": generate_gaussians_spiral,
    "diffeqml": generate_diffeqml,
}


class ToyDataset:
    """All of them by name."""

    def generate(self, n_samples: int, dataset_type: str, **kwargs: Any) -> tuple[Tensor, Any]:
        """``(X, y)`` of ``generate_...(n_samples, **kwargs)``.

        Parameters
        ----------
        n_samples : int
        dataset_type : "moons", "spirals", "spheres", "gaussians", "gaussians_spiral" or "diffeqml"
        **kwargs
            Of its function.
        """
        if dataset_type not in _GENERATORS:
            raise InputError(
                explain(f"dataset_type = {dataset_type!r}", f"one of {', '.join(_GENERATORS)}", "choose one of these")
            )
        return _GENERATORS[dataset_type](n_samples=n_samples, **kwargs)
