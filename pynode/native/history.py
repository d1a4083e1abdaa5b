"""Integrals of the polynomial through past values, on uneven steps: the weights of Adams methods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def float64(x: Any) -> Tensor:
    """A number, or what stands for one, as a float64 tensor on the CPU, its gradient kept."""
    return torch.as_tensor(x, dtype=torch.float64).cpu()


def lengthened(h: Any, gaps: Tensor, most: int) -> Tensor:
    """Lengths of the past steps, latest first, with that of one more, and at most so many."""
    return torch.cat([float64(h)[None], gaps])[:most]


def nodes_of(h: Any, gaps: Tensor, ahead: bool = False) -> Tensor:
    """Where past values lie, in units of the step ``h`` from its start: 0, then back over ``gaps``.

    ``ahead``: led by 1, the end of the step.
    """
    first = [1.0, 0.0] if ahead else [0.0]
    return torch.cat([gaps.new_tensor(first), -torch.cumsum(gaps, 0) / float64(h)])


def integration_weights(nodes: Tensor, ends: Sequence[Any], derivative: bool = False) -> Tensor:
    """Weights (m, k) on values at ``nodes`` (k,), of the integrals of the polynomial through them from 0 to each of m
    ``ends``, or of its values there.

    By moments, the condition number of which stays below 1e5 for the six values or fewer that are used here.
    """
    powers = torch.arange(len(nodes), dtype=torch.float64)
    points = torch.stack([float64(x) for x in ends])[:, None]
    moments = points**powers if derivative else points ** (powers + 1) / (powers + 1)
    weights: Tensor = torch.linalg.solve(nodes ** powers[:, None], moments.t())
    return weights.t()


def interpolation_weights(nodes: Tensor, points: Sequence[Any], derivative: bool = False) -> Tensor:
    """Weights (m, k) on values at ``nodes`` (k,) of the polynomial through them at each of m ``points``, or of its
    derivative there.

    What the weights are wrong by does not show in polynomials up to the degree k - 1, whatever the condition number:
    those moments are met to rounding.
    """
    powers = torch.arange(len(nodes), dtype=torch.float64)
    at = torch.stack([float64(x) for x in points])[:, None]
    moments = powers * at ** (powers - 1).clamp(min=0.0) if derivative else at**powers
    weights: Tensor = torch.linalg.solve(nodes ** powers[:, None], moments.t())
    return weights.t()


def derivative_weights(nodes: Tensor) -> Tensor:
    """Weights (k,) on values at ``nodes`` (k,) of the highest derivative of the polynomial through them."""
    apart = nodes[:, None] - nodes[None, :] + torch.eye(len(nodes), dtype=torch.float64)
    return math.factorial(len(nodes) - 1) / apart.prod(1)


def newton_basis(distances: Sequence[Any]) -> list[list[Any]]:
    """Ascending coefficients of ``prod_(i<j) (x + s_i) / (1 + s_i)`` for j from 0 to the number of ``distances`` s_i.

    The roots lie at zero or behind it, so that no coefficient is negative: values at x in [0, 1] and integrals from 0
    are sums in which nothing cancels.
    """
    basis: list[list[Any]] = [[1.0]]
    for s in distances:
        last = basis[-1]
        raised, scaled = [0.0, *last], [*(s * c for c in last), 0.0]
        basis.append([(a + b) / (1.0 + s) for a, b in zip(raised, scaled, strict=True)])
    return basis
