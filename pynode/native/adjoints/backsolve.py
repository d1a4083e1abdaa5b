"""The continuous adjoint, integrated backward together with the state, and the parameter gradient with both.

The state is set to its stored value at every saved time, after checking that the backward integration had come close
to it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pynode.backends import Gradients, Query
from pynode.errors import AccuracyWarning, GradientError, explain
from pynode.native.adjoints.backward import Backward, Solver, channel_norm
from pynode.native.adjoints.continuous import sweep
from pynode.native.adjoints.products import Products
from pynode.native.loop import Nothing
from pynode.sensealg import BacksolveAdjoint
from pynode.strict import warn

if TYPE_CHECKING:
    from pynode.native.record import NativeRecord


def pull_back(record: NativeRecord, query: Query, cotangents: Tensor) -> Gradients:
    """Gradients of ``sum_i <cotangents_i, y(times_i)>``; arguments as for the checkpointed adjoint.

    Raises
    ------
    GradientError
        If the state cannot be reconstructed backward.
    SolveError
        If the backward solve fails.
    """
    products = Products(record)
    return sweep(record, query, cotangents, products, _Backsolve(record, products), every=True)


class _Backsolve:
    """``[y (n), a (n), g_args..., g_params...]``, all flat."""

    def __init__(self, record: NativeRecord, products: Products) -> None:
        sensealg = record.request.sensealg
        assert isinstance(sensealg, BacksolveAdjoint)
        self._record, self._products = record, products
        self._n = n = products.n

        def rate(t: Tensor, state: Tensor) -> Tensor:
            dy, rest = products.joint(t, state[:n], state[n : 2 * n])
            return torch.cat([dy.detach(), rest.neg_()])

        field = Backward(rate, 2 * n + sum(products.sizes), products.plain, coupled=2 * n)
        self._solver = Solver(record, field, channel_norm(record, products, 2, sensealg.norm))
        self._state = torch.zeros(field.layout.size, dtype=field.layout.dtype, device=field.layout.device)

    def begin(self, t: float, y: Tensor) -> None:
        self._state[: self._n] = self._start = y

    def run(self, t: float, t1: float) -> None:
        self._state = self._solver(self._state, t, t1, Nothing())

    def reach(self, t: float, y: Tensor, later: float) -> None:
        _check_reconstruction(self._state[: self._n], y, t, later, self._start, self._record)
        self._state[: self._n] = self._start = y

    def adjoint(self) -> Tensor:
        return self._state[self._n : 2 * self._n]

    def gain(self, cotangent: Tensor) -> None:
        self._state[self._n : 2 * self._n] += cotangent

    def gradients(self) -> list[Tensor | None]:
        return self._products.shaped(self._state[2 * self._n :])


def _check_reconstruction(
    back: Tensor, stored: Tensor, t: float, later: float, start: Tensor, record: NativeRecord
) -> None:
    """Compare the state integrated ``back`` to ``t`` from state ``start`` at time ``later`` with the stored one."""
    sensealg, atol = record.request.sensealg, record.request.atol
    assert isinstance(sensealg, BacksolveAdjoint)
    if sensealg.reconstruction_rtol is None:
        return
    counting = record.request.problem.norm_layout.size
    back, stored, start = back[:counting], stored[:counting], start[:counting]
    # The state may pass through zero at a saved time, as it does where y0 = 0.
    size = max(stored.norm().item(), start.norm().item())
    noise = 100.0 * (atol.max().item() if isinstance(atol, Tensor) else atol) * math.sqrt(stored.numel())
    distance = (back - stored).norm().item()
    if not distance <= sensealg.reconstruction_rtol * size + noise:
        relative = distance / size if size else math.inf
        # A warning is the same text every time, so that a training loop shows it once.
        goes_on = sensealg.on_mismatch == "warn"
        where, missed = (
            ("", "more") if goes_on else (f" from t = {later:.6g} to t = {t:.6g}", f"{relative:.3g} of its norm, more")
        )
        limit = f"reconstruction_rtol = {sensealg.reconstruction_rtol:.3g}"
        message = explain(
            f"BacksolveAdjoint integrated the state backward{where} and missed the stored state by {missed} than "
            f"{limit} of its norm: its gradient cannot be trusted",
            f"a relative distance below {limit}",
            "use CheckpointedAdjoint (exact), save more times in between, tighten rtol and atol or the steps, or set "
            "reconstruction_rtol=None to go on",
        )
        if not goes_on:
            raise GradientError(message)
        warn(message, AccuracyWarning)
