"""Neural differential equations with torchdyn's signature."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from pynode.compat.torchdyn.core.defunc import noisy
from pynode.compat.torchdyn.core.problems import ODEProblem


class NeuralODE(ODEProblem):
    """``(t_span, trajectory)`` of a vector field.

    Parameters
    ----------
    vector_field : callable or torch.nn.Module
        ``f(x)``, ``f(t, x)`` or ``f(t, x, args)``; a ``torch.nn.Sequential`` may hold ``DepthCat`` and ``DataControl``.
    solver : str or solver object
        ``"tsit5"``, ``"dopri5"``, ``"rk4"``, ``"midpoint"``, ``"euler"``, ...
    order, atol, rtol, sensitivity, solver_adjoint, atol_adjoint, rtol_adjoint, interpolator, integral_loss, seminorm,
    optimizable_params, backend
        See :class:`ODEProblem`.
    return_t_eval : bool
        Return ``(t_eval, trajectory)``; otherwise the trajectory alone, for ``torch.nn.Sequential``.

    Attributes
    ----------
    t_span : Tensor or None
        Used where a call gives none; 0 and 1 by default.
    """

    def __init__(
        self,
        vector_field: Any,
        solver: Any = "tsit5",
        order: int = 1,
        atol: float = 1e-3,
        rtol: float = 1e-3,
        sensitivity: str = "autograd",
        solver_adjoint: Any = None,
        atol_adjoint: float = 1e-4,
        rtol_adjoint: float = 1e-4,
        interpolator: Any = None,
        integral_loss: Callable[..., Any] | None = None,
        seminorm: bool = False,
        return_t_eval: bool = True,
        optimizable_params: Iterable[Tensor] = (),
        backend: str = "torch",
    ) -> None:
        super().__init__(
            vector_field,
            solver,
            interpolator=interpolator,
            order=order,
            atol=atol,
            rtol=rtol,
            sensitivity=sensitivity,
            solver_adjoint=solver_adjoint,
            atol_adjoint=atol_adjoint,
            rtol_adjoint=rtol_adjoint,
            seminorm=seminorm,
            integral_loss=integral_loss,
            optimizable_params=optimizable_params,
            backend=backend,
        )
        self.return_t_eval = return_t_eval
        self.t_span: Tensor | None = None

    @property
    def controlled(self) -> bool:
        """Whether a module of the field takes the input as its control."""
        return any(hasattr(module, "_control") for module in self.vf.modules())

    def forward(self, x: Any, t_span: Any = None, save_at: Any = (), args: Any = None) -> Any:
        """``(t_eval, trajectory)``, or the trajectory: leaves (T, *leaf shape).

        Parameters
        ----------
        x : Tensor, or dictionary of tensors
            Initial state (batch, ...). What ``DataControl`` appends is this one, without the leading columns of traces
            and integral losses.
        t_span : Tensor (T,), optional
        save_at : sequence of float, optional
            Times to return instead.
        args : dict, optional
            For fields ``f(t, x, args)``; its tensors are differentiated.
        """
        t_eval, sol = self._solved(x, t_span, save_at, args)
        return (t_eval, sol) if self.return_t_eval else sol

    def trajectory(self, x: Any, t_span: Any) -> Any:
        """The states at ``t_span`` alone."""
        return self._solved(x, t_span, (), None)[1]

    def _solved(self, x: Any, t_span: Any, save_at: Any, args: Any) -> tuple[Tensor, Any]:
        if t_span is None:
            t_span = torch.linspace(0, 1, 2) if self.t_span is None else self.t_span
        estimates = [module for module in self.vf.modules() if hasattr(module, "trace_estimator")]
        ahead = len(estimates) + self.vf.propagates
        control = x[:, ahead:] if self.controlled else None
        distributions: list[Any] = [module.noise_dist for module in noisy(self.vf)]
        noise = tuple(distribution.sample((len(x),)).to(x) for distribution in distributions)
        return self._integrated(x, t_span, save_at, args, control, noise)

    def __repr__(self) -> str:
        parameters = sum(p.numel() for p in self.vf.parameters())
        return (
            f"Neural ODE:\n\t- order: {self.order}\n\t- solver: {self.solver}"
            f"\n\t- adjoint solver: {self.solver_adjoint}"
            f"\n\t- tolerances: relative {self.rtol} absolute {self.atol}"
            f"\n\t- adjoint tolerances: relative {self.rtol_adjoint} absolute {self.atol_adjoint}"
            f"\n\t- num_parameters: {parameters}\n\t- NFE: {self.vf.nfe}"
        )


#: torchdyn's name before its version 0.2.
NeuralDE = NeuralODE
