"""The continuous adjoint against the dense forward solution, the parameter gradient integrated with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pynode.backends import Gradients, Query
from pynode.native.adjoints.backward import Backward, Solver, channel_norm
from pynode.native.adjoints.continuous import sweep
from pynode.native.adjoints.products import Products
from pynode.native.loop import Nothing
from pynode.sensealg import InterpolatingAdjoint

if TYPE_CHECKING:
    from pynode.native.record import NativeRecord


def pull_back(record: NativeRecord, query: Query, cotangents: Tensor) -> Gradients:
    """Gradients of ``sum_i <cotangents_i, y(times_i)>``; arguments as for the checkpointed adjoint.

    Raises
    ------
    SolveError
        If the backward solve fails.
    """
    products = Products(record)
    return sweep(record, query, cotangents, products, _Interpolating(record, products), every=False)


class _Interpolating:
    """``[a (n), g_args..., g_params...]``, all flat."""

    def __init__(self, record: NativeRecord, products: Products) -> None:
        sensealg = record.request.sensealg
        assert isinstance(sensealg, InterpolatingAdjoint)
        self._products = products
        n, forward = products.n, record.dense()

        def rate(t: Tensor, state: Tensor) -> Tensor:
            return products.joint(t, forward.at(t.item(), products.plain), state[:n])[1].neg_()

        field = Backward(rate, n + sum(products.sizes), products.plain, coupled=n)
        self._n = n
        self._solver = Solver(record, field, channel_norm(record, products, 1, sensealg.norm))
        self._state = torch.zeros(field.layout.size, dtype=field.layout.dtype, device=field.layout.device)

    def begin(self, t: float, y: Tensor) -> None:
        return  # the adjoint is zero already

    def run(self, t: float, t1: float) -> None:
        self._state = self._solver(self._state, t, t1, Nothing())

    def reach(self, t: float, y: Tensor, later: float) -> None:
        return  # the state is known everywhere

    def adjoint(self) -> Tensor:
        return self._state[: self._n]

    def gain(self, cotangent: Tensor) -> None:
        self._state[: self._n] += cotangent

    def gradients(self) -> list[Tensor | None]:
        return self._products.shaped(self._state[self._n :])
