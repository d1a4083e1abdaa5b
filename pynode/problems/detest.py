"""DETEST: the 25 non-stiff problems of Hull, Enright, Fellen and Sedgwick, over t in [0, 20].

Hull, Enright, Fellen and Sedgwick (1972), "Comparing numerical methods for ordinary differential equations", SIAM J.
Numer. Anal. 9, 603-637; the numbers as in Enright and Pryce (1987), "Two FORTRAN packages for assessing initial value
methods", ACM Trans. Math. Softw. 13, 1-27. Classes: A single equations, B small systems, C moderate systems, D orbits,
E higher-order equations.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pynode.problems.formula import Formula, FormulaField
from pynode.problems.problem import Problem, given


def _a1(xp: Any, t: Any, y: Any, p: dict[str, Any]) -> Any:
    return -y


def _a2(xp: Any, t: Any, y: Any, p: dict[str, Any]) -> Any:
    return -0.5 * y**3


def _a3(xp: Any, t: Any, y: Any, p: dict[str, Any]) -> Any:
    return y * xp.cos(t)


def _a4(xp: Any, t: Any, y: Any, p: dict[str, Any]) -> Any:
    return 0.25 * y * (1.0 - y / 20.0)


def _a5(xp: Any, t: Any, y: Any, p: dict[str, Any]) -> Any:
    return (y - t) / (y + t)


def _b1(xp: Any, t: Any, y: Any, p: dict[str, Any]) -> Any:
    meet = y[0] * y[1]
    return xp.stack((2.0 * (y[0] - meet), meet - y[1]))


def _b2(xp: Any, t: Any, y: Any, p: dict[str, Any]) -> Any:
    return xp.stack((y[1] - y[0], y[0] - 2.0 * y[1] + y[2], y[1] - y[2]))


def _b3(xp: Any, t: Any, y: Any, p: dict[str, Any]) -> Any:
    square = y[1] ** 2
    return xp.stack((-y[0], y[0] - square, square))


def _b4(xp: Any, t: Any, y: Any, p: dict[str, Any]) -> Any:
    r = xp.sqrt(y[0] ** 2 + y[1] ** 2)
    return xp.stack((-y[1] - y[0] * y[2] / r, y[0] - y[1] * y[2] / r, y[0] / r))


def _b5(xp: Any, t: Any, y: Any, p: dict[str, Any]) -> Any:
    return xp.stack((y[1] * y[2], -y[0] * y[2], -0.51 * y[0] * y[1]))


def _linear(xp: Any, t: Any, y: Any, p: dict[str, Any]) -> Any:
    return p["matrix"] @ y


def _decay(rates: tuple[float, ...]) -> Tensor:
    """A radioactive chain: each of the first substances decays into the next at its rate, the last one stays."""
    speed = torch.tensor((*rates, 0.0), dtype=torch.float64)
    return torch.diag(-speed) + torch.diag(speed[:-1], -1)


def _diffusion(n: int) -> Tensor:
    ones = torch.ones(n - 1, dtype=torch.float64)
    return torch.diag(torch.full((n,), -2.0, dtype=torch.float64)) + torch.diag(ones, 1) + torch.diag(ones, -1)


def _from_matrix(name: str, title: str, matrix: Tensor) -> Problem:
    def make(generator: torch.Generator, size: int) -> tuple[nn.Module, Tensor]:
        start = torch.zeros(len(matrix), dtype=torch.float64)
        start[0] = 1.0
        return FormulaField(_linear, matrix=matrix.clone()), start

    return Problem(name, title, make, (0.0, 20.0), size=len(matrix), formula=_linear)


#: Of C5: masses of the outer planets over the sun's, and their first states, in astronomical units and 100 days.
_MASSES = (0.954786104043e-3, 0.285583733151e-3, 0.437273164546e-4, 0.517759138449e-4, 0.277777777778e-5)
_PLACES = (
    *(3.42947415189, 3.35386959711, 1.35494901715),
    *(6.64145542550, 5.97156957878, 2.18231499728),
    *(11.2630437207, 14.6952576794, 6.27960525067),
    *(-30.1552268759, 1.65699966404, 1.43785752721),
    *(-21.1238353380, 28.4465098142, 15.3882659679),
)
_SPEEDS = (
    *(-0.557160570446, 0.505696783289, 0.230578543901),
    *(-0.415570776342, 0.365682722812, 0.169143213293),
    *(-0.325325669158, 0.189706021964, 0.0877265322780),
    *(-0.0240476254170, -0.287659532608, -0.117219543175),
    *(-0.176860753121, -0.216393453025, -0.0148647893090),
)


def _planets(xp: Any, t: Any, y: Any, p: dict[str, Any]) -> Any:
    """Five planets about the sun, in coordinates relative to it; ``y``: places (5, 3), then speeds."""
    place, speed = y[:15].reshape(5, 3), y[15:]
    pull = place / ((place**2).sum(-1) ** 1.5)[:, None]
    apart = place[None, :, :] - place[:, None, :]
    # The planet itself lies at distance zero: one in its place, as the difference above it is zero.
    cube = ((apart**2).sum(-1) + xp.eye(5, dtype=y.dtype)) ** 1.5
    others = (p["mass"][None, :, None] * apart / cube[:, :, None]).sum(1) - (p["mass"][:, None] * pull).sum(0)
    # The sum over the others leaves out the planet's own indirect term.
    others = others + p["mass"][:, None] * pull
    force = p["gravity"] * (others - (p["sun"] + p["mass"])[:, None] * pull)
    return xp.concatenate((speed, force.reshape(-1)))


def _make_planets(generator: torch.Generator, size: int) -> tuple[nn.Module, Tensor]:
    field = FormulaField(_planets, gravity=2.95912208286, sun=1.00000597682, mass=_MASSES)
    return field, torch.tensor((*_PLACES, *_SPEEDS), dtype=torch.float64)


def _orbit(xp: Any, t: Any, y: Any, p: dict[str, Any]) -> Any:
    cube = (y[0] ** 2 + y[1] ** 2) ** 1.5
    return xp.stack((y[2], y[3], -y[0] / cube, -y[1] / cube))


def _kepler(name: str, eccentricity: float) -> Problem:
    start = (1.0 - eccentricity, 0.0, 0.0, math.sqrt((1.0 + eccentricity) / (1.0 - eccentricity)))
    return _given(name, f"Kepler orbit of eccentricity {eccentricity}", _orbit, start)


def _e1(xp: Any, t: Any, y: Any, p: dict[str, Any]) -> Any:
    s = t + 1.0
    return xp.stack((y[1], -(y[1] / s + (1.0 - 0.25 / s**2) * y[0])))


def _e2(xp: Any, t: Any, y: Any, p: dict[str, Any]) -> Any:
    return xp.stack((y[1], (1.0 - y[0] ** 2) * y[1] - y[0]))


def _e3(xp: Any, t: Any, y: Any, p: dict[str, Any]) -> Any:
    return xp.stack((y[1], y[0] ** 3 / 6.0 - y[0] + 2.0 * xp.sin(2.78535 * t)))


def _e4(xp: Any, t: Any, y: Any, p: dict[str, Any]) -> Any:
    return xp.stack((y[1], 0.032 - 0.4 * y[1] ** 2))


def _e5(xp: Any, t: Any, y: Any, p: dict[str, Any]) -> Any:
    return xp.stack((y[1], xp.sqrt(1.0 + y[1] ** 2) / (25.0 - t)))


def _given(name: str, title: str, formula: Formula, y0: tuple[float, ...]) -> Problem:
    return given(name, title, formula, y0, 20.0)()


#: The 25 problems by name, ``"A1"`` to ``"E5"``.
DETEST: dict[str, Problem] = {
    problem.name: problem
    for problem in (
        _given("A1", "negative exponential", _a1, (1.0,)),
        _given("A2", "a special Riccati equation", _a2, (1.0,)),
        _given("A3", "an oscillatory problem", _a3, (1.0,)),
        _given("A4", "a logistic curve", _a4, (1.0,)),
        _given("A5", "a spiral curve", _a5, (4.0,)),
        _given("B1", "growth of two conflicting populations", _b1, (1.0, 3.0)),
        _given("B2", "a linear chemical reaction", _b2, (2.0, 0.0, 1.0)),
        _given("B3", "a nonlinear chemical reaction", _b3, (1.0, 0.0, 0.0)),
        _given("B4", "the integral surface of a torus", _b4, (3.0, 0.0, 0.0)),
        _given("B5", "Euler's equations of a rigid body without forces", _b5, (0.0, 1.0, 1.0)),
        _from_matrix("C1", "a radioactive decay chain", _decay((1.0,) * 9)),
        _from_matrix("C2", "another radioactive decay chain", _decay(tuple(map(float, range(1, 10))))),
        _from_matrix("C3", "a parabolic equation, 10 points", _diffusion(10)),
        _from_matrix("C4", "the same, 51 points", _diffusion(51)),
        Problem("C5", "the five outer planets", _make_planets, (0.0, 20.0), size=30, formula=_planets),
        *(_kepler(f"D{i}", e) for i, e in enumerate((0.1, 0.3, 0.5, 0.7, 0.9), start=1)),
        _given("E1", "Bessel's equation of order 1/2", _e1, (0.6713967071418030, 0.09540051444747446)),
        _given("E2", "van der Pol's equation", _e2, (2.0, 0.0)),
        _given("E3", "Duffing's equation", _e3, (0.0, 0.0)),
        _given("E4", "the falling body equation", _e4, (30.0, 0.0)),
        _given("E5", "a linear pursuit equation", _e5, (0.0, 0.0)),
    )
}
