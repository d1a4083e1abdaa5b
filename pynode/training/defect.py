"""The error of a solve by its own dense output: no second solve."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from pynode.layout import Tree
from pynode.nn.neural_ode import NeuralODE
from pynode.nn.trees import map_leaves
from pynode.saveat import SaveAt
from pynode.solution import Solution


def defect(ode: NeuralODE, inputs: tuple[Any, ...], solution: Solution) -> Tree:
    """Estimate of the error of ``y(t[-1])``: the sum over the steps of what the dense output ``p`` of each fails to
    satisfy of the equation in integral form,

        ``y_(n+1) - y_n - h / 6 (f(t_n, y_n) + 4 f(t_n + h/2, p(t_n + h/2)) + f(t_(n+1), y_(n+1)))``.

    Simpson's rule is of order 4, and so is the estimate as long as ``p`` is of order 3: for Euler, midpoint and RK4 it
    is of the order of the error itself. It adds up local errors as they arise and does not carry them along the flow:
    right to a factor like ``exp`` of the field's Lipschitz constant. One further evaluation a step, two where the
    method does not evaluate at the end of its steps.

    Parameters
    ----------
    ode : NeuralODE
    inputs : (x, *args)
    solution : Solution
        Of ``ode`` with ``saveat=SaveAt(steps=True)``.

    Returns
    -------
    tree of tensors
        In the form of the state. Its evaluations are counted in ``solution.stats.forward``.
    """
    x, args = inputs[0], inputs[1:]
    conditions = (*ode._conditions(x), *args)
    ts = solution.ts
    middles = (ts[1:] + ts[:-1]) / 2
    between = solution(middles)

    def slopes(times: Tensor, states: Tree) -> Tree:
        found = []
        for i, t in enumerate(times):
            y = map_leaves(lambda leaf, i=i: leaf[i], states)
            found.append(ode.f(t.to(_real(y)), y, *conditions))
        solution.stats.forward.nfe += len(times)
        return map_leaves(lambda *each: torch.stack(each), *found)

    def local(states: Tensor, middle: Tensor, ends: Tensor) -> Tensor:
        h = (ts[1:] - ts[:-1]).to(states.abs().dtype).reshape(-1, *[1] * (states.ndim - 1))
        return (states[1:] - states[:-1] - h / 6 * (ends[:-1] + 4 * middle + ends[1:])).sum(0)

    return map_leaves(local, solution.ys, slopes(middles, between), slopes(ts, solution.ys))


class Corrected:
    """A solve hook that takes the estimated error off the last state: what a more exact solver would roughly return.

    Give it to :func:`pynode.training.solving_with` together with ``saveat=SaveAt(steps=True, dense=True)``.
    """

    saveat = SaveAt(steps=True, dense=True)

    def __call__(self, ode: NeuralODE, inputs: tuple[Any, ...], solution: Solution) -> Solution:
        error = defect(ode, inputs, solution)
        corrected = copy.copy(solution)
        corrected.ys = map_leaves(lambda ys, e: torch.cat([ys[:-1], ys[-1:] - e]), solution.ys, error)
        return corrected


def _real(y: Tree) -> Tensor:
    from pynode.layout import leaves_of

    leaf: Tensor = next(leaves_of(y))[1]
    return leaf.abs() if leaf.is_complex() else leaf
