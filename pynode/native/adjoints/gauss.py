"""The continuous adjoint alone, the parameter gradient by Gauss-Legendre quadrature along each of its steps."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pynode.backends import Gradients, Query
from pynode.native.adjoints.accumulator import Accumulator
from pynode.native.adjoints.backward import Backward, Solver, against, channel_norm
from pynode.native.adjoints.continuous import sweep
from pynode.native.adjoints.products import Products
from pynode.native.stepper import Stepper
from pynode.sensealg import GaussAdjoint

if TYPE_CHECKING:
    from pynode.native.backend import NativeRecord


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
        self._products = products
        self._forward = record.dense()
        field = Backward(against(products, self._forward), products.n, products.plain)
        self._solver = Solver(record, field, channel_norm(record, products, 1, "seminorm"))
        self._adjoint = torch.zeros(products.n, dtype=field.layout.dtype, device=field.layout.device)
        # m nodes integrate polynomials of degree 2 m - 1: the quadrature is of the order of the steps, or better.
        self._thetas, weights = _rule(sensealg.nodes or (self._solver.stepper.order + 1) // 2)
        self._weights = torch.tensor(weights, dtype=field.layout.dtype, device=field.layout.device)
        self._sums = Accumulator(len(products.inputs))

    def accept(self, stepper: Stepper, t: float, t1: float, y: Tensor, y1: Tensor) -> None:
        """See :class:`pynode.native.loop.Recorder`."""
        products, h = self._products, t1 - t
        if not products.inputs:
            return
        times = [t + theta * h for theta in self._thetas]
        ys = torch.stack([self._forward.at(x, products.plain) for x in times])
        adjoints = stepper.interpolate(self._thetas) * self._weights[:, None]
        for found in products.along(times, ys, [adjoints.mul_(-h)]):
            self._sums.add(found)

    def begin(self, t: float, y: Tensor) -> None:
        return  # the adjoint is zero already

    def run(self, t: float, t1: float) -> None:
        self._adjoint = self._solver(self._adjoint, t, t1, self)

    def reach(self, t: float, y: Tensor, later: float) -> None:
        return  # the state is known everywhere

    def adjoint(self) -> Tensor:
        return self._adjoint

    def gradients(self) -> list[Tensor | None]:
        return self._sums.sums


@functools.cache
def _rule(nodes: int) -> tuple[list[float], list[float]]:
    """Nodes and weights of Gauss-Legendre quadrature on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    return ((x + 1.0) / 2.0).tolist(), (w / 2.0).tolist()
