"""Small systems given by a formula: linear, oscillators, reactions, an attractor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pynode.problems.formula import FormulaField
from pynode.problems.problem import Problem, given


def _linear(xp: Any, t: Any, y: Any, p: dict[str, Any]) -> Any:
    return p["matrix"] @ y


def _make_linear(generator: torch.Generator, size: int) -> tuple[nn.Module, Tensor]:
    noise = torch.randn(size, size, generator=generator, dtype=torch.float64)
    matrix = noise - noise.T - 0.5 * torch.eye(size, dtype=torch.float64) + 0.2 * noise
    return FormulaField(_linear, matrix=matrix), torch.randn(size, generator=generator, dtype=torch.float64)


def _exact_linear(field: Any, y0: Tensor, t: Tensor) -> Tensor:
    spans = (t - t[0]).to(y0)
    states: Tensor = torch.linalg.matrix_exp(spans[:, None, None] * field.matrix) @ y0
    return states


def _harmonic(xp: Any, t: Any, y: Any, p: dict[str, Any]) -> Any:
    return xp.stack((y[1], -(p["omega"] ** 2) * y[0]))


def _exact_harmonic(field: Any, y0: Tensor, t: Tensor) -> Tensor:
    omega = field.omega
    phase = omega * (t - t[0]).to(y0)
    cos, sin = torch.cos(phase), torch.sin(phase)
    return torch.stack((y0[0] * cos + y0[1] / omega * sin, y0[1] * cos - y0[0] * omega * sin), dim=1)


def _lotka_volterra(xp: Any, t: Any, y: Any, p: dict[str, Any]) -> Any:
    meet = y[0] * y[1]
    return xp.stack((p["alpha"] * y[0] - p["beta"] * meet, p["delta"] * meet - p["gamma"] * y[1]))


def _van_der_pol(xp: Any, t: Any, y: Any, p: dict[str, Any]) -> Any:
    return xp.stack((y[1], p["mu"] * (1.0 - y[0] ** 2) * y[1] - y[0]))


def _robertson(xp: Any, t: Any, y: Any, p: dict[str, Any]) -> Any:
    slow, quick, back = p["k1"] * y[0], p["k2"] * y[1] ** 2, p["k3"] * y[1] * y[2]
    return xp.stack((back - slow, slow - back - quick, quick))


def _lorenz(xp: Any, t: Any, y: Any, p: dict[str, Any]) -> Any:
    return xp.stack((p["sigma"] * (y[1] - y[0]), y[0] * (p["rho"] - y[2]) - y[1], y[0] * y[1] - p["beta"] * y[2]))


LINEAR = Problem(
    name="linear",
    title="dy/dt = A y with a random A: solution and gradient by the matrix exponential",
    make=_make_linear,
    span=(0.0, 2.0),
    size=3,
    scalable=True,
    exact=_exact_linear,
    formula=_linear,
)

_GIVEN = (
    given("harmonic", "harmonic oscillator, omega = 2", _harmonic, (1.0, 0.5), 4.0, exact=_exact_harmonic)(omega=2.0),
    given("lotka-volterra", "Lotka-Volterra, a cycle and a half", _lotka_volterra, (1.0, 1.0), 8.0)(
        alpha=1.5, beta=1.0, delta=1.0, gamma=3.0
    ),
    given("vanderpol", "van der Pol, mu = 1", _van_der_pol, (2.0, 0.0), 6.0)(mu=1.0),
    given(
        "vanderpol-stiff",
        "van der Pol, mu = 1e3, t in [0, 0.1]: short against its period of 1600, for explicit methods",
        *(_van_der_pol, (2.0, 0.0), 0.1),
        stiff=True,
    )(mu=1e3),
    given(
        "robertson",
        "Robertson's reaction, t in [0, 0.1]: short against its 1e11, for explicit methods",
        *(_robertson, (1.0, 0.0, 0.0), 0.1),
        stiff=True,
        atol=1e-10,
    )(k1=0.04, k2=3e7, k3=1e4),
    given(
        "lorenz",
        "Lorenz's attractor, t in [0, 2]: short, as errors grow tenfold in 2.5",
        *(_lorenz, (1.0, 1.0, 20.0), 2.0),
        chaotic=True,
    )(sigma=10.0, rho=28.0, beta=8 / 3),
)

HARMONIC, LOTKA_VOLTERRA, VAN_DER_POL, VAN_DER_POL_STIFF, ROBERTSON, LORENZ = _GIVEN
