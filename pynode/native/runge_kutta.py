"""Explicit Runge-Kutta steps over a tableau.

Two steppers with one protocol (:class:`pynode.native.stepper.Stepper`): :class:`RungeKutta` fills a buffer in place
and records nothing, :class:`TapedRungeKutta` uses only functional operations, so that autograd can record it. Both
keep the stage derivatives of the last attempted step, from which error and dense output are linear combinations.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from pynode.errors import FieldError
from pynode.evaluations import changed_input, located
from pynode.native.checkpoints import State
from pynode.native.dense import Piece, StagePiece
from pynode.native.error_norm import ErrorNorm
from pynode.native.tableaus import Tableau
from pynode.problem import Field, nudged
from pynode.transforms import number

#: Up to so many points of dense output have their weights computed in Python, which is quicker for a few numbers.
_FEW = 8


class _Coefficients:
    """A tableau's numbers as tensors of the state's dtype on its device."""

    def __init__(self, tableau: Tableau, dtype: torch.dtype, device: torch.device) -> None:
        self.tableau = tableau
        self.dtype, self.device = dtype, device
        stages = len(tableau.c)
        self.c = (*tableau.c, *tableau.dense_c)
        #: Consecutive stages at one abscissa share their time tensor.
        self.same_time = [i > 0 and c == self.c[i - 1] for i, c in enumerate(self.c)]
        self.a = [self.tensor(row) for row in (*tableau.a, *tableau.dense_a)]
        self.b = self.tensor(tableau.b)
        self.error = [self.tensor(e) for e in (tableau.b_error, tableau.b_error_low) if e is not None]
        self.main = stages
        self.all = stages + len(tableau.dense_c)
        #: Per stage the stages with a weight in its row, and those weights; the last entry is that of ``b``.
        rows = (*tableau.a, *tableau.dense_a, tableau.b)
        self.used = [[j for j, weight in enumerate(row) if weight] for row in rows]
        self.weights = [self.tensor([row[j] for j in used]) for row, used in zip(rows, self.used, strict=True)]
        #: Stages that the propagated solution needs.
        self.needed = max(i for i, weight in enumerate(tableau.b) if weight) + 1
        #: What each of them is weighted with in the states of the later ones and in the solution, one after another.
        later = [[*(tableau.a[i][j] for i in range(j + 1, self.needed)), tableau.b[j]] for j in range(self.needed)]
        self.later = self.tensor([weight for column in later for weight in column])
        self.lengths = [len(column) for column in later]

    def tensor(self, row: Sequence[float]) -> Tensor:
        return torch.tensor(row, dtype=self.dtype, device=self.device)

    @cached_property
    def dense(self) -> Tensor:
        """Dense-output polynomials, shape (degree, stages), float64 as theta is."""
        with torch.inference_mode(False):  # as in coefficients
            return torch.tensor(self.tableau.dense_b, dtype=torch.float64).t().contiguous().to(self.device)

    def weights_at(self, thetas: Sequence[float]) -> Tensor:
        """Weights of the stages at fractions ``thetas`` of the step, shape (m, stages)."""
        rows = []
        for theta in thetas:
            row = []
            for polynomial in self.tableau.dense_b:
                value = 0.0
                for coefficient in reversed(polynomial):
                    value = (value + coefficient) * theta
                row.append(value)
            rows.append(row)
        return torch.tensor(rows, dtype=self.dtype, device=self.device)

    def dense_weights(self, thetas: Tensor, derivative: bool) -> Tensor:
        """Weights of the stages at fractions ``thetas`` (m,) of the step, shape (m, stages)."""
        degree = self.dense.shape[0]
        powers = torch.arange(1, degree + 1, dtype=torch.float64, device=self.device)
        basis = powers * thetas[:, None] ** (powers - 1) if derivative else thetas[:, None] ** powers
        return (basis @ self.dense).to(self.dtype)


@lru_cache(maxsize=256)
def coefficients(tableau: Tableau, dtype: torch.dtype, device: torch.device) -> _Coefficients:
    """A tableau as tensors, made once for each dtype and device."""
    # Made under no inference mode, so that a tape may use them later.
    with torch.inference_mode(False):
        return _Coefficients(tableau, dtype, device)


def _piece(k: _Coefficients, start: tuple[float, float, Tensor, float], end: float, stages: Tensor) -> Piece:
    t, h, y, jump = start

    def complete(stages: Tensor, field: Field) -> Tensor:
        for i in range(k.main, k.all):
            state = torch.addmv(y, stages.t(), k.a[i], alpha=h)
            time = field.time(end if k.c[i] == 1.0 else t + k.c[i] * h)
            if k.c[i] == 1.0 and jump:
                time = nudged(time, jump)
            stages = torch.cat([stages, field(time, state)[None]])
        return stages

    return StagePiece(t, h, y, stages, k.weights_at, complete if k.all > k.main else None)


class RungeKutta:
    """Steps in a preallocated stage buffer, without autograd.

    Parameters
    ----------
    tableau : Tableau
    field : Field
    """

    #: Unstable in steps much longer than the shortest time constant.
    explicit = True

    def __init__(self, tableau: Tableau, field: Field) -> None:
        self.field = field
        self.coefficients = k = coefficients(tableau, field.layout.dtype, field.layout.device)
        self.order = tableau.order
        self.error_order = tableau.error_order or tableau.order
        self._fsal = tableau.fsal
        layout = field.layout
        self._buffer = torch.empty(k.all, layout.size, dtype=layout.dtype, device=layout.device)
        self._rows = layout.row_views(self._buffer)
        self._prefix = [self._buffer.as_strided((layout.size, i), (1, layout.size)) for i in range(k.main + 1)]
        self._first, self._last = self._buffer[0], self._buffer[k.main - 1]
        self._write = layout.writer()

    def begin(self, t: float, y: Tensor, derivative: Tensor | None = None, jump: float = 0.0) -> None:
        """Evaluate what the first step needs. ``derivative``: f(t, y) where it is known already; ``jump``: infinity
        in the direction of integration where ``f`` is to be evaluated just after ``t``."""
        if derivative is None:
            derivative = self.field.check_pure(self._at(t, jump), y)
        self._first.copy_(derivative)

    def derivative(self) -> Tensor:
        """f(t, y) at the start of the coming step."""
        return self._first

    def carried(self, end: bool = False) -> State:
        """A Runge-Kutta step starts from its state alone."""
        return ()

    def resume(self, t: float, y: Tensor, carried: State) -> None:
        self.begin(t, y)

    def attempt(self, t: float, h: float, y: Tensor, jump: float = 0.0, end: float | None = None) -> Tensor:
        """The state at ``end``, which ``t + h`` equals only up to rounding. ``jump``: minus infinity in the direction
        of integration where ``f`` is to be evaluated just before ``end``."""
        # This loop is the whole cost beside f: one combination, one view, one time and one copy per stage.
        self._start = (t, h, y, jump)
        self._end_time = t + h if end is None else end
        field, prefix, rows = self.field, self._prefix, self._rows
        k, write, unpack = self.coefficients, self._write, field.layout.unpack
        weights, c, same_time, f, args, counts = k.a, k.c, k.same_time, field.f, field.args, field.counts
        addmv, scalar_tensor, dtype, device = torch.addmv, torch.scalar_tensor, k.dtype, k.device
        state, time = y, None
        counted = not torch.is_inference_mode_enabled()
        try:
            for i in range(1, k.main):
                state = addmv(y, prefix[i], weights[i], alpha=h)
                if time is None or not same_time[i]:
                    if c[i] == 1.0:
                        time = self._at(self._end_time, jump)
                    else:
                        time = scalar_tensor(t + c[i] * h, dtype=dtype, device=device)
                counts.nfe += 1
                write(f(time, unpack(state), *args), rows[i])
                if counted and state._version:  # the last one may be the end of the step
                    raise changed_input()
        except FieldError as error:
            located(error, time)
            raise
        return state if self._fsal else addmv(y, prefix[-1], self.coefficients.b, alpha=h)

    def stages(self) -> Tensor:
        """The stage derivatives (S, n) of the last attempt, until the next one."""
        return self._buffer[: self.coefficients.main]

    def error_ratio(self, measure: ErrorNorm) -> float:
        """Norm of the last attempt's error estimate over its tolerance; ``measure(error, factor)`` gives the norm of
        ``factor * error``."""
        h = self._start[1]
        errors = [torch.mv(self._prefix[-1], error) for error in self.coefficients.error]
        return measure(errors[0], h) if len(errors) == 1 else measure.blended(errors[0], errors[1], h)

    def interpolate(self, thetas: Sequence[float], derivative: bool = False) -> Tensor:
        """States (or time derivatives) at fractions ``thetas`` of the last attempted step, shape (m, n)."""
        _t, h, y, _ = self._start
        k = self.coefficients
        for i in range(k.main, k.all):
            state = torch.addmv(y, self._buffer[:i].t(), k.a[i], alpha=h)
            self._buffer[i].copy_(self.field(self._stage_time(i), state))
        if derivative or len(thetas) > _FEW:
            weights = k.dense_weights(torch.tensor(thetas, dtype=torch.float64, device=k.device), derivative)
        else:
            weights = k.weights_at(thetas)
        return weights @ self._buffer if derivative else torch.addmm(y, weights, self._buffer, alpha=h)

    def piece(self) -> Piece:
        """Dense output of the last attempted step, to keep."""
        k = self.coefficients
        return _piece(k, self._start, self._end_time, self._buffer[: k.main].clone())

    def advance(self, t: float, y: Tensor) -> None:
        """Accept the last attempt, which ended in state ``y`` at time ``t``."""
        if self._fsal:
            self._first.copy_(self._last)
        else:
            self.begin(t, y)

    def _stage_time(self, i: int) -> Tensor:
        t, h, _, jump = self._start
        c = self.coefficients.c[i]
        return self._at(self._end_time, jump) if c == 1.0 else self._at(t + c * h, 0.0)

    def _at(self, t: float, jump: float) -> Tensor:
        time = torch.scalar_tensor(t, dtype=self.coefficients.dtype, device=self.coefficients.device)
        return nudged(time, jump) if jump else time


class TapedRungeKutta:
    """The same steps in functional operations, for autograd. Stages are evaluated when something needs them."""

    explicit = True

    def __init__(self, tableau: Tableau, field: Field) -> None:
        self.field = field
        self.coefficients = coefficients(tableau, field.layout.dtype, field.layout.device)
        self.order = tableau.order
        self.error_order = tableau.error_order or tableau.order
        self._fsal = tableau.fsal
        self._stages: list[Tensor] = []

    def begin(self, t: float | Tensor, y: Tensor, derivative: Tensor | None = None, jump: float = 0.0) -> None:
        self._stages = [self.field.check_pure(self._at(t, jump), y) if derivative is None else derivative]

    def derivative(self) -> Tensor:
        return self._stages[0]

    def carried(self, end: bool = False) -> State:
        return ()

    def resume(self, t: float | Tensor, y: Tensor, carried: State) -> None:
        self.begin(t, y)

    def attempt(
        self, t: float | Tensor, h: float | Tensor, y: Tensor, jump: float = 0.0, end: float | Tensor | None = None
    ) -> Tensor:
        self._start = (t, h, y, jump)
        self._end_time = t + h if end is None else end
        self._stages = self._stages[:1]
        # Every stage goes into all states that it counts for at once: pulling back through that takes few operations.
        k = self.coefficients
        states = y
        for i, weights in enumerate((k.later * h).split_with_sizes(k.lengths)):
            if i:
                state, states = states.split_with_sizes((1, k.lengths[i]))
                self._stages.append(self.field(self._stage_time(i), state.squeeze(0)))
            states = torch.addr(states, weights, self._stages[i])
        self._end = states.squeeze(0)
        return self._end

    def stages(self) -> Tensor:
        """The stage derivatives (S, n) of the last attempt."""
        k = self.coefficients
        self._need(k.main)
        return torch.stack(self._stages[: k.main])

    def error_ratio(self, measure: ErrorNorm) -> float:
        k = self.coefficients
        self._need(k.main)
        with torch.no_grad():
            h = number(self._start[1])
            stages = torch.stack(self._stages[: k.main]).detach().t()
            errors = [torch.mv(stages, error) for error in k.error]
            return measure(errors[0], h) if len(errors) == 1 else measure.blended(errors[0], errors[1], h)

    def interpolate(self, thetas: Sequence[float] | Sequence[Tensor], derivative: bool = False) -> Tensor:
        k = self.coefficients
        self._need(k.all)
        fractions = torch.stack([torch.as_tensor(x, dtype=torch.float64, device=k.device) for x in thetas])
        slopes = k.dense_weights(fractions, derivative) @ torch.stack(self._stages[: k.all])
        _, h, y, _ = self._start
        return slopes if derivative else y + h * slopes

    def piece(self) -> Piece:
        k = self.coefficients
        self._need(k.main)
        t, h, y, jump = self._start
        stages = torch.stack(self._stages[: k.main]).detach()
        return _piece(k, (float(t), float(h), y.detach(), jump), float(self._end_time), stages)

    def advance(self, t: float | Tensor, y: Tensor) -> None:
        if self._fsal:
            self._need(self.coefficients.main)
            self._stages = [self._stages[self.coefficients.main - 1]]
        else:
            self.begin(t, y)

    def _need(self, count: int) -> None:
        """Evaluate stages up to ``count``."""
        k = self.coefficients
        for i in range(len(self._stages), count):
            # The last stage of a first-same-as-last method sits at the step's end, which is known by then.
            last = self._fsal and i == k.main - 1
            self._stages.append(self.field(self._stage_time(i), self._end if last else self._sum(i)))

    def _stage_time(self, i: int) -> Tensor:
        t, h, _, jump = self._start
        c = self.coefficients.c[i]
        return self._at(self._end_time, jump) if c == 1.0 else self._at(t + c * h, 0.0)

    def _sum(self, row: int) -> Tensor:
        """``y + h * sum_j a_ij k_j`` of a row of the tableau."""
        _, h, y, _ = self._start
        weights, used = self.coefficients.weights[row], self.coefficients.used[row]
        stages = torch.stack([self._stages[j] for j in used]).t()
        if isinstance(h, Tensor):
            return y + h * torch.mv(stages, weights)
        return torch.addmv(y, stages, weights, alpha=h)

    def _at(self, t: float | Tensor, jump: float) -> Tensor:
        time = self.field.time(t)
        return nudged(time, jump) if jump else time
