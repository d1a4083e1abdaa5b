"""The continuous adjoint as a dense solution, the parameter gradient by adaptive Gauss-Kronrod quadrature."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pynode.backends import Gradients, Query
from pynode.errors import GradientError, explain
from pynode.native.adjoints.accumulator import Accumulator
from pynode.native.adjoints.backward import Against, Solver, channel_norm, tolerances
from pynode.native.adjoints.continuous import sweep
from pynode.native.adjoints.products import Products
from pynode.native.dense import Pieces, step_at
from pynode.sensealg import QuadratureAdjoint

if TYPE_CHECKING:
    from pynode.native.backend import NativeRecord

# Piessens et al. (1983), QUADPACK, QK15: nodes on [-1, 1] from the outermost to the middle, Kronrod's weights, Gauss's.
_HALF = (
    (0.991455371120812639206854697526329, 0.022935322010529224963732008058970, 0.0),
    (0.949107912342758524526189684047851, 0.063092092629978553290700663189204, 0.129484966168869693270611432679082),
    (0.864864423359769072789712788640926, 0.104790010322250183839876322541518, 0.0),
    (0.741531185599394439863864773280788, 0.140653259715525918745189590510238, 0.279705391489276667901467771423780),
    (0.586087235467691130294144691693013, 0.169004726639267902826583426598550, 0.0),
    (0.405845151377397166906606412076961, 0.190350578064785409913256402421014, 0.381830050505118944950369775488975),
    (0.207784955007898467600689403773245, 0.204432940075298892414161999234649, 0.0),
    (0.0, 0.209482141084727828012999174891714, 0.417959183673469387755102040816327),
)
_RULE = (*((-x, k, g) for x, k, g in _HALF), *reversed(_HALF[:-1]))
_NODES = [x for x, _, _ in _RULE]
_DEPTH = 40  # bisections of one stretch: far below the spacing of times
_LEAST_SHARE = 1e-3  # of the tolerance, for the shortest interval


def pull_back(record: NativeRecord, query: Query, cotangents: Tensor) -> Gradients:
    """Gradients of ``sum_i <cotangents_i, y(times_i)>``; arguments as for the checkpointed adjoint.

    Raises
    ------
    GradientError
        If the quadrature does not converge.
    SolveError
        If the backward solve fails.
    """
    products = Products(record)
    return sweep(record, query, cotangents, products, _Quadrature(record, products), every=False)


class _Quadrature:
    """The adjoint ``a`` (n,), its dense solution over every stretch, and the integral over all of them."""

    def __init__(self, record: NativeRecord, products: Products) -> None:
        sensealg = record.request.sensealg
        assert isinstance(sensealg, QuadratureAdjoint)
        self._products = products
        self._forward = record.dense()
        self._field = Against(products, self._forward)
        self._solver = Solver(record, self._field, channel_norm(record, products, 1, "seminorm"))
        self._adjoint = torch.zeros(products.n, dtype=products.plain.layout.dtype, device=products.plain.layout.device)
        rtol, atol = (float(x.min()) if isinstance(x, Tensor) else x for x in tolerances(record))
        self._rtol = rtol if sensealg.quadrature_rtol is None else sensealg.quadrature_rtol
        self._atol = atol if sensealg.quadrature_atol is None else sensealg.quadrature_atol
        self._eps = record.request.problem.autocast.eps
        #: Kronrod's weights, and their distance from Gauss's.
        self._weights = [
            self._adjoint.new_tensor(row) for row in ([k for _, k, _ in _RULE], [k - g for _, k, g in _RULE])
        ]
        self._stretches: list[Pieces] = []

    def begin(self, t: float, y: Tensor) -> None:
        return  # the adjoint is zero already

    def run(self, t: float, t1: float) -> None:
        stretch = Pieces()
        self._adjoint = self._solver(self._adjoint, t, t1, stretch)
        self._stretches.append(stretch)

    def reach(self, t: float, y: Tensor, later: float) -> None:
        return  # the state is known everywhere

    def adjoint(self) -> Tensor:
        return self._adjoint

    def gain(self, cotangent: Tensor) -> None:
        # Not in place: the dense output of the step that ended here may hold its end.
        self._adjoint = self._adjoint + cotangent

    def gradients(self) -> list[Tensor | None]:
        total = Accumulator(len(self._products.inputs))
        if not self._products.inputs:
            return total.sums
        span = sum(abs(stretch.mesh[-1] - stretch.mesh[0]) for stretch in self._stretches)
        for stretch in self._stretches:
            self._integrate(stretch, total, span)
        return total.sums

    def _integrate(self, stretch: Pieces, total: Accumulator, span: float) -> None:
        """Add one stretch's integral, bisecting until the error estimate is within its share of the tolerance."""
        stack = [(stretch.mesh[0], stretch.mesh[-1], 0)]
        while stack:
            start, end, depth = stack.pop()
            first, last = step_at(stretch.mesh, start), step_at(stretch.mesh, end)
            if last - first > len(_NODES):
                # So many steps of the adjoint may hide what no node sees: a layer that stiffness makes thin, say.
                middle = stretch.mesh[(first + last) // 2 + 1]
                stack += [(middle, end, depth), (start, middle, depth)]
                continue
            kronrod, error, noise = self._rule(stretch, start, end)
            size = _rms(
                [s if k is None else k if s is None else s + k for s, k in zip(total.sums, kronrod, strict=True)]
            )
            # The error at a jump shrinks no faster than its interval: a thousandth is never too much.
            allowed = max(self._atol, self._rtol * size) * max(abs(end - start) / span, _LEAST_SHARE)
            if not math.isfinite(error):
                raise GradientError(
                    explain(
                        f"a df/dp is not finite between t = {start:.6g} and t = {end:.6g}",
                        "finite derivatives of f with respect to its parameters",
                        "check f's derivatives for a singularity (sqrt or norm at 0, log, division)",
                    )
                )
            # No estimate can fall below the rounding of the sums it is the difference of.
            if error <= max(allowed, noise):
                total.add(kronrod)
            elif depth == _DEPTH:
                raise GradientError(
                    explain(
                        f"the quadrature of QuadratureAdjoint did not converge near t = {start:.6g}: its error is "
                        f"{error:.3g} and its tolerance {allowed:.3g}",
                        "an integrand a df/dp without jumps inside a stretch",
                        "name the times of jumps in d_discontinuities=, raise quadrature_rtol and quadrature_atol, or "
                        "use GaussAdjoint",
                    )
                )
            else:
                middle = _middle(stretch.mesh, start, end)
                stack += [(middle, end, depth + 1), (start, middle, depth + 1)]

    def _rule(self, stretch: Pieces, start: float, end: float) -> tuple[list[Tensor | None], float, float]:
        """Kronrod's integral from ``start`` to ``end``, the norm of its distance from Gauss's, and its rounding."""
        products = self._products
        half, centre = (end - start) / 2.0, (start + end) / 2.0
        times = [centre + node * half for node in _NODES]
        ys, a = self._forward.at_all(times, products.plain), stretch.at_all(times, self._field)
        kronrod, difference = (a * (-half * weights)[:, None] for weights in self._weights)
        value, error = products.along(times, ys, [kronrod, difference])
        # The rounding of the sums and of f under autocast, which no estimate can fall below.
        return list(value), _rms(error), 10.0 * self._eps * _rms(value)


def _middle(mesh: list[float], start: float, end: float) -> float:
    """The boundary of a step nearest the middle, or the middle: pieces between boundaries are smooth."""
    middle = (start + end) / 2.0
    low, high = min(start, end), max(start, end)
    margin = 0.1 * (high - low)
    inner = [x for x in mesh if low + margin < x < high - margin]
    return min(inner, key=lambda x: abs(x - middle)) if inner else middle


def _rms(parts: list[Tensor | None] | tuple[Tensor | None, ...]) -> float:
    """Root mean square over all numbers of some tensors."""
    present = [part for part in parts if part is not None]
    count = sum(part.numel() for part in present)
    if not count:
        return 0.0
    norms = torch.stack([torch.linalg.vector_norm(part).double() for part in present])
    return math.sqrt(torch.dot(norms, norms).item() / count)
