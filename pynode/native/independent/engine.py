"""What :mod:`pynode.autograd` asks of independent stepping: pull a cotangent back."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pynode.backends import Gradients, Query
from pynode.native.adjoints.per_row import RowAdjoint
from pynode.native.backend import NativeBackend
from pynode.native.independent.record import RowRecord


class IndependentEngine(NativeBackend):
    """The torch backend where it is asked about a :class:`RowRecord`. Times of queries are arrays (1 or B, M)."""

    def pull_back(self, record: Any, query: Query, cotangents: Tensor) -> Gradients:
        times: Any = query.times
        adjoint = RowAdjoint(record, times, query.derivative, query.own_times, query.time_gradient, cotangents)
        return adjoint.pull_back()

    def pull_back_tangent(
        self, record: Any, query: Query, cotangents: Tensor, directions: Gradients
    ) -> tuple[Gradients, Tensor] | None:
        return None

    def mesh(self, record: RowRecord, t: Tensor) -> Tensor:  # type: ignore[override]
        return record.problem.row_times.span(t)


ENGINE = IndependentEngine()
