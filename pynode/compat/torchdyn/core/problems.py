"""An equation with its solver and its sensitivity algorithm."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from pynode.compat.torchdyn.core.defunc import DEFunc, standardize_vf_call_signature
from pynode.compat.torchdyn.numerics.integrate import solved, stepped
from pynode.compat.torchdyn.numerics.solvers import SolverTemplate, as_solver
from pynode.errors import InputError, UnsupportedError, explain
from pynode.sensealg import BacksolveAdjoint, DirectAdjoint, InterpolatingAdjoint, SensitivityAlgorithm

_SENSITIVITIES = ("autograd", "adjoint", "interpolated_adjoint")


class ODEProblem(torch.nn.Module):
    """``dx/dt = f(t, x)`` with the algorithms that solve and differentiate it.

    Parameters
    ----------
    vector_field : callable or torch.nn.Module
        ``f(x)``, ``f(t, x)`` or ``f(t, x, args)``.
    solver : str or solver object
        See :mod:`pynode.compat.torchdyn.numerics`.
    interpolator : str, optional
        ``"4th"`` in torchdyn; every solver interpolates here.
    order : int
    atol, rtol : float
    sensitivity : "autograd", "adjoint" or "interpolated_adjoint"
    solver_adjoint, atol_adjoint, rtol_adjoint
        Of the adjoint; its solver is ``solver`` by default.
    seminorm : bool
        Accepted: the parameters are never in the error norm of the adjoint.
    integral_loss : callable, optional
        ``l(t, x)``. With ``sensitivity="autograd"`` the state's first column is its integral (``Augmenter`` adds it);
        with the others its integral, summed over the batch, is added to whatever is differentiated.
    optimizable_params : iterable of tensors
        Registered as parameters of the field if it has none itself.
    backend : str
        Of :func:`pynode.solve`; not torchdyn's.
    """

    def __init__(
        self,
        vector_field: Any,
        solver: Any,
        interpolator: Any = None,
        order: int = 1,
        atol: float = 1e-4,
        rtol: float = 1e-4,
        sensitivity: str = "autograd",
        solver_adjoint: Any = None,
        atol_adjoint: float = 1e-6,
        rtol_adjoint: float = 1e-6,
        seminorm: bool = False,
        integral_loss: Callable[..., Any] | None = None,
        optimizable_params: Iterable[Tensor] = (),
        backend: str = "torch",
    ) -> None:
        super().__init__()
        if sensitivity not in _SENSITIVITIES:
            raise InputError(explain(f"sensitivity = {sensitivity!r}", f"one of {', '.join(_SENSITIVITIES)}", "fix it"))
        if interpolator not in (None, "4th"):
            raise InputError(explain(f"interpolator = {interpolator!r}", "None or '4th'", "drop it"))
        self.vf: DEFunc = standardize_vf_call_signature(vector_field, order, defunc_wrap=True)
        self.order = self.vf.order
        self.solver: SolverTemplate = as_solver(solver)
        self.solver_adjoint: SolverTemplate = self.solver if solver_adjoint is None else as_solver(solver_adjoint)
        self.interpolator = interpolator
        self.atol, self.rtol = atol, rtol
        self.atol_adjoint, self.rtol_adjoint = atol_adjoint, rtol_adjoint
        self.seminorm = seminorm
        self.backend = backend
        self.sensitivity = self.sensalg = self.vf.sensitivity = sensitivity
        self.vf.integral_loss = None if integral_loss is None else standardize_vf_call_signature(integral_loss)
        if next(self.vf.parameters(), None) is None:
            for index, parameter in enumerate(optimizable_params):
                given = parameter if isinstance(parameter, torch.nn.Parameter) else torch.nn.Parameter(parameter)
                self.vf.register_parameter(f"optimizable_parameter_{index}", given)

    @property
    def integral_loss(self) -> Callable[..., Any] | None:
        """The loss along the solution."""
        return self.vf.integral_loss

    def forward(self, x: Any, t_span: Any, save_at: Any = (), args: Any = None) -> tuple[Tensor, Any]:
        """``(t_eval, solution)``."""
        return self.odeint(x, t_span, save_at, args)

    def odeint(self, x: Any, t_span: Any, save_at: Any = (), args: Any = None) -> tuple[Tensor, Any]:
        """Times ``t_span``, or ``save_at`` among them, and the states there: leaves (T, *leaf shape)."""
        return self._integrated(x, t_span, save_at, args, None, ())

    def _integrated(
        self, x: Any, t_span: Any, save_at: Any, args: Any, control: Tensor | None, noise: tuple[Tensor, ...]
    ) -> tuple[Tensor, Any]:
        field_args = ({} if args is None else args, control, noise)
        if self.solver.steps_itself:
            if self.sensitivity != "autograd" and torch.is_grad_enabled():
                raise UnsupportedError(
                    explain(
                        f"sensitivity={self.sensitivity!r} with {type(self.solver).__name__}, which has its own step",
                        "sensitivity='autograd', which differentiates these steps",
                        "use it, or one of the solvers euler, midpoint, rk4, dopri5, tsit5",
                    )
                )
            return stepped(self.solver, self.vf, x, t_span, save_at, field_args)
        loss = self.integral_loss
        cost = None if loss is None or self.vf.propagates else _Cost(loss)
        if cost is not None and not isinstance(x, Tensor):
            raise UnsupportedError(explain("integral_loss with a dictionary", "a tensor", "concatenate the state"))
        solution = solved(
            self.vf,
            x,
            t_span,
            self.solver,
            self.atol,
            self.rtol,
            save_at=save_at,
            args=field_args,
            sensealg=self._sensealg(),
            running_cost=cost,
            backend=self.backend,
        )
        self.vf.count(solution.stats)
        ys = solution.ys
        if cost is not None and torch.is_grad_enabled():
            ys = _AddedToLoss.apply(ys, solution.running_cost)  # type: ignore[no-untyped-call]
        return solution.ts, ys

    def _sensealg(self) -> SensitivityAlgorithm:
        if self.sensitivity == "autograd":
            return DirectAdjoint()
        algorithm = None if self.solver_adjoint is self.solver else self.solver_adjoint.algorithm
        options: dict[str, Any] = {"algorithm": algorithm, "rtol": self.rtol_adjoint, "atol": self.atol_adjoint}
        if self.sensitivity == "adjoint":
            # torchdyn looks at no reconstruction at all.
            return BacksolveAdjoint(**options, on_mismatch="warn")
        return InterpolatingAdjoint(**options)


class _Cost(torch.nn.Module):
    """The integral loss, summed over the batch, as a running cost."""

    def __init__(self, loss: Callable[..., Any]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, t: Tensor, x: Tensor, args: Any, control: Any, noise: Any) -> Tensor:
        total: Tensor = self.loss(t, x).sum()
        return total


class _AddedToLoss(torch.autograd.Function):
    """The states, unchanged; backward as if the cost were added to what is differentiated."""

    @staticmethod
    def forward(ctx: Any, ys: Tensor, cost: Tensor) -> Tensor:
        ctx.save_for_backward(cost)
        return ys.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (cost,) = ctx.saved_tensors
        return gradient, torch.ones_like(cost)
