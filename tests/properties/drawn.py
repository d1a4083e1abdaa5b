"""Strategies: problems whose growth is known, methods, tolerances, sensitivity algorithms.

Every field is ``f(t, y) = pace * g(pace * (t - start), y)``, so that ``g`` is integrated from 0 to ``span`` whatever
the times and their direction are. Numbers come from a torch generator seeded by hypothesis; what can be understood from
a failure (sizes, times, methods) is drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from forms import FORMS, flat, like, mixed
from growing import C128, CLOSED, F64, KINDS, Core, Coupled, core_of, wide
from hypothesis import strategies as st
from torch import Tensor

import pynode


class Field(torch.nn.Module):
    """``f(t, y)`` on trees, of ``g`` on vectors."""

    def __init__(self, core: Core, dtype: torch.dtype, start: float, pace: float) -> None:
        super().__init__()
        self.core, self.dtype, self.start, self.pace = core, dtype, start, pace

    def forward(self, t: Tensor, y: Any) -> Any:
        x = flat(y, self.dtype)
        return like(y, self.pace * self.core((t - self.start) * self.pace, x))


@dataclass
class Case:
    """A problem. ``tau``: the times in units of ``g``; ``t``: as floats; ``x0``: the state as a vector."""

    field: Field
    core: Core
    y0: Any
    x0: Tensor
    t: list[float]
    tau: list[float]
    kind: str

    @property
    def span(self) -> float:
        return self.tau[-1]

    @property
    def channels(self) -> int:
        return self.x0.numel() * (2 if self.x0.is_complex() else 1)

    @property
    def eps(self) -> float:
        return torch.finfo(self.x0.dtype).eps

    @property
    def growth(self) -> float:
        """Two solutions separate at most by this factor, over any part of the span."""
        return math.exp(max(self.core.mu, 0.0) * self.span)

    def vector(self, ys: Any) -> Tensor:
        """Saved states (T, n) in double precision."""
        x = flat(ys, self.x0.dtype, lead=1).detach()
        return x.to(wide(x.dtype))

    def __repr__(self) -> str:
        return f"Case({self.kind}, pace={self.field.pace}, start={self.field.start}, t={self.t}, x0={self.x0})"


seeds = st.integers(0, 2**31 - 1)


@st.composite
def cases(
    draw: Any,
    kinds: tuple[str, ...] = KINDS,
    dtypes: tuple[torch.dtype, ...] = (F64, torch.float32, C128, torch.complex64),
    forms: tuple[str, ...] = (*FORMS, "mixed", "scalar"),
    size: bool = True,
    most: int = 6,
    paces: tuple[float, ...] = (1.0, -1.0, 1.0, -1.0, 2.0**-20, -(2.0**10), 2.0**20),
    starts: tuple[float, ...] = (0.0, 0.0, -1.0, 3.0, 1024.0),
    spans: tuple[float, ...] = (1.0, 2.0, 3.0, 2.0**-20, 0.125),
) -> Case:
    """A smooth problem that a good solver solves.

    ``spans``, ``starts`` are in units of ``g``, of which ``1 / |pace|`` units of time make one: all are powers of two,
    or sums of few, so that times are exact in the precision of the state.
    """
    kind = draw(st.sampled_from(kinds))
    dtype = draw(st.sampled_from([d for d in dtypes if kind in (*CLOSED, "cubic") or not d.is_complex]))
    form = draw(st.sampled_from(forms))
    if form == "mixed" and dtype.is_complex:
        form = "tuple"
    n = 1 if form == "scalar" else draw(st.integers(3 if form == "mixed" else 2, most))
    rate = draw(st.sampled_from([1.0, 0.25, 2.0]))
    seed = draw(seeds)
    core = core_of(kind, n, rate, dtype, seed)
    x0 = torch.randn(n, dtype=wide(dtype), generator=torch.Generator().manual_seed(seed + 1))
    x0 = x0 / max(x0.norm().item(), 1e-3)
    if size and kind in CLOSED:
        x0 = x0 * draw(st.sampled_from([1.0, 1e-3, 1e3]))
    x0 = x0.to(dtype)
    pace, span = draw(st.sampled_from(paces)), draw(st.sampled_from(spans))
    start = draw(st.sampled_from(starts if core.autonomous or dtype in (F64, C128) else starts[:3])) / abs(pace)
    if span < 1e-3 and abs(start) > 8.0 / abs(pace):
        start = 0.0  # the span would be a few units in the last place of single precision
    parts = sorted(draw(st.sets(st.integers(1, 255), max_size=4)))
    if draw(st.integers(0, 7)) == 7:
        parts = list(range(1, 256, 5))
    tau = [0.0, *(span * k / 256 for k in parts), span]
    y0 = x0.reshape(()) if form == "scalar" else mixed(x0) if form == "mixed" else FORMS[form](x0)
    x0 = flat(y0, dtype)  # in the order of the leaves
    field = Field(core, dtype, start, pace)
    return Case(field, core, y0, x0, [start + x / pace for x in tau], tau, f"{kind} {form} {dtype} seed={seed}")


# --------------------------------------------------------------------------------------------------------- methods

#: Adaptive methods, and the tolerance below which they take more than some hundred steps here.
ADAPTIVE: dict[str, tuple[pynode.Algorithm, float]] = {
    **{cls.__name__: (cls(), 1e-10) for cls in (pynode.DP5, pynode.Tsit5, pynode.Vern7, pynode.Vern9, pynode.DP8)},
    **{cls.__name__: (cls(), 1e-8) for cls in (pynode.VCABM, pynode.FBDF, pynode.ROCK4, pynode.Rodas4)},
    **{cls.__name__: (cls(), 1e-8) for cls in (pynode.Rodas5P, pynode.KenCarp4, pynode.Kvaerno5)},
    **{cls.__name__: (cls(), 1e-8) for cls in (pynode.RadauIIA5, pynode.RadauIIA9)},
    **{cls.__name__: (cls(), 1e-6) for cls in (pynode.BS3, pynode.ROCK2, pynode.RKC, pynode.TRBDF2)},
    **{cls.__name__: (cls(), 1e-4) for cls in (pynode.AdaptiveHeun, pynode.Rosenbrock23, pynode.Trapezoid)},
    "Fehlberg2": (pynode.Fehlberg2(), 1e-6),
    "ImplicitEuler": (pynode.ImplicitEuler(), 1e-3),
    "AutoTsit5": (pynode.AutoTsit5(pynode.Rodas5P()), 1e-8),
    "AutoVern7": (pynode.AutoVern7(pynode.KenCarp4()), 1e-8),
    "ReversibleHeun": (pynode.ReversibleHeun(adaptive=True), 1e-4),
    "AsynchronousLeapfrog": (pynode.AsynchronousLeapfrog(adaptive=True), 1e-4),
}
EXPLICIT = ("BS3", "DP5", "Tsit5", "Vern7", "Vern9", "DP8", "AdaptiveHeun", "Fehlberg2")
#: Methods of fixed steps and their orders.
FIXED = {
    **{"Euler": 1, "Midpoint": 2, "Heun": 2, "Ralston": 2, "Heun3": 3, "SSPRK33": 3, "RK4": 4, "RK38": 4},
    **{"ReversibleHeun": 2, "AsynchronousLeapfrog": 2, "AB3": 3, "AB4": 4, "AB5": 5, "ABM32": 3, "ABM43": 4},
    **{"ABM54": 5, "ImplicitEuler": 1, "ImplicitMidpoint": 2, "Trapezoid": 2, "TRBDF2": 2, "KenCarp4": 4},
    **{"Kvaerno5": 5, "RadauIIA5": 5, "Rosenbrock23": 2, "Rodas4": 4, "Rodas5P": 5},
}
FIXED_EXPLICIT = tuple(FIXED)[: tuple(FIXED).index("ImplicitEuler")]
SPLIT = {"SymplecticEuler": 1, "VelocityVerlet": 2, "McAte4": 4, "Yoshida6": 6, "KahanLi8": 8}
CONTROLLERS = (
    *(None, None, pynode.IController(), pynode.PIController(), pynode.PIDController()),
    pynode.PredictiveController(deadband=1.0),
)


@st.composite
def adaptive(
    draw: Any, case: Case, names: tuple[str, ...] = tuple(ADAPTIVE), loosest: float = 1e-3
) -> tuple[pynode.Algorithm, dict[str, Any]]:
    """An adaptive method with tolerances that the state's precision can hold."""
    algorithm, least = ADAPTIVE[draw(st.sampled_from(names))]
    least = max(least, 800.0 * case.eps)
    wanted = draw(st.sampled_from([1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 1e-10]))
    tol = max(min(wanted, loosest), least)
    atol = tol * case.x0.abs().max().item() * draw(st.sampled_from([1.0, 1e-2]))
    controller = draw(st.sampled_from(CONTROLLERS))
    return algorithm, {"rtol": tol, "atol": atol, "controller": controller, "max_steps": 5000}


#: Methods whose first, short step still has an error estimate far above rounding.
LOW = ("BS3", "DP5", "Tsit5", "AdaptiveHeun", "Fehlberg2")


def clear(case: Case, algorithm: pynode.Algorithm, options: dict[str, Any]) -> bool:
    """Whether all error estimates are far above rounding, so that it steers no step; or steps are given."""
    if not algorithm.adaptive:
        return True
    return case.eps < 1e-15 and algorithm.name in LOW and options["rtol"] >= 1e-6


def fixed(name: str, case: Case, quicker: float = 1.0) -> pynode.Algorithm:
    """With steps of an eighth of the problem's time constant, or ``quicker`` times shorter ones."""
    steps = max(4, math.ceil(8.0 * quicker * case.span * case.core.lipschitz))
    algorithm: pynode.Algorithm = getattr(pynode, name)(steps=steps)
    return algorithm


@st.composite
def pairs(draw: Any, dtypes: tuple[torch.dtype, ...] = (F64, torch.float32)) -> Case:
    """Coupled oscillators, a tuple of positions and momenta, for symplectic methods."""
    n, dtype, seed = draw(st.integers(1, 3)), draw(st.sampled_from(dtypes)), draw(seeds)
    core = Coupled(n, draw(st.sampled_from([0.5, 1.0])), dtype, seed)
    x0 = torch.randn(2 * n, dtype=F64, generator=torch.Generator().manual_seed(seed)).to(dtype)
    pace, start = draw(st.sampled_from([1.0, -1.0, 2.0**-10])), draw(st.sampled_from([0.0, -2.0]))
    span = draw(st.sampled_from([1.0, 4.0, 0.125]))
    field = Field(core, dtype, start / abs(pace), pace)
    tau = [0.0, span / 2, span]
    t = [field.start + x / pace for x in tau]
    return Case(field, core, FORMS["named"](x0), x0, t, tau, f"pairs {dtype} seed={seed}")


def named(case: Case) -> dict[str, Tensor]:
    """The case's parameters."""
    return dict(case.field.named_parameters())
