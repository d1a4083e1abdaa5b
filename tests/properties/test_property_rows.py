"""Rows: independent ones are a loop of single solves, in any order; joint ones agree to tolerance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from drawn import CONTROLLERS, EXPLICIT, LOW, seeds
from forms import leaves
from hypothesis import given
from hypothesis import strategies as st
from shares import share
from torch import Tensor

import pynode

F64 = torch.float64
LEAST = {"BS3": 1e-7, "AdaptiveHeun": 1e-4, "Fehlberg2": 1e-5}


class RowField(torch.nn.Module):
    """``k (tanh(A y) + b cos t)`` of every row ``y``, by sums whose order does not depend on the number of rows."""

    def __init__(self, n: int, dtype: torch.dtype, numbers: torch.Generator, tree: bool) -> None:
        super().__init__()
        a = torch.randn(n, n, dtype=F64, generator=numbers)
        self.a = torch.nn.Parameter((a / torch.linalg.matrix_norm(a, 2)).to(dtype))
        self.b = torch.nn.Parameter(torch.randn(n, dtype=F64, generator=numbers).to(dtype))
        self.tree = tree

    def forward(self, t: Tensor, y, k: Tensor):
        x = torch.cat(y, dim=-1) if self.tree else y
        t = t[..., None] if self.tree and t.ndim else t
        dx = k * (torch.tanh((self.a * x[..., None, :]).sum(-1)) + self.b * torch.cos(t))
        return (dx[..., :1], dx[..., 1:]) if self.tree else dx


@dataclass
class Batch:
    field: RowField
    y0: object
    k: Tensor
    t: Tensor
    lengths: list[int]
    options: dict

    @property
    def rows(self) -> int:
        return len(self.k)

    @property
    def clear(self) -> bool:
        """Whether error estimates are far above rounding, so that it steers no step."""
        return self.k.dtype == F64 and self.options["rtol"] >= 1e-6 and self.options["algorithm"].name in LOW

    def row(self, b: int):
        return tuple(x[b] for x in self.y0) if self.field.tree else self.y0[b]

    def times(self, b: int) -> Tensor:
        return self.t if self.t.ndim == 1 else self.t[b, : self.lengths[b]]

    def together(self, **more) -> pynode.Solution:
        return self.of(self.y0, self.k, self.t, **more)

    def of(self, y0, k: Tensor, t: Tensor, **more) -> pynode.Solution:
        options = {**self.options, **more}
        return pynode.solve(self.field, y0, t, args=(pynode.PerSample(k),), batching="independent", **options)

    def alone(self, b: int, y0=None, **more) -> pynode.Solution:
        y0 = self.row(b) if y0 is None else y0
        return pynode.solve(self.field, y0, self.times(b), args=(self.k[b],), **{**self.options, **more})


@st.composite
def batches(draw, same_times: bool = False) -> Batch:
    seed, dtype = draw(seeds), draw(st.sampled_from([F64, torch.float32]))
    numbers = torch.Generator().manual_seed(seed)
    rows, n, tree = draw(st.integers(1, 6)), draw(st.integers(2, 3)), draw(st.booleans())
    field = RowField(n, dtype, numbers, tree)
    y0 = torch.randn(rows, n, dtype=F64, generator=numbers).to(dtype)
    # Powers of two and a half: rows that need many more steps than others.
    k = torch.tensor(draw(st.lists(st.sampled_from([1.0, 0.25, 4.0, -1.5]), min_size=rows, max_size=rows)))
    k = k.to(dtype)[:, None]
    sign = draw(st.sampled_from([1.0, -1.0]))
    lengths = [3] * rows
    t = sign * torch.tensor([0.0, 0.375, draw(st.sampled_from([1.0, 2.0]))], dtype=F64)
    if not same_times and draw(st.booleans()):
        t = torch.rand(rows, 3, dtype=F64, generator=numbers).add(0.125).cumsum(1)
        for b in range(rows):
            t[b] = t[b] * draw(st.sampled_from([1.0, -1.0, 0.25]))
            lengths[b] = draw(st.sampled_from([3, 3, 2]))
            t[b, lengths[b] :] = math.nan
    name = draw(st.sampled_from(EXPLICIT))
    least = max(LEAST.get(name, 1e-10), 1e-5 if dtype == torch.float32 else 0.0)
    tol = max(draw(st.sampled_from([1e-3, 1e-4, 1e-6, 1e-9])), least)
    options = {
        "algorithm": getattr(pynode, name)(),
        "rtol": tol,
        "atol": tol * draw(st.sampled_from([1.0, 1e-2])),
        "controller": draw(st.sampled_from(CONTROLLERS)),
    }
    if draw(st.booleans()):
        options["dt0"] = 0.0625
    return Batch(field, (y0[:, :1], y0[:, 1:]) if tree else y0, k, t, lengths, options)


def joined(ys) -> Tensor:
    return torch.cat(leaves(ys), dim=-1)


def row_rounding(batch: Batch, steps: int) -> float:
    """Of values of at most 1 + |y0| + 2 * 4 * 2, by a field of slope 4 at most, over spans of 2.5 at most."""
    eps = torch.finfo(batch.k.dtype).eps
    growth = math.exp(_slope(batch) * _span(batch))
    size = joined(batch.y0).abs().max().item() + _slope(batch) * _span(batch) * (1.0 + _drive(batch))
    return steps * 40 * eps * size * growth


def _slope(batch: Batch) -> float:
    return batch.k.abs().max().item()


def _drive(batch: Batch) -> float:
    return batch.field.b.detach().abs().max().item()


def _span(batch: Batch) -> float:
    lines = batch.t if batch.t.ndim == 2 else batch.t[None]
    return max((line[~line.isnan()][-1] - line[0]).abs().item() for line in lines)


def row_tolerance(batch: Batch, steps: int, rows: int) -> float:
    """Of ``steps`` steps that meet the root mean square of ``rows`` rows: see bounds.py."""
    size = joined(batch.y0).abs().max().item() + _slope(batch) * _span(batch) * (1.0 + _drive(batch))
    n = joined(batch.y0).shape[1]
    local = math.sqrt(rows * n) * (batch.options["atol"] + batch.options["rtol"] * size)
    if batch.options["algorithm"].name == "Fehlberg2":  # see test_property_tolerance.py
        local *= max(1.0, 512 / 12 * _slope(batch) * _span(batch))
    return steps * local * math.exp(_slope(batch) * _span(batch)) + row_rounding(batch, steps)


@share(2.0)
@given(batches())
def test_independent_rows_are_a_loop_of_single_solves(batch):
    """Step for step, and to rounding, as norms of rows are summed in another order; where the error of a short step is
    rounding already (single precision, methods of high order) the steps after it may differ, and both meet the
    tolerance."""
    sol = batch.together()
    ys = joined(sol.ys).detach()
    for b in range(batch.rows):
        one = batch.alone(b)
        forward = one.stats.forward
        found = tuple(int(getattr(sol.row_stats, what)[b]) for what in ("nfe", "accepted", "rejected"))
        length = len(batch.times(b))
        difference = (ys[:length, b] - joined(one.ys).detach()).abs().max().item()
        if batch.clear:
            assert found == (forward.nfe, forward.accepted, forward.rejected)
            assert difference <= row_rounding(batch, forward.accepted)
        else:
            assert difference <= row_tolerance(batch, found[1] + forward.accepted, 1)
        assert torch.isnan(ys[length:, b]).all()


@share(1.5)
@given(batches(), st.data())
def test_the_order_of_rows_never_matters(batch, data):
    """Nor do the other rows: a permutation, and a part of the rows, give the same steps and, to rounding, numbers. The
    stages are summed by BLAS, whose order depends on how many rows there are: where the error of a short step is
    rounding already, the steps after it may differ, as for a loop of single solves."""
    rows = list(range(batch.rows))
    order = data.draw(st.permutations(rows))
    order = torch.tensor(order[: data.draw(st.integers(1, len(order)))])
    sol = batch.together()
    y0 = tuple(x[order] for x in batch.y0) if batch.field.tree else batch.y0[order]
    other = batch.of(y0, batch.k[order], batch.t if batch.t.ndim == 1 else batch.t[order])
    expected = joined(sol.ys).detach()[:, order]
    found = joined(other.ys).detach()
    steps = int(sol.row_stats.accepted.max())
    if batch.clear:
        for what in ("nfe", "accepted", "rejected"):
            assert torch.equal(getattr(other.row_stats, what), getattr(sol.row_stats, what)[order])
        limit = row_rounding(batch, steps)
    else:
        limit = row_tolerance(batch, steps + int(other.row_stats.accepted.max()), 1)
    assert torch.equal(found.isnan(), expected.isnan())
    assert (found - expected).nan_to_num().abs().max().item() <= limit


@share(1.0)
@given(batches(same_times=True))
def test_joint_rows_agree_to_tolerance(batch):
    """Joint steps meet the root mean square over all rows: any one of B rows may be off by sqrt(B) times as much."""
    sol = batch.together()
    joint = pynode.solve(batch.field, batch.y0, batch.t, args=(batch.k,), **batch.options)
    steps = joint.stats.forward.accepted + int(sol.row_stats.accepted.max())
    limit = row_tolerance(batch, steps, batch.rows)
    assert (joined(joint.ys) - joined(sol.ys)).detach().abs().max().item() <= limit


@share(1.0)
@given(batches(), st.sampled_from([pynode.CheckpointedAdjoint(), pynode.DirectAdjoint()]))
def test_gradients_of_rows_are_those_of_single_solves(batch, sensealg):
    """Of the state row by row, of parameters their sum, of shared times as well."""
    batch.options["sensealg"] = sensealg
    start = tuple(x.clone().requires_grad_() for x in leaves(batch.y0))
    batch.y0 = start if batch.field.tree else start[0]
    batch.t.requires_grad_(batch.t.ndim == 1)
    params = list(batch.field.parameters())
    sol = batch.together()
    ys = joined(sol.ys)
    numbers = torch.Generator().manual_seed(0)
    weights = torch.randn(ys.shape, dtype=F64, generator=numbers).to(ys.dtype)
    inputs = [*start, *params, *([batch.t] if batch.t.requires_grad else [])]
    kept = [torch.zeros_like(x) for x in inputs]
    loss = torch.where(ys.isnan(), torch.zeros_like(ys), ys * weights).sum()
    found = torch.autograd.grad(loss, inputs)
    steps = 0
    for b in range(batch.rows):
        one = batch.alone(b)
        line = joined(one.ys)
        parts = torch.autograd.grad((line * weights[: len(line), b]).sum(), inputs)
        kept = [x + part for x, part in zip(kept, parts, strict=True)]
        steps += one.stats.forward.accepted
    growth = math.exp(_slope(batch) * _span(batch))
    scale = weights.abs().sum().item() * (1.0 + _slope(batch) * (1.0 + _span(batch))) * growth
    limit = row_rounding(batch, steps) * scale
    for x, y in zip(found, kept, strict=True):
        assert (x - y).abs().max().item() <= limit
