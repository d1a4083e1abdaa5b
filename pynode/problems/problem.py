"""What a built-in problem is, and what it becomes when it is built."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pynode.errors import InputError, explain
from pynode.layout import leaves_of
from pynode.problems.formula import Formula, FormulaField

#: ``exact(field, y0, t)``: the states (T, *shape) at ``t`` (T,), differentiable in the parameters, ``y0`` and ``t``.
Exact = Callable[[Any, Tensor, Tensor], Tensor]

#: Every problem of the registry by name; the package fills it, see there.
PROBLEMS: dict[str, Problem] = {}


class WeightedLoss:
    """``sum(w * y + v * y**2 / 2) / sqrt(numel)`` over all saved states, with fixed weights drawn from N(0, 1).

    Smooth, not linear, and such that every element at every saved time counts. ``ys`` may be a tree; complex leaves
    count as pairs. Weights are float32 numbers in any precision, so that a float64 copy has the same loss.

    Examples
    --------
    >>> loss = pynode.problems.WeightedLoss(seed=1)
    >>> same = pynode.problems.WeightedLoss(seed=1)
    >>> loss(torch.ones(6, 2)).shape, torch.equal(loss(torch.ones(6, 2)), same(torch.ones(6, 2)))
    (torch.Size([]), True)
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


@dataclass(frozen=True)
class Instance:
    """A problem ready to solve: ``field(t, y)``, ``y0``, times ``t`` (T,), and a ``loss(ys)`` of the saved states.

    Examples
    --------
    >>> problem = pynode.problems.problem_from_name("linear").build(dtype=torch.float64, seed=0)
    >>> problem.loss(pynode.solve(problem.field, problem.y0, problem.t).ys).backward()
    >>> all(p.grad is not None for p in problem.field.parameters())
    True
    """

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

    Examples
    --------
    >>> problem = pynode.problems.PROBLEMS["lotka-volterra"]
    >>> problem.span, problem.stiff, problem.build(dtype=torch.float64, seed=0).y0.shape
    ((0.0, 8.0), False, torch.Size([2]))
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


def given(
    name: str, title: str, formula: Formula, y0: tuple[float, ...], end: float, **options: Any
) -> Callable[..., Problem]:
    """A problem over [0, end] whose initial state and parameters, given last, are plain numbers.

    Examples
    --------
    >>> make = pynode.problems.given("decay", "decay", lambda xp, t, y, p: -p["rate"] * y, (1.0,), 2.0)
    >>> problem = make(rate=0.5)
    >>> problem.name, problem.span
    ('decay', (0.0, 2.0))
    """

    def with_parameters(**parameters: float) -> Problem:
        def make(generator: torch.Generator, size: int) -> tuple[nn.Module, Tensor]:
            return FormulaField(formula, **parameters), torch.tensor(y0, dtype=torch.float64)

        return Problem(name, title, make, (0.0, end), size=len(y0), formula=formula, **options)

    return with_parameters
