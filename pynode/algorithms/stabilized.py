"""Stabilised explicit methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from pynode.algorithms.base import Algorithm
from pynode.errors import InputError, explain


@dataclass(frozen=True)
class Stabilized(Algorithm):
    """An explicit method for mildly stiff fields whose Jacobian has its eigenvalues near the negative real axis:
    diffusion, gradient flows, dissipative models.

    With ``s`` evaluations a step is stable up to ``h rho = O(s^2)``, where ``rho`` is the spectral radius of the
    Jacobian, so that the cost grows with the square root of the stiffness only. Every step takes as many stages as its
    size needs. ``rho`` is estimated at the start of every step by a nonlinear power iteration (Sommeijer, Shampine and
    Verwer 1997) that starts from the eigenvector found last: one evaluation of ``f`` more, several where the estimate
    changes. No linear systems, no memory beyond a few states: for large states too. Fields that rotate fast
    (eigenvalues far from the real axis) need an implicit method.

    Parameters
    ----------
    min_stages, max_stages : int, optional
        Bounds of the number of stages; a step that would need more than ``max_stages`` is made shorter. By default the
        method's own bounds.
    eigen_est : callable, optional
        ``eigen_est(t, y) -> float``: an upper bound of the spectral radius of ``df/dy``, instead of the estimate. ``y``
        has the tree of the state.

    Raises
    ------
    InputError
        Unless ``least <= min_stages <= max_stages <= most`` for the bounds of the method.
    """

    least: ClassVar[int]
    most: ClassVar[int]

    min_stages: int | None = None
    max_stages: int | None = None
    eigen_est: Callable[[Any, Any], Any] | None = None

    def __post_init__(self) -> None:
        for key in ("min_stages", "max_stages"):
            value = getattr(self, key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise InputError(explain(f"{self.name}({key}={value!r})", "an integer", "give a number of stages"))
        low, high = self.stages
        if not self.least <= low <= high <= self.most:
            raise InputError(
                explain(
                    f"{self.name}(min_stages={self.min_stages}, max_stages={self.max_stages})",
                    f"{self.least} <= min_stages <= max_stages <= {self.most}",
                    "leave them out for the method's own bounds",
                )
            )
        if self.eigen_est is not None and not callable(self.eigen_est):
            raise InputError(
                explain(
                    f"{self.name}(eigen_est={self.eigen_est!r})",
                    "a function (t, y) -> spectral radius",
                    "write eigen_est=lambda t, y: bound, or leave it out",
                )
            )

    @property
    def stages(self) -> tuple[int, int]:
        """The least and the largest number of stages a step may take."""
        low = self.least if self.min_stages is None else self.min_stages
        return low, self.most if self.max_stages is None else self.max_stages


@dataclass(frozen=True)
class RKC(Stabilized):
    """Runge-Kutta-Chebyshev, order 2, stable up to ``h rho = 0.65 s^2`` (Sommeijer, Shampine and Verwer 1997, "RKC: an
    explicit solver for parabolic PDEs"); 2 to 1000 stages.

    Examples
    --------
    >>> f, y0 = lambda t, y: -1000.0 * (y - torch.cos(t)), torch.zeros(1, dtype=torch.float64)
    >>> sol = pynode.solve(f, y0, [0.0, 1.0], algorithm=pynode.RKC(), rtol=1e-3, atol=1e-3)
    >>> sol.stats.forward.accepted < 100, abs(sol.ys[-1].item() - math.cos(1.0)) < 1e-2
    (True, True)
    """

    least = 2
    most = 1000


@dataclass(frozen=True)
class ROCK2(Stabilized):
    """Orthogonal Runge-Kutta-Chebyshev, order 2, stable up to ``h rho = 0.81 s^2`` (Abdulle and Medovikov 2001, "Second
    order Chebyshev methods based on orthogonal polynomials"); 3 to 200 stages.

    Examples
    --------
    >>> f, y0 = lambda t, y: -1000.0 * (y - torch.cos(t)), torch.zeros(1, dtype=torch.float64)
    >>> sol = pynode.solve(f, y0, [0.0, 1.0], algorithm=pynode.ROCK2(), rtol=1e-3, atol=1e-3)
    >>> sol.stats.forward.accepted < 100, abs(sol.ys[-1].item() - math.cos(1.0)) < 1e-2
    (True, True)
    """

    least = 3
    most = 200


@dataclass(frozen=True)
class ROCK4(Stabilized):
    """Orthogonal Runge-Kutta-Chebyshev, order 4, stable up to ``h rho = 0.35 s^2`` (Abdulle 2002, "Fourth order
    Chebyshev methods with recurrence relation"); 5 to 152 stages.

    Examples
    --------
    >>> f, y0 = lambda t, y: -1000.0 * (y - torch.cos(t)), torch.zeros(1, dtype=torch.float64)
    >>> sol = pynode.solve(f, y0, [0.0, 1.0], algorithm=pynode.ROCK4(), rtol=1e-3, atol=1e-3)
    >>> sol.stats.forward.accepted < 200, abs(sol.ys[-1].item() - math.cos(1.0)) < 1e-2
    (True, True)
    """

    least = 5
    most = 152
