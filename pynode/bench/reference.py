"""Solution and gradient of a case in float64 at 1e-12, and an independent look at them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import pynode
from pynode.bench.contestants import Pynode, TorchDiffEq, final, gradient
from pynode.bench.distance import error, norm
from pynode.bench.fields import Case


@dataclass(frozen=True)
class Reference:
    """Solution and gradient in float64 at 1e-12."""

    final: Tensor
    gradient: list[Tensor]


#: Elements of a state above which the tape of a tight solve is not kept.
LARGE = 20_000


def reference(case: Case) -> Reference:
    """By Vern9 and torch's own tape; a large state's by the discrete adjoint, whose memory does not hold all stages."""
    large = case.y0.numel() > LARGE
    sensealg = pynode.CheckpointedAdjoint() if large else pynode.DirectAdjoint()
    solver, exact = Pynode(algorithm=pynode.Vern9(), sensealg=sensealg), case.exact()
    return Reference(final(solver, exact), gradient(solver, exact))


def crosscheck(case: Case, found: Reference) -> tuple[str, float, float]:
    """An independent look at a reference.

    Returns
    -------
    peer : str
        SciPy's DOP853, or torchdiffeq's dopri8 where SciPy is absent.
    float
        Relative distance of the peer's solution.
    float
        Relative distance of the gradient from a five-point finite difference along a random direction.
    """
    exact = case.exact()
    try:
        from scipy.integrate import solve_ivp
    except ImportError:
        peer, values = "torchdiffeq dopri8", final(TorchDiffEq(method="dopri8"), exact)
    else:

        def f(t: float, y: Any) -> Any:
            state = torch.from_numpy(y).reshape(exact.y0.shape)
            return exact.field(torch.tensor(t, dtype=torch.float64), state).reshape(-1).numpy()

        with torch.no_grad():
            solved = solve_ivp(
                f, case.t.tolist(), exact.y0.reshape(-1).numpy(), method="DOP853", rtol=1e-12, atol=1e-12
            )
        peer, values = "SciPy DOP853", torch.from_numpy(solved.y[:, -1]).reshape(exact.y0.shape)

    inputs = [exact.y0, *exact.field.parameters()]
    generator = torch.Generator().manual_seed(1)
    direction = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in inputs]
    # As long as its tensor, each: parameters differ in scale from the state and from each other.
    direction = [d * (norm([x]) or 1.0) / norm([d]) for x, d in zip(inputs, direction, strict=True)]
    solver = Pynode(algorithm=pynode.Vern9())

    def loss(distance: float) -> float:
        with torch.no_grad():
            for x, d in zip(inputs, direction, strict=True):
                x.add_(d, alpha=distance)
            value = final(solver, exact).pow(2).sum().item()
            for x, d in zip(inputs, direction, strict=True):
                x.sub_(d, alpha=distance)
        return value

    # The length at which truncation (fourth order) and rounding of the loss are of one size.
    size = 3e-4 * norm(inputs) / norm(direction)
    difference = (8.0 * (loss(size) - loss(-size)) - (loss(2 * size) - loss(-2 * size))) / (12.0 * size)
    slope = sum(torch.sum(g * d).item() for g, d in zip(found.gradient, direction, strict=True))
    return peer, error(values, found.final), abs(difference - slope) / abs(slope)
