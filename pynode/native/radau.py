"""Radau IIA of three stages and order 5 (Hairer and Wanner 1996, section IV.8).

The stages are ``Z_i = Y_i - y`` with ``M Z = h (A x I) F(y + Z)``, all at once. With the eigenvectors of ``A^-1`` the
3n x 3n system of Newton's iteration falls into a real and a complex one of n; in the matrix-free variant GMRES works on
it as a whole. What autograd records is a correction with the exact 3n x 3n matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode.native.checkpoints import State
from pynode.native.dense import Piece
from pynode.native.error_norm import ErrorNorm
from pynode.native.implicit import ImplicitStepper, Settings, fractions, with_derivative
from pynode.native.linear_operator import DenseJacobian, Factored, Krylov, Linearisation, linearise
from pynode.native.newton import newton
from pynode.problem import Field
from pynode.transforms import number

_ROOT = math.sqrt(6.0)
#: The tableau: right Radau points, the last of which is the end of the step.
C = ((4.0 - _ROOT) / 10.0, (4.0 + _ROOT) / 10.0, 1.0)
A = (
    ((88.0 - 7.0 * _ROOT) / 360.0, (296.0 - 169.0 * _ROOT) / 1800.0, (-2.0 + 3.0 * _ROOT) / 225.0),
    ((296.0 + 169.0 * _ROOT) / 1800.0, (88.0 + 7.0 * _ROOT) / 360.0, (-2.0 - 3.0 * _ROOT) / 225.0),
    ((16.0 - _ROOT) / 36.0, (16.0 + _ROOT) / 36.0, 1.0 / 9.0),
)
#: Weights of the error estimate (equation IV.8.19), to be divided by h.
E = ((-13.0 - 7.0 * _ROOT) / 3.0, (-13.0 + 7.0 * _ROOT) / 3.0, -1.0 / 3.0)


class _Constants:
    """Numbers of the method in a precision, on a device.

    Attributes
    ----------
    real, pair : float, complex
        Eigenvalues of ``A^-1``; ``pair`` with its conjugate.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        values, right = np.linalg.eig(np.linalg.inv(np.array(A)))
        left = np.linalg.inv(right)
        one, two = int(np.argmin(np.abs(values.imag))), int(np.argmax(values.imag))
        self.real, self.pair = float(values[one].real), complex(values[two])

        def own(x: Any) -> Tensor:
            tensor = torch.from_numpy(np.ascontiguousarray(x))
            return tensor.to(device, dtype.to_complex() if tensor.is_complex() else dtype)

        # Scaled to real numbers where the eigenvalue is one.
        phase = right[np.argmax(np.abs(right[:, one])), one]
        self.right_real, self.left_real = own((right[:, one] / phase).real), own((left[one] * phase).real)
        self.right_pair, self.left_pair = own(right[:, two]), own(left[two])
        self.a, self.e = own(np.array(A)), own(np.array(E))
        #: Row i: the coefficient of theta^(i+1) in the polynomial through 0 and the three stages.
        powers = np.array(C)[:, None] ** np.arange(1, 4)
        self.dense = torch.from_numpy(np.linalg.inv(powers)).to(device)


@lru_cache(maxsize=16)
def _constants(dtype: torch.dtype, device: torch.device) -> _Constants:
    with torch.inference_mode(False):  # a tape may use them later
        return _Constants(dtype, device)


class Radau(ImplicitStepper):
    """Three-stage Radau IIA.

    Carries the stages of the step before, whose polynomial gives the first guess.

    Parameters
    ----------
    field : Field
    settings : Settings
    """

    order = 5
    #: The estimate is O(h^4), by a formula of order 3.
    error_order = 4
    limit = 7
    slow = 1e-3

    def __init__(self, field: Field, settings: Settings) -> None:
        super().__init__(field, settings)
        self._constants = _constants(field.layout.dtype, field.layout.device)
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
        if not self.settings.fixed:
            with torch.no_grad():  # for the error estimate alone
                self._derivative = self.field(self._time(t), y.detach()).clone()

    # The search.

    def _search(self, t: float, h: float, y: Tensor, jump: float, end: float) -> Tensor | None:
        k, field = self._constants, self.field
        times = [self._time(t + C[0] * h), self._time(t + C[1] * h), self._time(end, jump)]
        if self._last is None:
            guess = y.new_zeros(3, y.numel())
        else:
            # The last polynomial, in fractions of its step, minus its value at its end.
            length, stages = self._last[0].item(), self._last[1]
            guess = self._weights([1.0 + c * h / length for c in C]) @ stages - stages[2]

        solve = self._solver(("stages", h), lambda jacobian: self._stage_solver(jacobian, h, k))

        def correction(z: Tensor) -> Tensor:
            rates = torch.stack([field(time, y + row) for time, row in zip(times, z.unbind(), strict=True)])
            found: Tensor = solve(z, h * rates)
            return found

        found = newton(correction, guess, self._norm, self._eta, self._limit, self.settings.fixed)
        return found.z if self._converged(found) else None

    def _stage_solver(self, jacobian: Linearisation, h: float, k: _Constants) -> Callable[[Tensor, Tensor], Tensor]:
        """``solve(Z, h F)``: the Newton correction of the stages (3, n)."""
        if isinstance(jacobian, DenseJacobian):
            # Of A^-1 (I x M) Z = h F, in eigenvectors of A^-1: one real system and one complex one of n.
            real, pair = jacobian.shifted(k.real, h), jacobian.shifted(k.pair, h)
            self._solvers[("error", h)] = real

            def solve(z: Tensor, rates: Tensor) -> Tensor:
                z = self._mass_times(z)
                own = real.solve(k.left_real @ rates - k.real * (k.left_real @ z))
                other = pair.solve(
                    k.left_pair @ rates.to(k.left_pair.dtype) - k.pair * (k.left_pair @ z.to(k.left_pair))
                )
                return torch.outer(k.right_real, own) + 2.0 * torch.outer(k.right_pair, other).real

            return solve

        n = self.field.layout.size

        def times(v: Tensor) -> Tensor:
            v = v.view(3, n)
            products = torch.stack([jacobian.times(row) for row in v.unbind()])
            return (self._mass_times(v) - h * (k.a @ products)).reshape(-1)

        whole = Krylov(times, times)  # never pulled back

        def solve_whole(z: Tensor, rates: Tensor) -> Tensor:
            return whole.solve((k.a @ rates - self._mass_times(z)).reshape(-1)).view(3, n)

        return solve_whole

    def _error(self, measure: ErrorNorm) -> float:
        found, h, k, y = self._found, self._step[0], self._constants, self._step[2].detach()
        assert found is not None
        solver = self._solver(("error", h), lambda jacobian: jacobian.operator(h / k.real))
        scale = h if isinstance(solver, Factored) else h / k.real
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
        return y + self._ends[2]

    def _recorded(self, t: Any, h: Any, y: Tensor, jump: float, end: Any, stages: Tensor) -> Tensor:
        """The stages with their derivatives: one correction with the Jacobians at the stages themselves."""
        k, n = self._constants, y.numel()
        times = [self._time(t + C[0] * h), self._time(t + C[1] * h), self._time(end, jump)]
        states = [y + row for row in stages.unbind()]
        rates = torch.stack([self.field(time, state) for time, state in zip(times, states, strict=True)])
        residual = h * (k.a @ rates) - self._mass_times(stages)
        if not residual.requires_grad:
            return stages
        at = [
            linearise(self.field, time.detach(), state.detach(), self.settings.linsolve)
            for time, state in zip(times, states, strict=True)
        ]
        return with_derivative(stages, self._exact(at, number(h)).solve(residual.reshape(-1)).view(3, n))

    def _exact(self, at: list[Linearisation], h: float) -> Factored | Krylov:
        """The solver of ``(I x M - h A x J) dZ = r`` with a Jacobian for each stage."""
        a, n = self._constants.a, self.field.layout.size
        mass = self.field.mass_matrix
        if isinstance(at[0], DenseJacobian):
            jacobians = torch.stack([x.matrix for x in at if isinstance(x, DenseJacobian)])
            blocks = -h * a[:, :, None, None] * jacobians
            own = torch.eye(n, dtype=a.dtype, device=a.device) if mass is None else mass
            for i in range(3):
                blocks[i, i] += own
            return Factored(blocks.permute(0, 2, 1, 3).reshape(3 * n, 3 * n), self.field.counts)

        def times(v: Tensor) -> Tensor:
            rows = v.view(3, n).unbind()
            products = torch.stack([x.times(row) for x, row in zip(at, rows, strict=True)])
            return (self._mass_times(v.view(3, n)) - h * (a @ products)).reshape(-1)

        def transposed(v: Tensor) -> Tensor:
            weighted = (a.t() @ v.view(3, n)).unbind()
            products = torch.stack([x.pulled(row) for x, row in zip(at, weighted, strict=True)])
            own = v.view(3, n) if mass is None else v.view(3, n) @ mass
            return (own - h * products).reshape(-1)

        return Krylov(times, transposed)

    # Dense output: the collocation polynomial.

    def interpolate(self, thetas: Sequence[Any], derivative: bool = False) -> Tensor:
        """See :class:`pynode.native.stepper.Stepper`."""
        _, h, y = self._step
        if self.settings.linear:
            x = fractions(thetas, y.device)[:, None].to(y.dtype)
            return (self._ends[2] / h).expand(len(x), -1) if derivative else y + x * self._ends[2]
        change = self._weights(thetas, derivative) @ self._ends
        return change / h if derivative else y + change

    def _weights(self, thetas: Sequence[Any], derivative: bool = False) -> Tensor:
        """Weights (m, 3) of the stages at fractions of the step."""
        k = self._constants
        x = fractions(thetas, k.dense.device)[:, None]
        powers = torch.arange(1, 4, dtype=torch.float64, device=k.dense.device)
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
                return y + torch.tensor(thetas, dtype=y.dtype, device=y.device)[:, None] * stages[2]
            return y + weights(thetas) @ stages

        return evaluate

    _start: Any
    _step: tuple[float, Any, Tensor]
    _ends: Tensor
