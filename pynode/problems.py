"""Built-in problems with known answers, for tests, benchmarks, ``pynode crosscheck`` and a first look at a method.

>>> problem = pynode.problems.PROBLEMS["lotka-volterra"].build(dtype=torch.float64, seed=0)
>>> sol = pynode.solve(problem.field, problem.y0, problem.t, rtol=problem.rtol, atol=problem.atol)
>>> problem.loss(sol.ys).backward()

Every field is a ``torch.nn.Module`` whose physical parameters are ``nn.Parameter``s. Those given by a formula are
written once for torch and for ``jax.numpy`` (``xp`` below), so that diffrax can solve the same problem; neither jax nor
anything else beside torch is imported here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pynode.algorithms import DP5
from pynode.errors import InputError, explain
from pynode.layout import leaves_of
from pynode.solve import solve

#: ``formula(xp, t, y, p)``: the derivative, in the array library ``xp``, with the parameters ``p`` by name.
Formula = Callable[[Any, Any, Any, dict[str, Any]], Any]
#: ``exact(field, y0, t)``: the states (T, *shape) at ``t`` (T,), differentiable in the parameters, ``y0`` and ``t``.
Exact = Callable[[Any, Tensor, Tensor], Tensor]


class WeightedLoss:
    """``sum(w * y + v * y**2 / 2) / sqrt(numel)`` over all saved states, with fixed weights drawn from N(0, 1).

    Smooth, not linear, and such that every element at every saved time counts. ``ys`` may be a tree; complex leaves
    count as pairs. Weights are float32 numbers in any precision, so that a float64 copy has the same loss.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def __call__(self, ys: Any) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        terms: list[Tensor] = []
        count = 0
        for _, leaf in leaves_of(ys, "ys"):
            real = torch.view_as_real(leaf.resolve_conj()) if leaf.is_complex() else leaf
            w, v = torch.randn(2, *real.shape, generator=generator).to(real)
            terms.append((w * real + 0.5 * v * real**2).sum())
            count += real.numel()
        return torch.stack(terms).sum() / math.sqrt(count)


class FormulaField(nn.Module):
    """A formula with its parameters as ``nn.Parameter``s of the same names."""

    def __init__(self, formula: Formula, **parameters: Any) -> None:
        super().__init__()
        self.formula = formula
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(torch.as_tensor(value, dtype=torch.float64)))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        derivative: Tensor = self.formula(torch, t, y, self._parameters)
        return derivative


class Perceptron(nn.Module):
    """``dy/dt = net(y ** power)``, a tanh network of the given widths in torch's default initialisation."""

    def __init__(self, widths: tuple[int, ...], power: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inner, outer in itertools.pairwise(widths):
            layers += [nn.Linear(inner, outer), nn.Tanh()]
        self.net = nn.Sequential(*layers[:-1])
        self.power = power

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        derivative: Tensor = self.net(y if self.power == 1 else y**self.power)
        return derivative


class ControlledField(nn.Module):
    """``dy/dt = M(y) dX/dt``, the field of a neural controlled differential equation (Kidger et al. 2020).

    ``M`` is a network of three layers ending in tanh, with values (hidden, channels). The control ``X`` of each sample
    is time itself and, in the other channels, a fixed sum of sines, whose derivative is written down; ``speed`` scales
    them.
    """

    frequencies: Tensor
    amplitudes: Tensor
    phases: Tensor

    def __init__(
        self, batch: int, hidden: int, inner: int, channels: int, generator: torch.Generator, speed: float = 1.0
    ) -> None:
        super().__init__()
        self.hidden, self.channels = hidden, channels
        self.net = nn.Sequential(
            *(nn.Linear(hidden, inner), nn.Tanh(), nn.Linear(inner, inner), nn.Tanh()),
            *(nn.Linear(inner, hidden * channels), nn.Tanh()),
        )
        shape = (batch, channels - 1, 3)
        self.register_buffer("frequencies", torch.tensor([1.0, 2.0, 5.0]))
        self.register_buffer("amplitudes", speed * torch.randn(shape, generator=generator) / self.frequencies)
        self.register_buffer("phases", 2 * math.pi * torch.rand(shape, generator=generator))

    def control_derivative(self, t: Tensor) -> Tensor:
        """``dX/dt`` (batch, channels) at time ``t``."""
        sines = self.amplitudes * self.frequencies * torch.cos(self.frequencies * t + self.phases)
        return nn.functional.pad(sines.sum(dim=-1), (1, 0), value=1.0)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        matrix = self.net(y).unflatten(-1, (self.hidden, self.channels))
        derivative: Tensor = (matrix @ self.control_derivative(t).unsqueeze(-1)).squeeze(-1)
        return derivative


def initialise(field: nn.Module, generator: torch.Generator) -> None:
    """What ``nn.Linear`` does by itself, from a generator of its own."""
    with torch.no_grad():
        for name, parameter in field.named_parameters():
            fan_in = field.get_parameter(name.replace("bias", "weight")).shape[1]
            parameter.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)


@dataclass(frozen=True)
class Instance:
    """A problem ready to solve: ``field(t, y)``, ``y0``, times ``t`` (T,), and a ``loss(ys)`` of the saved states."""

    problem: Problem
    field: nn.Module
    y0: Tensor
    t: Tensor
    loss: Callable[[Any], Tensor]

    @property
    def rtol(self) -> float:
        return self.problem.rtol

    @property
    def atol(self) -> float:
        return self.problem.atol

    def exact(self, y0: Tensor | None = None) -> Tensor:
        """The states (T, *shape) from ``y0`` (the instance's own by default), differentiable in ``y0`` and parameters.

        Raises
        ------
        InputError
            Where no analytic solution is known.
        """
        if self.problem.exact is None:
            known = ", ".join(name for name, problem in PROBLEMS.items() if problem.exact)
            raise InputError(explain(f"{self.problem.name} has no analytic solution", f"one of {known}", "solve it"))
        return self.problem.exact(self.field, self.y0 if y0 is None else y0, self.t)


@dataclass(frozen=True)
class Problem:
    """An initial value problem.

    Attributes
    ----------
    name, title : str
    make : callable
        ``make(generator, size)``: the field and its initial state, the same for the same seed.
    span : (float, float)
        First and last time.
    saves : int
        Equally spaced times at which the state is saved, the first and last among them.
    rtol, atol : float
        Suggested tolerances.
    size : int
        The number that scales the problem (grid points a side, samples, components); see ``scalable``.
    scalable : bool
        Whether ``build(size=...)`` may choose it.
    exact : callable or None
        The analytic solution, differentiable: solution and gradient are then known (``analytic``).
    formula : callable or None
        The field for any array library, jax's among them.
    stiff, chaotic : bool
        Stiff: an explicit method's steps are limited by stability; the span is short, so that it ends all the same.
        Chaotic: errors grow exponentially; the span is short for the same reason.
    """

    name: str
    title: str
    make: Callable[[torch.Generator, int], tuple[nn.Module, Tensor]]
    span: tuple[float, float]
    saves: int = 6
    rtol: float = 1e-6
    atol: float = 1e-8
    size: int = 2
    scalable: bool = False
    exact: Exact | None = None
    formula: Formula | None = None
    stiff: bool = False
    chaotic: bool = False

    @property
    def analytic(self) -> bool:
        """Whether solution and gradient are known."""
        return self.exact is not None

    def build(
        self,
        *,
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
        device: torch.device | str = "cpu",
        size: int | None = None,
    ) -> Instance:
        """The problem in a precision on a device; ``seed`` decides everything random in it.

        Raises
        ------
        InputError
            For a dtype other than float32 and float64, and a ``size`` the problem does not have.
        """
        if dtype not in (torch.float32, torch.float64):
            raise InputError(explain(f"dtype = {dtype}", "torch.float32 or torch.float64", "use one of them"))
        if size is not None and (not self.scalable or size < 3):
            expectation = "an integer >= 3" if self.scalable else "no size: this problem has one only"
            raise InputError(explain(f"{self.name} got size = {size}", expectation, "drop size="))
        field, y0 = self.make(torch.Generator().manual_seed(seed), self.size if size is None else size)
        t = torch.linspace(*self.span, self.saves, dtype=torch.float64)
        kind: dict[str, Any] = {"dtype": dtype, "device": device}
        return Instance(self, field.to(**kind), y0.to(**kind), t.to(device), WeightedLoss(seed))

    def jax_field(self) -> Callable[[Any, Any, dict[str, Any]], Any]:
        """``f(t, y, p)`` in jax, ``p`` holding the field's parameters by name. Imports jax.

        Raises
        ------
        InputError
            Where the problem is given in torch only.
        """
        formula = self.formula
        if formula is None:
            known = ", ".join(name for name, problem in PROBLEMS.items() if problem.formula)
            raise InputError(explain(f"{self.name} is given in torch only", f"one of {known}", "choose another oracle"))
        import jax.numpy as jnp

        return lambda t, y, p: formula(jnp, t, y, p)


# The formulas. Each is followed by what makes the field and its initial state.


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


def spiral_start(generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    """The network of torchdiffeq's ``ode_demo.py`` in float32, and 20 states (20, 1, 2) in float64 drawn from the
    spiral ``dy/dt = y**3 A`` through (2, 0)."""
    field = Perceptron((2, 50, 2), power=3)
    initialise(field, generator)
    with torch.no_grad():
        matrix = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=torch.float64)
        ts = torch.linspace(0.0, 25.0, 1000, dtype=torch.float64)
        start = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
        path = solve(lambda t, y: y**3 @ matrix, start, ts, algorithm=DP5(), rtol=1e-9, atol=1e-9).ys
    chosen = torch.randperm(len(ts) - 10, generator=generator)[:20]
    return field, path[chosen]


def _make_spiral(generator: torch.Generator, size: int) -> tuple[nn.Module, Tensor]:
    field, states = spiral_start(generator)
    return field, states[:, 0].float()


def _make_cde(generator: torch.Generator, size: int) -> tuple[nn.Module, Tensor]:
    field = ControlledField(batch=size, hidden=32, inner=40, channels=8, generator=generator)
    initialise(field, generator)
    return field, 0.5 * torch.randn(size, 32, generator=generator)


def _given(
    name: str, title: str, formula: Formula, y0: tuple[float, ...], end: float, **options: Any
) -> Callable[..., Problem]:
    """A problem over [0, end] whose initial state and parameters, given last, are plain numbers."""

    def with_parameters(**parameters: float) -> Problem:
        def make(generator: torch.Generator, size: int) -> tuple[nn.Module, Tensor]:
            return FormulaField(formula, **parameters), torch.tensor(y0, dtype=torch.float64)

        return Problem(name, title, make, (0.0, end), size=len(y0), formula=formula, **options)

    return with_parameters


_ALL = (
    Problem(
        name="linear",
        title="dy/dt = A y with a random A: solution and gradient by the matrix exponential",
        make=_make_linear,
        span=(0.0, 2.0),
        size=3,
        scalable=True,
        exact=_exact_linear,
        formula=_linear,
    ),
    _given("harmonic", "harmonic oscillator, omega = 2", _harmonic, (1.0, 0.5), 4.0, exact=_exact_harmonic)(omega=2.0),
    _given("lotka-volterra", "Lotka-Volterra, a cycle and a half", _lotka_volterra, (1.0, 1.0), 8.0)(
        alpha=1.5, beta=1.0, delta=1.0, gamma=3.0
    ),
    Problem("spiral", "spiral: 2-50-2 tanh of y**3, batch 20", _make_spiral, (0.0, 1.0), size=20),
    _given("vanderpol", "van der Pol, mu = 1", _van_der_pol, (2.0, 0.0), 6.0)(mu=1.0),
    _given(
        "vanderpol-stiff",
        "van der Pol, mu = 1e3, t in [0, 0.1]: short against its period of 1600, for explicit methods",
        *(_van_der_pol, (2.0, 0.0), 0.1),
        stiff=True,
    )(mu=1e3),
    _given(
        "robertson",
        "Robertson's reaction, t in [0, 0.1]: short against its 1e11, for explicit methods",
        *(_robertson, (1.0, 0.0, 0.0), 0.1),
        stiff=True,
        atol=1e-10,
    )(k1=0.04, k2=3e7, k3=1e4),
    _given(
        "lorenz",
        "Lorenz's attractor, t in [0, 2]: short, as errors grow tenfold in 2.5",
        *(_lorenz, (1.0, 1.0, 20.0), 2.0),
        chaotic=True,
    )(sigma=10.0, rho=28.0, beta=8 / 3),
    Problem(
        name="heat",
        title="heat equation on a rod of 20 points, hot on the left, cold ends",
        make=_make_heat,
        span=(0.0, 1.0),
        size=20,
        scalable=True,
        exact=_exact_heat,
        formula=_heat,
    ),
    Problem(
        name="brusselator-1d",
        title="Brusselator on a rod of 20 points, fixed ends",
        make=_make_brusselator_1d,
        span=(0.0, 1.0),
        size=20,
        scalable=True,
        formula=_brusselator_1d,
    ),
    Problem(
        name="brusselator-2d",
        title="Brusselator on a periodic grid of N x N points, N = 8; stiffer like N**2",
        make=_make_brusselator_2d,
        span=(0.0, 1.0),
        size=8,
        scalable=True,
        formula=_brusselator_2d,
    ),
    Problem(
        name="cde",
        title="neural CDE: 32 samples, 32 hidden, 8 channels, 13 456 parameters",
        make=_make_cde,
        span=(0.0, 1.0),
        size=32,
        scalable=True,
        rtol=1e-5,
        atol=1e-7,
    ),
)

#: Every problem by name.
PROBLEMS: dict[str, Problem] = {problem.name: problem for problem in _ALL}


def problem_from_name(name: str) -> Problem:
    """The problem called ``name``.

    Raises
    ------
    InputError
        If there is none; the message lists them.
    """
    if name not in PROBLEMS:
        raise InputError(explain(f"unknown problem {name!r}", f"one of {', '.join(PROBLEMS)}", "choose one of them"))
    return PROBLEMS[name]
