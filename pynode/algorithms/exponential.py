"""Exponential integrators, for fields with a stiff linear part."""

from __future__ import annotations

from dataclasses import dataclass

from pynode.algorithms.base import FixedStep


@dataclass(frozen=True)
class Exponential(FixedStep):
    """A method for split fields ``f(t, y) = L y + N(t, y)`` that solves the linear part exactly, however stiff it is.

    The field has, beside ``f(t, y, *args)`` itself, ``linear``: the real matrix L (n, n) of the flattened state, or a
    function ``linear(*args)`` that returns it; and ``nonlinear(t, y, *args)``, like ``f``. That these two make up
    ``f`` is checked before the first step. Gradients reach the parameters of both parts. SciML's ``SplitODEProblem``.

    Fixed steps: all options of FixedStep. The native backend only.
    """


@dataclass(frozen=True)
class ETDRK4(Exponential):
    """The exponential time differencing method of order 4 of Cox and Matthews (2002), "Exponential time differencing
    for stiff systems". Four evaluations of ``N`` a step, and one exponential of a matrix of 4 n rows for every length
    of step that occurs (under gradients for every step): for states of up to some hundred numbers.

    The functions of the matrix are taken from the exponential of a block matrix, without the divisions by small
    eigenvalues that the contour integrals of Kassam and Trefethen (2005) avoid. They are wrong by about the unit of
    rounding times the norm of ``dt L``.

    Examples
    --------
    >>> class Split(torch.nn.Module):  # y' = -1000 y + cos(y)
    ...     linear = torch.tensor([[-1000.0]])
    ...
    ...     def nonlinear(self, t, y):
    ...         return torch.cos(y)
    ...
    ...     def forward(self, t, y):
    ...         return self.linear @ y + self.nonlinear(t, y)
    >>> sol = pynode.solve(Split(), torch.ones(1), [0.0, 1.0], algorithm=pynode.ETDRK4(steps=10))
    >>> abs(sol.ys[-1].item() - 1e-3) < 1e-5  # -1000 y + cos(y) = 0; RK4 would need 360 steps to be stable
    True
    """
