"""Large problems to differentiate: many states, many parameters, a large batch, many steps."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from pynode.bench.fields import Case
from pynode.problems import PROBLEMS, Perceptron, initialise


def brusselator(side: int) -> Case:
    """The Brusselator on a periodic grid of ``side`` x ``side`` points, 2 * side**2 states."""
    built = PROBLEMS["brusselator-2d"].build(size=side, dtype=torch.float64, seed=0)
    return Case(
        name=f"brusselator-{side}",
        title=f"2-D Brusselator, N = {side}: {built.y0.numel()} states, float64, rtol 1e-5, atol 1e-6, t in [0, 1]",
        field=built.field,
        y0=built.y0,
        t=torch.tensor([0.0, 1.0], dtype=torch.float64),
        rtol=1e-5,
        atol=1e-6,
    )


def network(name: str, widths: tuple[int, ...], batch: int) -> Case:
    """A tanh network in torch's default initialisation, normal states."""
    generator = torch.Generator().manual_seed(0)
    field = Perceptron(widths)
    initialise(field, generator)
    count = sum(p.numel() for p in field.parameters())
    return Case(
        name=name,
        title=f"{name}: {'-'.join(map(str, widths))} tanh, {count} parameters, batch {batch}, float32, "
        "rtol = atol = 1e-5, t in [0, 1]",
        field=field,
        y0=torch.randn(batch, widths[0], generator=generator),
        t=torch.tensor([0.0, 1.0]),
        rtol=1e-5,
        atol=1e-5,
    )


def long_horizon(end: float) -> Case:
    """Predator and prey over many periods: DP5 takes 8.7 steps a unit of time."""
    built = PROBLEMS["lotka-volterra"].build(dtype=torch.float64, seed=0)
    return Case(
        name="long-horizon",
        title=f"Lotka-Volterra over t in [0, {end:g}], float64, rtol 1e-6, atol 1e-8",
        field=built.field,
        y0=torch.tensor([1.0, 1.0], dtype=torch.float64),
        t=torch.tensor([0.0, end], dtype=torch.float64),
        rtol=1e-6,
        atol=1e-8,
    )


#: By name: the case, and its small one.
CASES: dict[str, tuple[Callable[[], Case], Callable[[], Case]]] = {
    "brusselator-32": (functools.partial(brusselator, 32), functools.partial(brusselator, 6)),
    "brusselator-64": (functools.partial(brusselator, 64), functools.partial(brusselator, 8)),
    "parameters": (
        functools.partial(network, "parameters", (128, 900, 900, 128), 32),
        functools.partial(network, "parameters", (8, 40, 40, 8), 4),
    ),
    "batch": (
        functools.partial(network, "batch", (16, 64, 64, 16), 4096),
        functools.partial(network, "batch", (4, 8, 8, 4), 64),
    ),
    "long-horizon": (functools.partial(long_horizon, 1150.0), functools.partial(long_horizon, 2.0)),
}
