"""The step boundaries of fixed-step algorithms, as differentiable functions of ``t``."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from pynode.algorithms import FixedStep
from pynode.errors import InputError, explain
from pynode.problem import check_times
from pynode.transforms import number, numbers

_LIMIT = 100_000_000  # boundaries of one mesh: 0.8 GB


def mesh_of(algorithm: FixedStep, t: Tensor, jumps: Iterable[float] = ()) -> Tensor:
    """Boundaries (N + 1,) in float64 from ``t[0]`` to ``t[-1]``; those that differ from a jump of ``f`` by rounding
    alone lie at it.

    Raises
    ------
    InputError
        If the algorithm's ``mesh`` callable does not return such boundaries.
    """
    boundaries = _boundaries(algorithm, t)
    known = numbers("t", boundaries) if jumps else []
    slack = 1e-12 * max((abs(x) for x in known), default=0.0)
    moves = [next((jump - x for jump in jumps if 0 < abs(jump - x) <= slack), 0.0) for x in known[1:-1]]
    if any(moves):
        boundaries = boundaries + torch.tensor([0.0, *moves, 0.0], dtype=torch.float64, device=boundaries.device)
    return boundaries


def _boundaries(algorithm: FixedStep, t: Tensor) -> Tensor:
    t = t.double()
    start, end = t[0], t[-1]
    if algorithm.mesh is not None:
        given, boundaries = check_times(f"{algorithm.name}(mesh=...)(t)", algorithm.mesh(t))
        ends = [number(start), number(end)]
        # The boundaries may have been computed in float32.
        slack = 1e-6 * max(abs(ends[0]), abs(ends[1]), abs(ends[1] - ends[0]))
        if len(boundaries) < 2 or abs(boundaries[0] - ends[0]) > slack or abs(boundaries[-1] - ends[1]) > slack:
            raise InputError(
                explain(
                    f"{algorithm.name}(mesh=...) returned boundaries from {boundaries[0]:.9g} to {boundaries[-1]:.9g}",
                    f"boundaries from t[0] = {ends[0]:.9g} to t[-1] = {ends[1]:.9g}",
                    "let the mesh start and end where t does",
                )
            )
        given = given.to(device=t.device, dtype=torch.float64)
        # Only the rounded ends may lie outside, not what is between them.
        inner = [x for x in boundaries[1:-1] if not min(ends) < x < max(ends)]
        if inner:
            raise InputError(
                explain(
                    f"{algorithm.name}(mesh=...) returned the inner boundary {inner[0]:.17g}",
                    f"inner boundaries strictly between {ends[0]:.17g} and {ends[1]:.17g}",
                    "compute the mesh in float64",
                )
            )
        return torch.cat([start[None], given[1:-1], end[None]])
    span = end - start
    length = number(end) - number(start)
    if algorithm.dt is not None:
        # The sliver that rounding leaves (0.1 * 10 against 1) is no step of its own.
        wanted = abs(length) / algorithm.dt
        if wanted > _LIMIT:
            raise InputError(
                explain(
                    f"{algorithm.name}(dt={algorithm.dt}) means {wanted:.3g} steps", f"at most {_LIMIT:.0e}", "raise dt"
                )
            )
        count = max(1, math.ceil(wanted * (1.0 - 1e-9)))
        offsets = torch.arange(count, dtype=torch.float64, device=t.device) * math.copysign(algorithm.dt, length)
        return torch.cat([start + offsets, end[None]])
    if algorithm.steps is not None:
        if algorithm.steps > _LIMIT:
            raise InputError(
                explain(f"{algorithm.name}(steps={algorithm.steps})", f"at most {_LIMIT:.0e}", "take fewer")
            )
        fractions = torch.arange(1, algorithm.steps, dtype=torch.float64, device=t.device) / algorithm.steps
        return torch.cat([start[None], start + fractions * span, end[None]])
    return t
