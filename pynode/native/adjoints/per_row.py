"""The discrete adjoint of independent stepping: round by round backward, each accepted step repeated from its stored
state and pulled back alone, all rows of a round in the same calls."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pynode.backends import Gradients
from pynode.errors import GradientError, explain
from pynode.native.adjoints.accumulator import Accumulator
from pynode.native.independent.field import RowField
from pynode.native.independent.gathered import unreached
from pynode.native.independent.record import SUCCESS, Bools, Floats, Indices, Round, RowRecord
from pynode.native.independent.replay import kept_rounds
from pynode.native.independent.steps import extend, interpolated, step
from pynode.native.runge_kutta import coefficients


class RowAdjoint:
    """One pullback of ``sum <cotangents, y(times)>``.

    Parameters
    ----------
    record : RowRecord
    times : ndarray (1 or B, M)
    derivative, own_times, time_gradient : bool
        See :class:`pynode.backends.Query`.
    cotangents : Tensor (M, B, n)
    """

    def __init__(
        self,
        record: RowRecord,
        times: Floats,
        derivative: bool,
        own_times: bool,
        time_gradient: bool,
        cotangents: Tensor,
    ) -> None:
        self.record, self.times, self.cotangents = record, times, cotangents
        self.derivative, self.own_times, self.moving = derivative, own_times, time_gradient
        problem, request = record.problem, record.request
        assert request.dependencies is not None
        self.dependencies = request.dependencies
        self.counts = request.stats.backward
        self.arguments = problem.row_arguments
        self.shared = [
            x.detach().requires_grad_()
            for x, per_row in zip(self.dependencies.arguments, self.arguments.moving_per_row, strict=True)
            if not per_row
        ]
        self.per_row: list[Tensor | None] = [None] * sum(self.arguments.moving_per_row)
        self.sums = Accumulator(len(self.shared) + len(self.dependencies.parameters))
        #: Of the state at the time that the rows have reached, going backward.
        self.adjoint = torch.zeros_like(problem.y0)
        self.span_gradient = torch.zeros(2, problem.rows.batch, dtype=torch.float64) if time_gradient else None
        self.times_gradient = torch.zeros(times.shape, dtype=torch.float64) if time_gradient else None
        self.starts, self.ends = problem.row_times.starts, problem.row_times.ends
        wanted = cotangents.ne(0).any(dim=2).cpu().numpy()
        self.wanted: Bools = np.ascontiguousarray(wanted.T)  # (B, M); NaN counts
        self.compared = False

    def pull_back(self) -> Gradients:
        """Backward through all rounds.

        Raises
        ------
        GradientError
            Where a cotangent belongs to a state that was not reached, or f is no longer what it was.
        """
        initial = self.record.initial(self.times, self.derivative, self.own_times, self.moving)
        pending = self.wanted & ~initial
        if self.derivative and (self.wanted & initial).any():
            self._initial_derivative(self.wanted & initial)
        alive = np.zeros(len(initial), dtype=np.bool_)
        for one in reversed(kept_rounds(self.record)):
            at, columns = one.within(self.times, self.starts)
            asked = pending[one.ids[at], columns]
            at, columns = at[asked], columns[asked]
            pending[one.ids[at], columns] = False
            alive[one.ids[at]] = True
            places = np.flatnonzero(alive[one.ids])
            if len(places):
                self._round(one, places, at, columns)
        if pending.any():
            row, column = (int(x[0]) for x in np.nonzero(pending))
            raise unreached(row, f"save time {column}", int(pending.sum()))
        if not self.derivative:
            rows, columns = np.nonzero(self.wanted & initial)
            if len(rows):
                chosen = self.record.rows(rows)
                self.adjoint.index_add_(0, chosen, self.cotangents[self.record.rows(columns), chosen])
        return self._gradients(bool(alive.any()))

    def _gradients(self, any_step: bool) -> Gradients:
        if not any_step:
            # No state after the initial one has a cotangent: the gradient of what f depends on is zero.
            zeros = [*map(torch.zeros_like, self.shared), *self.dependencies.zeros()]
            self.sums.sums = [z if s is None else s for z, s in zip(zeros, self.sums.sums, strict=True)]
            own = [x for x, per in zip(self.dependencies.arguments, self.arguments.moving_per_row, strict=True) if per]
            self.per_row = [torch.zeros_like(x) if s is None else s for x, s in zip(own, self.per_row, strict=True)]
        shared, per_row = iter(self.sums.sums[: len(self.shared)]), iter(self.per_row)
        times = self.times_gradient
        if times is not None and len(times) == 1:
            times = times[0]
        return Gradients(
            y0=self.adjoint,
            mesh=self.span_gradient,
            times=times,
            arguments=[next(per_row if own else shared) for own in self.arguments.moving_per_row],
            parameters=self.sums.sums[len(self.shared) :],
        )

    def _round(self, one: Round, places: Indices, at: Indices, columns: Indices) -> None:
        """Pull back through the steps at ``places`` of a round; cotangents enter at places ``at`` with ``columns`` of
        times."""
        record, tableau = self.record, self.record.tableau
        ids = one.ids[places]
        position = np.zeros(len(one.ids), dtype=np.int64)
        position[places] = np.arange(len(places))
        at = position[at]
        chosen = record.rows(ids)
        y = (one.y if len(places) == len(one.ids) else one.y.index_select(0, record.rows(places))).detach()
        t_host, t1_host = one.t[places], one.t1[places]
        asked = self.times[0 if len(self.times) == 1 else ids[at], columns]
        plain = record.is_boundary(asked, t1_host[at], ids[at], self.own_times, self.moving) & (not self.derivative)
        adjoint = self.adjoint.index_select(0, chosen)
        if plain.any():
            seeds = self.cotangents[record.rows(columns[plain]), chosen[record.rows(at[plain])]]
            adjoint.index_add_(0, record.rows(at[plain]), seeds)
        at, columns, asked = at[~plain], columns[~plain], asked[~plain]
        before = self.counts.nfe
        with torch.enable_grad():
            y = y.requires_grad_()
            t, t1, points = (torch.from_numpy(x).to(y.device) for x in (t_host, t1_host, asked))
            own = [y]
            if self.moving:
                own += [x.requires_grad_() for x in (t, t1, points)]
            field, arguments = self._field(chosen)
            y1, stages, first = step(tableau, field, t, t1, y)
            outputs, seeds_ = [y1], [adjoint]
            if len(at):
                extend(tableau, field, t, t1, y, stages, coefficients(tableau, y.dtype, y.device).all)
                inside, h = record.rows(at), t1 - t
                thetas = (points - t.index_select(0, inside)) / h.index_select(0, inside)
                outputs.append(interpolated(tableau, stages, y, h, inside, thetas, self.derivative))
                seeds_.append(self.cotangents[record.rows(columns), chosen[inside]])
        self._look(one, places, y1.detach(), outputs if not self.compared else [first], [*own, *arguments])
        inputs = [*own, *arguments, *self.dependencies.parameters]
        gradients = torch.autograd.grad(outputs, inputs, seeds_, allow_unused=True)
        self.counts.nvjp += self.counts.nfe - before
        self.counts.accepted += len(places)
        assert gradients[0] is not None
        self.adjoint.index_copy_(0, chosen, gradients[0])
        if self.moving:
            self._times(ids, t_host, t1_host, at, columns, gradients[1:4])
        self._add(chosen, gradients[len(own) :])

    def _field(self, chosen: Tensor) -> tuple[RowField, list[Tensor]]:
        problem = self.record.problem
        args, arguments = self.arguments.detached(chosen, self.shared)
        return RowField(problem.f, args, problem.rows, self.counts), arguments

    def _add(self, chosen: Tensor, gradients: Sequence[Tensor | None]) -> None:
        """Add gradients of ``args`` and of parameters; of arguments with one part a row in their rows ``chosen``."""
        moving = self.arguments.moving_per_row
        rest: list[Tensor | None] = []
        own = 0
        for index, gradient in enumerate(gradients):
            if index >= len(moving) or not moving[index]:
                rest.append(gradient)
                continue
            if gradient is not None:
                total = self.per_row[own]
                if total is None:
                    self.per_row[own] = total = torch.zeros_like(self.dependencies.arguments[index])
                total.index_add_(0, chosen, gradient)
            own += 1
        self.sums.add(rest)

    def _times(
        self, ids: Indices, t: Floats, t1: Floats, at: Indices, columns: Indices, gradients: Sequence[Tensor | None]
    ) -> None:
        """Add gradients of the ends of steps, where they are those of the row, and of save times within."""
        assert self.span_gradient is not None
        assert self.times_gradient is not None
        ended = (self.record.codes == SUCCESS)[ids] & (t1 == self.ends[ids])
        for side, mask, gradient in ((0, t == self.starts[ids], gradients[0]), (1, ended, gradients[1])):
            if gradient is not None and mask.any():
                self.span_gradient[side, ids[mask]] += gradient.cpu()[torch.from_numpy(mask)]
        if gradients[2] is not None and len(columns):
            rows = np.zeros_like(columns) if len(self.times) == 1 else ids[at]
            where = (torch.from_numpy(rows), torch.from_numpy(columns))
            self.times_gradient.index_put_(where, gradients[2].cpu(), accumulate=True)

    def _initial_derivative(self, asked: Bools) -> None:
        """Cotangents of ``f`` at the start of rows that took no step."""
        rows, columns = np.nonzero(asked)
        record = self.record
        chosen = record.rows(rows)
        with torch.enable_grad():
            y = record.problem.y0.detach().index_select(0, chosen).requires_grad_()
            t = torch.from_numpy(self.starts[rows]).to(y.device)
            own = [y, *([t.requires_grad_()] if self.moving else [])]
            field, arguments = self._field(chosen)
            dy = field(field.time(t), y)
        if not dy.requires_grad:
            return
        inputs = [*own, *arguments, *self.dependencies.parameters]
        gradients = torch.autograd.grad(dy, inputs, self.cotangents[record.rows(columns), chosen], allow_unused=True)
        if gradients[0] is not None:
            self.adjoint.index_add_(0, chosen, gradients[0])
        if self.span_gradient is not None and gradients[1] is not None:
            self.span_gradient[0].index_add_(0, torch.from_numpy(rows), gradients[1].cpu())
        self._add(chosen, gradients[len(own) :])

    def _look(self, one: Round, places: Indices, y1: Tensor, outputs: list[Tensor], own: Sequence[Tensor]) -> None:
        """Raise GradientError if ``f`` gives other values than in the solve, or reaches what it did not."""
        self.dependencies.check_reached(outputs, own)
        if self.compared:
            return
        ended = np.flatnonzero(one.until[places] == self.record.reached[one.ids[places]])
        if not len(ended):
            return
        self.compared = True
        rows = self.record.rows(ended)
        end = self.record.ends.index_select(0, self.record.rows(one.ids[places][ended]))
        start = one.y.index_select(0, self.record.rows(places[ended]))
        size = torch.maximum(end.abs().amax(dim=1), start.abs().amax(dim=1))
        distance = (y1.index_select(0, rows) - end).abs().amax(dim=1)
        if not bool((distance <= math.sqrt(torch.finfo(end.dtype).eps) * size).all()):
            raise GradientError(
                explain(
                    f"a row's last step, repeated for the gradient, ended {distance.max().item():.3g} from where it "
                    "had ended in the forward solve: f gave other values than before",
                    "the same f in the backward pass as in the solve, for each row whatever rows are called with it",
                    "take randomness and batch statistics out of f (.eval() for dropout and batch norm), change "
                    "neither f nor what it uses before the backward pass, or use DirectAdjoint()",
                )
            )
