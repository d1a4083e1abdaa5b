"""The continuous adjoint alone, the parameter gradient by Gauss-Legendre quadrature along each of its steps."""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pynode.backends import Gradients, Query
from pynode.native.adjoints.accumulator import Accumulator
from pynode.native.adjoints.backward import Against, Solver, channel_norm
from pynode.native.adjoints.continuous import sweep
from pynode.native.adjoints.products import TOGETHER, Products
from pynode.native.dense import step_at
from pynode.native.stepper import Stepper
from pynode.sensealg import GaussAdjoint

if TYPE_CHECKING:
    from pynode.native.record import NativeRecord


#: Boundaries of forward steps inside one of the adjoint's from which on the quadrature is split at them.
_MANY = 2


def pull_back(record: NativeRecord, query: Query, cotangents: Tensor) -> Gradients:
    """Gradients of ``sum_i <cotangents_i, y(times_i)>``; arguments as for the checkpointed adjoint.

    Raises
    ------
    SolveError
        If the backward solve fails.
    """
    products = Products(record)
    return sweep(record, query, cotangents, products, _Gauss(record, products), every=False)


class _Gauss:
    """The adjoint ``a`` (n,), and a recorder that adds every accepted step's share of ``-int a df/dp dt``."""

    def __init__(self, record: NativeRecord, products: Products) -> None:
        sensealg = record.request.sensealg
        assert isinstance(sensealg, GaussAdjoint)
        self._products, self._resolved = products, sensealg.checkpointing
        self._forward = record.dense()
        field = Against(products, self._forward)
        self._solver = Solver(record, field, channel_norm(record, products, 1, "seminorm"))
        self._adjoint = torch.zeros(products.n, dtype=field.layout.dtype, device=field.layout.device)
        # m nodes integrate polynomials of degree 2 m - 1: the quadrature is of the order of the steps, or better.
        self._thetas, weights = _rule(sensealg.nodes or (self._solver.stepper.order + 1) // 2)
        self._weights = torch.tensor(weights, dtype=field.layout.dtype, device=field.layout.device)
        self._mesh = record.trajectory.mesh
        self._times: list[float] = []
        self._adjoints: list[Tensor] = []
        self._sums = Accumulator(len(products.inputs))

    def accept(self, stepper: Stepper, t: float, t1: float, y: Tensor, y1: Tensor) -> None:
        """See :class:`pynode.native.loop.Recorder`."""
        products, h = self._products, t1 - t
        if not products.inputs:
            return
        for start, end in itertools.pairwise(self._panels(t, t1)):
            width = end - start
            times = [start + theta * width for theta in self._thetas]
            adjoints = stepper.interpolate([(x - t) / h for x in times]) * self._weights[:, None]
            self._times += times
            self._adjoints.append(adjoints.mul_(-width))
            # A forward solution that is solved again stretch by stretch is not looked at out of order, and a graph is
            # compiled for one number of nodes.
            if self._resolved or products.compiled or len(self._times) * products.n > TOGETHER:
                self._flush()

    def _panels(self, t: float, t1: float) -> list[float]:
        """The ends of the step, and the forward solve's boundaries between them where they are many: that solve had
        come upon something there, such as a parameter that is switched on, which the adjoint need not feel."""
        first, last = sorted((step_at(self._mesh, t), step_at(self._mesh, t1)))
        inner = [x for x in self._mesh[first : last + 2] if min(t, t1) < x < max(t, t1)]
        return [t, *sorted(inner, reverse=t1 < t), t1] if len(inner) > _MANY else [t, t1]

    def _flush(self) -> None:
        """Evaluate the nodes gathered so far, of one step or of many."""
        if not self._times:
            return
        ys = self._forward.at_all(self._times, self._products.plain)
        (found,) = self._products.along(self._times, ys, [torch.cat(self._adjoints)])
        self._sums.add(found)
        self._times, self._adjoints = [], []

    def begin(self, t: float, y: Tensor) -> None:
        return  # the adjoint is zero already

    def run(self, t: float, t1: float) -> None:
        self._adjoint = self._solver(self._adjoint, t, t1, self)

    def reach(self, t: float, y: Tensor, later: float) -> None:
        return  # the state is known everywhere

    def adjoint(self) -> Tensor:
        return self._adjoint

    def gain(self, cotangent: Tensor) -> None:
        # Not in place: the dense output of the step that ended here may hold its end.
        self._adjoint = self._adjoint + cotangent

    def gradients(self) -> list[Tensor | None]:
        self._flush()
        return self._sums.sums


@functools.lru_cache(maxsize=64)
def _rule(nodes: int) -> tuple[list[float], list[float]]:
    """Nodes and weights of Gauss-Legendre quadrature on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    return ((x + 1.0) / 2.0).tolist(), (w / 2.0).tolist()
