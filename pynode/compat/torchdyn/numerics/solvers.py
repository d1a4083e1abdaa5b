"""Solver objects: a pynode algorithm each, or a step of the user's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pynode.algorithms import DP5, RK4, Algorithm, Tsit5
from pynode.algorithms import Euler as EulerAlgorithm
from pynode.algorithms import Midpoint as MidpointAlgorithm
from pynode.compat.torchdyn.unsupported import refuse
from pynode.errors import InputError, explain
from pynode.layout import Tree
from pynode.native.tableaus import TABLEAUS
from pynode.nn.trees import map_leaves


class SolverTemplate(torch.nn.Module):
    """Base class of solvers.

    One of the user's overrides ``step(f, x, t, dt, k1=None, args=None)``, which returns a tuple whose second entry is
    the state at ``t + dt``; the time steps are then the intervals of ``t_span``.

    Attributes
    ----------
    algorithm : Algorithm or None
        What pynode solves with.
    order : int
    stepping_class : "fixed" or "adaptive"
    """

    algorithm: Algorithm | None = None
    stepping_class = "fixed"

    def __init__(self, order: int = 1, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.order = order
        self.dtype = dtype

    @property
    def steps_itself(self) -> bool:
        """Whether the steps are those of the object's own method ``step``."""
        return self.algorithm is None or type(self).step not in _STEPS

    def step(self, f: Any, x: Any, t: Tensor, dt: Tensor, k1: Any = None, args: Any = None) -> tuple[Any, ...]:
        """One step of size ``dt``: ``(None, x1, None)``; adaptive: ``(last stage, x1, error, stages)``."""
        raise NotImplementedError(f"{type(self).__name__} has no step")


class _RungeKutta(SolverTemplate):
    algorithm: Algorithm

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(TABLEAUS[self.algorithm.name].order, dtype)
        self.stepping_class = "adaptive" if self.algorithm.adaptive else "fixed"

    def step(self, f: Any, x: Any, t: Tensor, dt: Tensor, k1: Any = None, args: Any = None) -> tuple[Any, ...]:
        tableau = TABLEAUS[self.algorithm.name]

        def along(weights: tuple[float, ...]) -> Tree:
            used = [(w, k) for w, k in zip(weights, stages, strict=False) if w]
            return map_leaves(
                lambda y, *ks: y + dt * sum(w * k for (w, _), k in zip(used, ks, strict=True)), x, *(k for _, k in used)
            )

        stages: list[Tree] = []
        for c, a in zip(tableau.c, tableau.a, strict=True):
            given = k1 if not stages and k1 is not None else f(t + c * dt, along(a) if stages else x)
            stages.append(given)
        end = along(tableau.b)
        if tableau.b_error is None:
            return None, end, None
        return stages[-1], end, map_leaves(lambda y, z: z - y, x, along(tableau.b_error)), tuple(stages)


class Euler(_RungeKutta):
    """Explicit Euler, one step an interval of ``t_span``."""

    algorithm = EulerAlgorithm()


class Midpoint(_RungeKutta):
    """Explicit midpoint rule, one step an interval of ``t_span``."""

    algorithm = MidpointAlgorithm()


class RungeKutta4(_RungeKutta):
    """The classical Runge-Kutta method, one step an interval of ``t_span``."""

    algorithm = RK4()


class DormandPrince45(_RungeKutta):
    """Dormand-Prince 5(4), adaptive."""

    algorithm = DP5()


class Tsitouras45(_RungeKutta):
    """Tsitouras 5(4), adaptive."""

    algorithm = Tsit5()


class AsynchronousLeapfrog(SolverTemplate):
    """Asynchronous leapfrog on states ``(x, v)`` side by side, with a field ``f(t, x)`` of the first half (Mutze 2013).

    The velocity is the caller's: :class:`pynode.AsynchronousLeapfrog` keeps its own, and can be adaptive.
    """

    def __init__(
        self, channel_index: int = -1, stepping_class: str = "fixed", dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(2, dtype)
        self.channel_index = channel_index
        if stepping_class != "fixed":
            refuse("adaptive AsynchronousLeapfrog", "use pynode.AsynchronousLeapfrog(adaptive=True)")

    def step(self, f: Any, x: Any, t: Tensor, dt: Tensor, k1: Any = None, args: Any = None) -> tuple[Any, ...]:
        place, velocity = x.chunk(2, dim=self.channel_index)
        middle = place + dt / 2 * velocity
        after = 2 * f(t + dt / 2, middle) - velocity
        return None, torch.cat([middle + dt / 2 * after, after], dim=self.channel_index), None


class _Hyper(_RungeKutta):
    """A method with a network for its leading error term (Poli et al. 2020, hypersolvers)."""

    def __init__(self, hypernet: Any, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(dtype)
        self.hypernet = hypernet

    def step(self, f: Any, x: Any, t: Tensor, dt: Tensor, k1: Any = None, args: Any = None) -> tuple[Any, ...]:
        _, end, _ = super().step(f, x, t, dt, k1)
        correction = dt ** (self.order + 1) * self.hypernet(t, x)
        return None, end + correction, None


class HyperEuler(_Hyper):
    """``x + dt f(t, x) + dt^2 g(t, x)``."""

    algorithm = EulerAlgorithm()


class HyperMidpoint(_Hyper):
    """The midpoint rule ``+ dt^3 g(t, x)``."""

    algorithm = MidpointAlgorithm()


class HyperRungeKutta4(_Hyper):
    """The classical Runge-Kutta method ``+ dt^5 g(t, x)``."""

    algorithm = RK4()


class _Missing(SolverTemplate):
    remedy = "use one of the explicit solvers"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        refuse(type(self).__name__, self.remedy)


class ImplicitEuler(_Missing):
    """Raises UnsupportedError."""

    remedy = "solve with pynode.solve(..., backend='julia', algorithm='ImplicitEuler')"


class MSZero(_Missing):
    """Parallel in time: raises UnsupportedError."""


class MSBackward(_Missing):
    """Parallel in time: raises UnsupportedError."""


#: The steps that pynode takes itself.
_STEPS = (_RungeKutta.step,)

SOLVERS: dict[str, type[SolverTemplate]] = {
    **dict.fromkeys(("euler",), Euler),
    **dict.fromkeys(("midpoint",), Midpoint),
    **dict.fromkeys(("rk4", "rk-4", "RungeKutta4"), RungeKutta4),
    **dict.fromkeys(("dopri5", "DormandPrince45", "DormandPrince5"), DormandPrince45),
    **dict.fromkeys(("tsit5", "Tsitouras45", "Tsitouras5"), Tsitouras45),
    **dict.fromkeys(("ieuler", "implicit_euler"), ImplicitEuler),
    **dict.fromkeys(("alf", "AsynchronousLeapfrog"), AsynchronousLeapfrog),
}


def as_solver(solver: Any) -> SolverTemplate:
    """A solver object from itself, from torchdyn's name of it, or from a pynode algorithm.

    Raises
    ------
    InputError
        For anything else.
    """
    if isinstance(solver, SolverTemplate):
        return solver
    if isinstance(solver, str) and solver in SOLVERS:
        return SOLVERS[solver]()
    if isinstance(solver, Algorithm):
        return _Algorithm(solver)
    raise InputError(
        explain(f"solver = {solver!r}", f"a solver object or one of {', '.join(SOLVERS)}", "choose one of these")
    )


class _Algorithm(SolverTemplate):
    def __init__(self, algorithm: Algorithm) -> None:
        super().__init__()
        self.algorithm = algorithm
        self.stepping_class = "adaptive" if algorithm.adaptive else "fixed"

    @property
    def steps_itself(self) -> bool:
        return False
