"""Partial differential equations on grids: heat, and the Brusselator in one and two dimensions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pynode.problems.formula import FormulaField
from pynode.problems.problem import Problem


def _bent(xp: Any, u: Any, edge: float) -> Any:
    """Second difference along the first axis, times the square of the grid's width, ``u = edge`` beyond both ends."""
    beyond = xp.full_like(u[:1], edge)
    padded = xp.concatenate((beyond, u, beyond))
    return padded[2:] - 2.0 * u + padded[:-2]


def _heat(xp: Any, t: Any, y: Any, p: dict[str, Any]) -> Any:
    return p["diffusivity"] * (y.shape[0] + 1) ** 2 * _bent(xp, y, 0.0)


def _make_heat(generator: torch.Generator, size: int) -> tuple[nn.Module, Tensor]:
    # A jump holds every wave. From a few waves alone an explicit method would take steps that are unstable for the
    # others, unnoticed, as these are zero: the solution would be right and its discrete gradient in y0 nonsense.
    x = torch.arange(1, size + 1, dtype=torch.float64) / (size + 1)
    return FormulaField(_heat, diffusivity=0.05), (x < 0.3).double()


def _exact_heat(field: Any, y0: Tensor, t: Tensor) -> Tensor:
    size = y0.numel()
    second = torch.diag(torch.full((size,), -2.0)) + torch.diag(torch.ones(size - 1), 1)
    matrix = field.diffusivity * (size + 1) ** 2 * (second + torch.diag(torch.ones(size - 1), -1)).to(y0)
    states: Tensor = torch.linalg.matrix_exp((t - t[0]).to(y0)[:, None, None] * matrix) @ y0
    return states


def _reaction(u: Any, v: Any, p: dict[str, Any]) -> tuple[Any, Any]:
    turned = u**2 * v
    return p["a"] + turned - (p["b"] + 1.0) * u, p["b"] * u - turned


def _brusselator_1d(xp: Any, t: Any, y: Any, p: dict[str, Any]) -> Any:
    u, v = y[:, 0], y[:, 1]
    du, dv = _reaction(u, v, p)
    spread = p["alpha"] * (y.shape[0] + 1) ** 2
    return xp.stack((du + spread * _bent(xp, u, 1.0), dv + spread * _bent(xp, v, 3.0)), -1)


def _make_brusselator_1d(generator: torch.Generator, size: int) -> tuple[nn.Module, Tensor]:
    x = torch.arange(1, size + 1, dtype=torch.float64) / (size + 1)
    y0 = torch.stack((1.0 + torch.sin(2 * math.pi * x), torch.full_like(x, 3.0)), dim=-1)
    return FormulaField(_brusselator_1d, a=1.0, b=3.0, alpha=0.02), y0


def _around(xp: Any, u: Any) -> Any:
    """Sum of the differences to the four neighbours on a periodic grid."""
    return xp.roll(u, 1, 0) + xp.roll(u, -1, 0) + xp.roll(u, 1, 1) + xp.roll(u, -1, 1) - 4.0 * u


def _brusselator_2d(xp: Any, t: Any, y: Any, p: dict[str, Any]) -> Any:
    u, v = y[:, :, 0], y[:, :, 1]
    du, dv = _reaction(u, v, p)
    spread = p["alpha"] * y.shape[0] ** 2
    return xp.stack((du + spread * _around(xp, u), dv + spread * _around(xp, v)), -1)


def _make_brusselator_2d(generator: torch.Generator, size: int) -> tuple[nn.Module, Tensor]:
    x = torch.arange(size, dtype=torch.float64) / size
    bump = (x * (1.0 - x)) ** 1.5
    ones = torch.ones_like(x)
    y0 = torch.stack((22.0 * torch.outer(ones, bump), 27.0 * torch.outer(bump, ones)), dim=-1)
    return FormulaField(_brusselator_2d, a=1.0, b=3.4, alpha=0.02), y0


HEAT = Problem(
    name="heat",
    title="heat equation on a rod of 20 points, hot on the left, cold ends",
    make=_make_heat,
    span=(0.0, 1.0),
    size=20,
    scalable=True,
    exact=_exact_heat,
    formula=_heat,
)

BRUSSELATOR_1D = Problem(
    name="brusselator-1d",
    title="Brusselator on a rod of 20 points, fixed ends",
    make=_make_brusselator_1d,
    span=(0.0, 1.0),
    size=20,
    scalable=True,
    formula=_brusselator_1d,
)

BRUSSELATOR_2D = Problem(
    name="brusselator-2d",
    title="Brusselator on a periodic grid of N x N points, N = 8; stiffer like N**2",
    make=_make_brusselator_2d,
    span=(0.0, 1.0),
    size=8,
    scalable=True,
    formula=_brusselator_2d,
)
