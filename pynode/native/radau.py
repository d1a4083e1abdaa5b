"""Radau IIA of s stages and order 2 s - 1 (Hairer and Wanner 1996, section IV.8, and 1999 for more than three).

The stages are ``Z_i = Y_i - y`` with ``M Z = h (A x I) F(y + Z)``, all at once. With the eigenvectors of ``A^-1`` the
sn x sn system of Newton's iteration falls into a real and (s - 1)/2 complex ones of n; in the matrix-free variant GMRES
works on it as a whole. What autograd records is a correction with the exact sn x sn matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.native.checkpoints import State
from pynode.native.dense import Piece
from pynode.native.error_norm import ErrorNorm
from pynode.native.implicit import ImplicitStepper, Settings, fractions, with_derivative
from pynode.native.linear_operator import DenseJacobian, Factored, Krylov, Linearisation, Solver, linearise
from pynode.native.radau_tableau import RadauTableau, radau_tableau
from pynode.problem import Field
from pynode.transforms import number


class Radau(ImplicitStepper):
    """Radau IIA.

    Carries the stages of the step before, whose polynomial gives the first guess.

    Parameters
    ----------
    stages : int
        Odd, 3 or more.
    field : Field
    settings : Settings
    """

    slow = 1e-3

    def __init__(self, stages: int, field: Field, settings: Settings) -> None:
        super().__init__(field, settings)
        self.stages, self.order = stages, 2 * stages - 1
        #: The estimate is O(h^(s+1)), by a formula of order s.
        self.error_order = stages + 1
        #: Hairer's: 7 of three stages, and 5/2 more for each one more.
        self.limit = 7 + 5 * (stages - 3) // 2
        self._constants = radau_tableau(stages, field.layout.dtype, field.layout.device)
        #: ``f`` at the start of the step.
        self._derivative = torch.empty(0)
        #: Length and stages of the step before.
        self._last: tuple[Tensor, Tensor] | None = None
        self._rejected = False

    def begin(self, t: Any, y: Tensor, derivative: Tensor | None = None, jump: float = 0.0) -> None:
        """See :class:`pynode.native.stepper.Stepper`."""
        self._anew(jump)
        self._last, self._found, self._rejected = None, None, False
        if derivative is None:
            derivative = self.field.check_pure(self._time(t, jump), y)
        self._derivative = derivative if derivative.requires_grad else derivative.clone()

    def resume(self, t: Any, y: Tensor, carried: State) -> None:
        self._anew(0.0, carried[2:])
        self._last, self._found = (carried[0].detach(), carried[1].detach()), None

    def carried(self, end: bool = False) -> State:
        if end:
            length = torch.tensor(self._step[0], dtype=torch.float64, device=self._ends.device)
            return (length, self._ends)
        return (*(self._last or ()), *(() if self._found is None else (self._found,)))

    def derivative(self) -> Tensor:
        mass = self.field.mass
        return self._derivative if mass is None else mass.inverse @ self._derivative

    def advance(self, t: Any, y: Tensor) -> None:
        length = torch.tensor(self._step[0], dtype=torch.float64)
        self._last, self._found, self._rejected = (length, self._ends.detach()), None, False
        self._anew(0.0)
        # That of the polynomial, which the stages have made f to the tolerance of their iteration: f itself would
        # multiply what that has left by the stiffness, and be one evaluation more.
        self._derivative = self._mass_times(self._constants.end @ self._last[1]) / self._step[0]

    # The search.

    def _search(self, t: float, h: float, y: Tensor, jump: float, end: float) -> Tensor | None:
        k, field = self._constants, self.field
        times = self._times(t, h, jump, end)
        if self._last is None:
            guess = y.new_zeros(self.stages, y.numel())
        else:
            # The last polynomial, in fractions of its step, minus its value at its end.
            length, stages = self._last[0].item(), self._last[1]
            guess = self._weights([1.0 + c * h / length for c in k.c]) @ stages - stages[-1]

        solve = self._solver("stages", h, lambda jacobian: self._stage_solver(jacobian, h, k))

        def correction(z: Tensor) -> Tensor:
            states = [y + row for row in z.unbind()]
            rates = torch.stack([field(time, state) for time, state in zip(times, states, strict=True)])
            if self._full:
                residual = h * (k.a @ rates) - self._mass_times(z)
                return self._exact(self._linearised(times, states), h).solve(residual.reshape(-1)).view_as(z)
            found: Tensor = solve(z, h * rates)
            return found

        found = self._newton(correction, guess)
        return found.z if self._converged(found) else None

    def _times(self, t: Any, h: Any, jump: float, end: Any) -> list[Tensor]:
        """Of the stages."""
        return [*(self._time(t + c * h) for c in self._constants.c[:-1]), self._time(end, jump)]

    def _stage_solver(self, jacobian: Linearisation, h: float, k: RadauTableau) -> Callable[[Tensor, Tensor], Tensor]:
        """``solve(Z, h F)``: the Newton correction of the stages (s, n)."""
        if isinstance(jacobian, DenseJacobian):
            # Of A^-1 (I x M) Z = h F, in eigenvectors of A^-1: one real system and complex ones of n.
            real = jacobian.shifted(k.real, h)
            pairs = [jacobian.shifted(value, h) for value, _, _ in k.pairs]
            self._solvers["error"] = h, real

            def solve(z: Tensor, rates: Tensor) -> Tensor:
                z = self._mass_times(z)
                found = torch.outer(k.right_real, real.solve(k.left_real @ rates - k.real * (k.left_real @ z)))
                for pair, (value, right, left) in zip(pairs, k.pairs, strict=True):
                    other = pair.solve(left @ rates.to(left.dtype) - value * (left @ z.to(left.dtype)))
                    found = found + 2.0 * torch.outer(right, other).real
                return found

            return solve

        s, n = self.stages, self.field.layout.size

        def times(v: Tensor) -> Tensor:
            v = v.view(s, n)
            products = torch.stack([jacobian.times(row) for row in v.unbind()])
            return (self._mass_times(v) - h * (k.a @ products)).reshape(-1)

        whole = Krylov(times, times)  # never pulled back

        def solve_whole(z: Tensor, rates: Tensor) -> Tensor:
            return whole.solve((k.a @ rates - self._mass_times(z)).reshape(-1)).view(s, n)

        return solve_whole

    def _filter(self, h: float) -> tuple[Solver, float]:
        """The solver of a multiple of ``(M - h / real J) x = b``, and ``h / real`` times that multiple."""
        if "error" in self._solvers:
            return self._solvers["error"][1], h
        assert self._jacobian is not None
        scale = h / self._constants.real
        return self._jacobian.operator(scale), scale

    def _error(self, measure: ErrorNorm) -> float:
        found, h, k, y = self._found, self._step[0], self._constants, self._step[2].detach()
        assert found is not None
        solver, scale = self._filter(h)
        stages = self._mass_times(k.e @ found) / h

        def filtered(derivative: Tensor) -> Tensor:
            error: Tensor = solver.solve(scale * (derivative + stages))
            return error

        error = filtered(self._derivative.detach())
        ratio = measure(error)
        if ratio > 1.0 and (self._rejected or self._last is None):
            # Filtered twice: at a transient the first value would reject steps that are good.
            ratio = measure(filtered(self.field(self._time(self._start, self._jump), y + error)))
        self._rejected = ratio > 1.0
        return ratio

    # The step.

    def _finish(self, t: Any, h: Any, y: Tensor, jump: float, end: Any, stages: Tensor) -> Tensor:
        self._ends = stages
        if self.settings.taped and torch.is_grad_enabled():
            self._ends = self._recorded(t, h, y, jump, end, stages)
        self._start, self._step = t, (number(h), h, y)
        return y + self._ends[-1]

    def _recorded(self, t: Any, h: Any, y: Tensor, jump: float, end: Any, stages: Tensor) -> Tensor:
        """The stages with their derivatives: one correction with the Jacobians at the stages themselves."""
        k, s, n = self._constants, self.stages, y.numel()
        times = self._times(t, h, jump, end)
        states = [y + row for row in stages.unbind()]
        rates = torch.stack([self.field(time, state) for time, state in zip(times, states, strict=True)])
        residual = h * (k.a @ rates) - self._mass_times(stages)
        if not residual.requires_grad:
            return stages
        exact = self._exact(self._linearised(times, states), number(h))
        correction = exact.solve(residual.reshape(-1)).view(s, n)
        self._moved = correction[-1].detach()
        return with_derivative(stages, correction)

    def _linearised(self, times: list[Tensor], states: list[Tensor]) -> list[Linearisation]:
        """A Jacobian for each stage."""
        return [
            linearise(self.field, time.detach(), state.detach(), self.settings.linsolve)
            for time, state in zip(times, states, strict=True)
        ]

    def _exact(self, at: list[Linearisation], h: float) -> Factored | Krylov:
        """The solver of ``(I x M - h A x J) dZ = r`` with a Jacobian for each stage."""
        a, s, n = self._constants.a, self.stages, self.field.layout.size
        mass = self.field.mass_matrix
        if isinstance(at[0], DenseJacobian):
            jacobians = torch.stack([x.matrix for x in at if isinstance(x, DenseJacobian)])
            blocks = -h * a[:, :, None, None] * jacobians
            own = torch.eye(n, dtype=a.dtype, device=a.device) if mass is None else mass
            for i in range(s):
                blocks[i, i] += own
            return Factored(blocks.permute(0, 2, 1, 3).reshape(s * n, s * n), self.field.counts)

        def times(v: Tensor) -> Tensor:
            rows = v.view(s, n).unbind()
            products = torch.stack([x.times(row) for x, row in zip(at, rows, strict=True)])
            return (self._mass_times(v.view(s, n)) - h * (a @ products)).reshape(-1)

        def transposed(v: Tensor) -> Tensor:
            weighted = (a.t() @ v.view(s, n)).unbind()
            products = torch.stack([x.pulled(row) for x, row in zip(at, weighted, strict=True)])
            own = v.view(s, n) if mass is None else v.view(s, n) @ mass
            return (own - h * products).reshape(-1)

        return Krylov(times, transposed)

    # Dense output: the collocation polynomial.

    def interpolate(self, thetas: Sequence[Any], derivative: bool = False) -> Tensor:
        """See :class:`pynode.native.stepper.Stepper`."""
        _, h, y = self._step
        if self.settings.linear:
            x = fractions(thetas, y.device)[:, None].to(y.dtype)
            return (self._ends[-1] / h).expand(len(x), -1) if derivative else y + x * self._ends[-1]
        change = self._weights(thetas, derivative) @ self._ends
        return change / h if derivative else y + change

    def _weights(self, thetas: Sequence[Any], derivative: bool = False) -> Tensor:
        """Weights (m, s) of the stages at fractions of the step."""
        k = self._constants
        x = fractions(thetas, k.dense.device)[:, None]
        powers = torch.arange(1, self.stages + 1, dtype=torch.float64, device=k.dense.device)
        basis = powers * x ** (powers - 1) if derivative else x**powers
        weights: Tensor = basis @ k.dense
        return weights.to(k.a.dtype)

    def piece(self) -> Piece:
        """See :class:`pynode.native.stepper.Stepper`."""
        t, h, y, stages = number(self._start), self._step[0], self._step[2].detach(), self._ends.detach()
        linear, weights = self.settings.linear, self._weights

        def evaluate(times: Sequence[float], field: Field) -> Tensor:
            thetas = [(x - t) / h for x in times]
            if linear:
                return y + torch.tensor(thetas, dtype=y.dtype, device=y.device)[:, None] * stages[-1]
            return y + weights(thetas) @ stages

        return evaluate

    _start: Any
    _step: tuple[float, Any, Tensor]
    _ends: Tensor
