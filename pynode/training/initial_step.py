"""The step a training starts from: Hairer's rule for the first batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pynode.layout import Tree, leaves_of
from pynode.nn.neural_ode import NeuralODE
from pynode.nn.trees import map_leaves
from pynode.problem import ODEProblem
from pynode.solution import Counts
from pynode.training.orders import order_of
from pynode.training.solving_with import span_of


def initial_step(ode: NeuralODE, inputs: tuple[Any, ...]) -> float:
    """A first guess of the step as a fraction of the span, at most 1 (Hairer, Norsett and Wanner 1993, II.4, as Ott et
    al. 2021 use it).

    With norms averaged over the samples of the batch, ``d0 = |y0|``, ``d1 = |f(t0, y0)|``: ``h0 = 0.01 d0 / d1`` (1e-6
    where one of them is below 1e-5); with an Euler step of ``h0`` to ``y1``, ``d2 = |f(t0 + h0, y1) - f(t0, y0)| / h0``
    and ``h1 = (0.01 / max(d1, d2))^(1 / (p + 1))`` for order ``p``; the smaller one of ``100 h0`` and ``h1``.

    Examples
    --------
    >>> slow, fast = (pynode.nn.NeuralODE(lambda t, y, k=k: -k * y, algorithm=pynode.Euler()) for k in (1.0, 100.0))
    >>> x = (torch.ones(2, 1),)
    >>> pynode.training.initial_step(fast, x) < pynode.training.initial_step(slow, x) <= 1
    True
    """
    x, args = inputs[0], inputs[1:]
    with torch.no_grad():
        y0 = x if ode.input is None else ode.input(x)
        times = ode.t() if isinstance(ode.t, torch.nn.Module) else ode.t
        problem = ODEProblem(ode.f, y0, times, (*ode.conditions(x), *args))
        field, direction = problem.field(Counts()), 1.0 if problem.times[-1] > problem.times[0] else -1.0
        start, layout = problem.times[0], problem.state_layout
        flat = problem.y0
        slope = field(field.time(start), flat)
        d0, d1 = _norm(layout.unpack(flat)), _norm(layout.unpack(slope))
        h0 = 1e-6 if min(d0, d1) < 1e-5 else 0.01 * d0 / d1
        h0 = min(h0, span_of(ode))
        after = field(field.time(start + direction * h0), flat + direction * h0 * slope)
        d2 = _norm(layout.unpack(after - slope)) / h0
    steepest = max(d1, d2)
    order = order_of(ode.algorithm) or 1
    h1 = span_of(ode) if steepest <= 1e-15 else (0.01 / steepest) ** (1.0 / (order + 1))
    return min(100 * h0, h1, span_of(ode)) / span_of(ode)


def _norm(y: Tree) -> float:
    """Euclidean norm of a sample, averaged over the batch."""
    rows: list[Tensor] = []
    for _, leaf in leaves_of(map_leaves(lambda part: part.abs().double().pow(2), y)):
        rows.append(leaf.reshape(len(leaf), -1).sum(1) if leaf.ndim else leaf.reshape(1))
    size = max(len(row) for row in rows)
    total = torch.stack([row.expand(size) for row in rows]).sum(0)
    return float(total.sqrt().mean())
