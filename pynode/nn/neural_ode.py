"""A differential equation as a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pynode.algorithms import Algorithm, Tsit5
from pynode.errors import InputError, explain
from pynode.sensealg import SensitivityAlgorithm
from pynode.solution import Solution
from pynode.solve import as_algorithm, solve


class NeuralODE(torch.nn.Module):
    """The flow of a vector field as a module: ``y0 -> y(t[-1])`` (Chen et al. 2018).

    Parameters
    ----------
    f : torch.nn.Module or callable
        The field ``f(t, y)``; registered as the submodule ``f`` if it is a module.
    t : sequence of float
        Start and end time, with save times in between if you like.
    algorithm : Algorithm or str
    sensealg : SensitivityAlgorithm, optional
    rtol, atol : float
    running_cost : torch.nn.Module or callable, optional
        See :func:`pynode.solve`; registered as the submodule ``running_cost`` if it is a module. The integral is that
        of the solution :meth:`solve` returns.
    **options
        Further keyword arguments of :func:`pynode.solve`.

    Notes
    -----
    The module holds no state of a solve: one instance may be used from several threads. Times, algorithm and options
    are plain attributes and may be changed between calls (tighter tolerances at test time, say).
    """

    def __init__(
        self,
        f: Any,
        t: Any = (0.0, 1.0),
        *,
        algorithm: Algorithm | str = Tsit5(),  # noqa: B008  (immutable)
        sensealg: SensitivityAlgorithm | None = None,
        rtol: float = 1e-5,
        atol: float = 1e-7,
        running_cost: Any = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if not callable(f):
            raise InputError(explain(f"f is a {type(f).__name__}", "a callable f(t, y)", "pass a module or function"))
        self.f = f
        self.t = t
        self.algorithm = as_algorithm(algorithm, options.get("backend", "torch"))
        self.sensealg = sensealg
        self.rtol = rtol
        self.atol = atol
        self.running_cost = running_cost
        self.options = options

    def forward(self, y0: Any, *args: Any) -> Any:
        """State at the last time, shaped like ``y0``. Further arguments go to the field."""
        sol = self.solve(y0, args=args)
        return _last(sol.ys)

    def trajectory(self, y0: Any, ts: Any, *args: Any) -> Any:
        """States at ``ts`` (T,), the first of which is the initial time: leaves of shape (T, *leaf shape)."""
        return self.solve(y0, ts, args=args).ys

    def solve(self, y0: Any, ts: Any = None, args: tuple[Any, ...] = ()) -> Solution:
        """The whole :class:`pynode.Solution`, statistics included, at ``ts`` (by default the module's ``t``)."""
        return solve(
            self.f,
            y0,
            self.t if ts is None else ts,
            args=args,
            algorithm=self.algorithm,
            sensealg=self.sensealg,
            rtol=self.rtol,
            atol=self.atol,
            running_cost=self.running_cost,
            **self.options,
        )

    def extra_repr(self) -> str:
        t = self.t.tolist() if isinstance(self.t, Tensor) else list(self.t)
        sensealg = "default" if self.sensealg is None else self.sensealg.name
        return f"t={t}, algorithm={self.algorithm.name}, sensealg={sensealg}, rtol={self.rtol:g}, atol={self.atol:g}"


def _last(ys: Any) -> Any:
    if isinstance(ys, dict):
        return {key: _last(value) for key, value in ys.items()}
    if isinstance(ys, tuple | list):
        parts = [_last(value) for value in ys]
        return type(ys)(*parts) if hasattr(ys, "_fields") else type(ys)(parts)
    return ys[-1]
