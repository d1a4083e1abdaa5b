"""Stiff problems with published end values, over their full spans.

From the Test Set for IVP Solvers (Mazzia and Magherini, University of Bari, release 2.4, 2008): HIRES, OREGO, POLLU,
ROBER, van der Pol's equation; and from Hairer and Wanner, Solving ODEs II, section IV.10: BRUSS.
``REFERENCES`` holds the published states at the end. The two kinds of number agree with SciPy's Radau at a tolerance
of 1e-12 (tested).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pynode.problems.grids import BRUSSELATOR_1D
from pynode.problems.problem import Problem, given


def _van_der_pol(xp: Any, t: Any, y: Any, p: dict[str, Any]) -> Any:
    return xp.stack((y[1], p["mu"] * (1.0 - y[0] ** 2) * y[1] - y[0]))


def _robertson(xp: Any, t: Any, y: Any, p: dict[str, Any]) -> Any:
    slow, quick, back = p["k1"] * y[0], p["k2"] * y[1] ** 2, p["k3"] * y[1] * y[2]
    return xp.stack((back - slow, slow - back - quick, quick))


def _hires(xp: Any, t: Any, y: Any, p: dict[str, Any]) -> Any:
    y1, y2, y3, y4, y5, y6, y7, y8 = (y[i] for i in range(8))
    meet = 280.0 * y6 * y8
    return xp.stack(
        (
            -1.71 * y1 + 0.43 * y2 + 8.32 * y3 + 0.0007,
            1.71 * y1 - 8.75 * y2,
            -10.03 * y3 + 0.43 * y4 + 0.035 * y5,
            8.32 * y2 + 1.71 * y3 - 1.12 * y4,
            -1.745 * y5 + 0.43 * y6 + 0.43 * y7,
            -meet + 0.69 * y4 + 1.71 * y5 - 0.43 * y6 + 0.69 * y7,
            meet - 1.81 * y7,
            -meet + 1.81 * y7,
        )
    )


def _oregonator(xp: Any, t: Any, y: Any, p: dict[str, Any]) -> Any:
    return xp.stack(
        (
            p["s"] * (y[1] + y[0] * (1.0 - p["q"] * y[0] - y[1])),
            (y[2] - (1.0 + y[0]) * y[1]) / p["s"],
            p["w"] * (y[0] - y[2]),
        )
    )


#: Of the pollution problem: rate constants of its 25 reactions.
_RATES = (
    *(0.35, 26.6, 1.23e4, 8.6e-4, 8.2e-4, 1.5e4, 1.3e-4, 2.4e4, 1.65e4, 9e3, 0.022, 1.2e4, 1.88),
    *(1.63e4, 4.8e6, 3.5e-4, 0.0175, 1e8, 4.44e11, 1240.0, 2.1, 5.78, 0.0474, 1780.0, 3.12),
)
#: The one or two species that each reaction takes, counted from 1, and which species it changes by how much.
_REACTIONS: tuple[tuple[tuple[int, ...], dict[int, int]], ...] = (
    ((1,), {1: -1, 2: 1, 3: 1}),
    ((2, 4), {1: 1, 2: -1, 4: -1}),
    ((5, 2), {1: 1, 2: -1, 5: -1, 6: 1}),
    ((7,), {5: 2, 7: -1, 8: 1}),
    ((7,), {7: -1, 8: 1}),
    ((7, 6), {5: 1, 6: -1, 7: -1, 8: 1}),
    ((9,), {5: 1, 8: 1, 9: -1, 10: 1}),
    ((9, 6), {6: -1, 9: -1, 11: 1}),
    ((11, 2), {1: 1, 2: -1, 10: 1, 11: -1, 12: 1}),
    ((11, 1), {1: -1, 11: -1, 13: 1}),
    ((13,), {1: 1, 11: 1, 13: -1}),
    ((10, 2), {1: 1, 2: -1, 10: -1, 14: 1}),
    ((14,), {5: 1, 7: 1, 14: -1}),
    ((1, 6), {1: -1, 6: -1, 15: 1}),
    ((3,), {3: -1, 4: 1}),
    ((4,), {4: -1, 16: 1}),
    ((4,), {3: 1, 4: -1}),
    ((16,), {6: 2, 16: -1}),
    ((16,), {3: 1, 16: -1}),
    ((17, 6), {5: 1, 6: -1, 17: -1, 18: 1}),
    ((19,), {2: 1, 19: -1}),
    ((19,), {1: 1, 3: 1, 19: -1}),
    ((1, 4), {1: -1, 4: -1, 19: 1}),
    ((19, 1), {1: -1, 19: -1, 20: 1}),
    ((20,), {1: 1, 19: 1, 20: -1}),
)


class Pollution(nn.Module):
    """The chemistry of air pollution (Verwer 1994): 25 reactions of 20 species, ``dy/dt = S r(y)``."""

    left: Tensor
    right: Tensor
    change: Tensor
    one: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor(_RATES, dtype=torch.float64))
        change = torch.zeros(20, len(_REACTIONS), dtype=torch.float64)
        for j, (_, species) in enumerate(_REACTIONS):
            for i, amount in species.items():
                change[i - 1, j] = amount
        # Place 20 holds a one, for reactions of a single species.
        self.register_buffer("left", torch.tensor([taken[0] - 1 for taken, _ in _REACTIONS]))
        self.register_buffer("right", torch.tensor([(*taken, 21)[1] - 1 for taken, _ in _REACTIONS]))
        self.register_buffer("change", change)
        self.register_buffer("one", torch.ones(1, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        padded = torch.cat((y, self.one))
        derivative: Tensor = self.change @ (self.k * padded[self.left] * padded[self.right])
        return derivative


def _make_pollution(generator: torch.Generator, size: int) -> tuple[nn.Module, Tensor]:
    y0 = torch.zeros(20, dtype=torch.float64)
    for species, amount in {2: 0.2, 4: 0.04, 7: 0.1, 8: 0.3, 9: 0.01, 17: 0.007}.items():
        y0[species - 1] = amount
    return Pollution(), y0


#: By name. The tolerances suggested are those at which the small components still count.
STIFF: dict[str, Problem] = {
    problem.name: problem
    for problem in (
        given("vdpol", "van der Pol, mu = 1e3, one period and more", _van_der_pol, (2.0, 0.0), 2000.0, stiff=True)(
            mu=1e3
        ),
        given("rober", "Robertson's reaction to t = 1e11", _robertson, (1.0, 0.0, 0.0), 1e11, stiff=True, atol=1e-14)(
            k1=0.04, k2=3e7, k3=1e4
        ),
        given(
            "hires", "high irradiance responses of plants", _hires, (1.0, *[0.0] * 6, 0.0057), 321.8122, stiff=True
        )(),
        given("orego", "the Oregonator", _oregonator, (1.0, 2.0, 3.0), 360.0, stiff=True)(s=77.27, q=8.375e-6, w=0.161),
        Problem("pollu", "pollution, 20 species", _make_pollution, (0.0, 60.0), size=20, stiff=True, atol=1e-14),
        Problem(
            name="bruss",
            title="Brusselator on a rod of N points, N = 50, to t = 10",
            make=BRUSSELATOR_1D.make,
            span=(0.0, 10.0),
            size=50,
            scalable=True,
            formula=BRUSSELATOR_1D.formula,
            stiff=True,
        ),
    )
}

#: Published states at the end of the span, of the test set's reference solutions.
REFERENCES: dict[str, tuple[float, ...]] = {
    "vdpol": (0.1706167732170483e1, -0.8928097010247975e-3),
    "rober": (0.2083340149701255e-7, 0.8333360770334713e-13, 0.9999999791665050),
    "hires": (
        *(0.7371312573325668e-3, 0.1442485726316185e-3, 0.5888729740967575e-4, 0.1175651343283149e-2),
        *(0.2386356198831331e-2, 0.6238968252742796e-2, 0.2849998395185769e-2, 0.2850001604814231e-2),
    ),
    "orego": (0.1000814870318523e1, 0.1228178521549917e4, 0.1320554942846706e3),
    "pollu": (
        *(0.5646255480022769e-1, 0.1342484130422339, 0.4139734331099427e-8, 0.5523140207484359e-2),
        *(0.2018977262302196e-6, 0.1464541863493966e-6, 0.7784249118997964e-1, 0.3245075353396018),
        *(0.7494013383880406e-2, 0.1622293157301561e-7, 0.1135863833257075e-7, 0.2230505975721359e-2),
        *(0.2087162882798630e-3, 0.1396921016840158e-4, 0.8964884856898295e-2, 0.4352846369330103e-17),
        *(0.6899219696263405e-2, 0.1007803037365946e-3, 0.1772146513969984e-5, 0.5682943292316392e-4),
    ),
}
