"""Rosenbrock methods."""

from __future__ import annotations

from dataclasses import dataclass

from pynode.algorithms.implicit import Implicit


@dataclass(frozen=True)
class Rosenbrock(Implicit):
    """A linearly implicit method: every step makes the Jacobian of ``f`` at its start and solves one linear system a
    stage, all with the same matrix, without an iteration that could fail. The derivative of ``f`` with respect to time
    is taken by torch, too.

    ``f`` must be once differentiable by torch, and twice where gradients are asked for or where it depends on time. The
    Jacobian is made in every step: for states so large that this is most of the cost, a method that keeps it is better.

    Parameters
    ----------
    dt, steps, mesh, interpolation, perturb, linsolve
        See Implicit.
    """


@dataclass(frozen=True)
class Rosenbrock23(Rosenbrock):
    """Order 2 with an estimate of order 3, L-stable: for tolerances above 1e-4 (Shampine and Reichelt 1997, "The MATLAB
    ODE Suite": ode23s).

    Examples
    --------
    >>> f, y0 = lambda t, y: -1000.0 * (y - torch.cos(t)), torch.zeros(1, dtype=torch.float64)
    >>> sol = pynode.solve(f, y0, [0.0, 1.0], algorithm=pynode.Rosenbrock23(), rtol=1e-3, atol=1e-3)
    >>> sol.stats.forward.accepted < 100, abs(sol.ys[-1].item() - math.cos(1.0)) < 1e-2
    (True, True)
    """

    masses = "regular"


@dataclass(frozen=True)
class Rodas4(Rosenbrock):
    """Order 4(3), L-stable and stiffly accurate: for stiff problems and differential-algebraic ones of index 1 (Hairer
    and Wanner 1996, "Solving Ordinary Differential Equations II", section IV.7).

    Examples
    --------
    >>> f = lambda t, y: -1000.0 * (y - torch.cos(t))
    >>> sol = pynode.solve(f, torch.zeros(1, dtype=torch.float64), [0.0, 1.0], algorithm=pynode.Rodas4())
    >>> sol.stats.forward.accepted < 100, abs(sol.ys[-1].item() - math.cos(1.0)) < 2e-3
    (True, True)
    """

    masses = "singular"


@dataclass(frozen=True)
class Rodas5P(Rosenbrock):
    """Order 5(4), L-stable and stiffly accurate, with dense output of order 4 and little order reduction: the first one
    to try on stiff problems up to a few hundred states (Steinebach 2023, "Construction of Rosenbrock-Wanner method
    Rodas5P and numerical benchmarks within the Julia Differential Equations package").

    Examples
    --------
    >>> y0 = torch.ones(1, dtype=torch.float64, requires_grad=True)
    >>> sol = pynode.solve(lambda t, y: -1000.0 * (y**3 - 1), 2 * y0, [0.0, 1.0], algorithm=pynode.Rodas5P())
    >>> abs(torch.autograd.grad(sol.ys[-1].sum(), y0)[0].item()) < 1e-6  # wherever it starts, it ends at 1
    True
    """

    masses = "singular"
