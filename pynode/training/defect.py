"""The error of a solve by its own dense output: no second solve."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from pynode.layout import Tree, leaves_of
from pynode.nn.neural_ode import NeuralODE
from pynode.nn.trees import map_leaves
from pynode.saveat import SaveAt
from pynode.solution import Solution


def defect(ode: NeuralODE, inputs: tuple[Any, ...], solution: Solution) -> Tree:
    """Estimate of the error of ``y(t[-1])`` by one sweep of deferred correction (Dutt, Greengard and Rokhlin 2000), to
    be compared with a tolerance or taken off the solution.

    With the cubic ``p`` through both ends of a step and their slopes (the dense output of fixed steps), the size ``h``
    of the step from ``t_n`` and ``m = t_n + h / 2``,

        ``z_(n+1) = z_n + h (f(t_n, z_n) - f(t_n, y_n)) + h / 6 (f(t_n, y_n) + 4 f(m, p(m)) + f(t_(n+1), y_(n+1)))``,

    ``z_0 = y_0``: Simpson's rule for the equation in integral form, the correction itself carried along by Euler steps.
    The estimate is ``y_N - z_N``: asymptotically the error of methods of order below 4, and of its size for order 4,
    where Simpson's own error is as large. Three further evaluations a step.

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

    Examples
    --------
    >>> model = pynode.nn.NeuralODE(lambda t, y: -y, algorithm=pynode.Euler(steps=10))
    >>> x = torch.ones(1, dtype=torch.float64)
    >>> sol = model.with_solver(saveat=pynode.SaveAt(steps=True)).solve(x)
    >>> estimate, error = pynode.training.defect(model, (x,), sol), sol.ys[-1] - math.exp(-1)
    >>> abs(estimate / error - 1).item() < 0.2
    True
    """
    x, args = inputs[0], inputs[1:]
    given = (*ode.conditions(x), *args)
    ts, ys = solution.ts, solution.ys

    def slope(t: Tensor, y: Tree) -> Tree:
        solution.stats.forward.nfe += 1
        return ode.f(t.to(next(leaves_of(y))[1].real.dtype), y, *given)

    def state(tree: Tree, n: int) -> Tree:
        return map_leaves(lambda leaf: leaf[n], tree)

    z = state(ys, 0)
    before = carried = slope(ts[0], z)
    for n in range(len(ts) - 1):
        h = float(ts[n + 1] - ts[n])
        after = slope(ts[n + 1], state(ys, n + 1))
        between = map_leaves(
            lambda a, b, fa, fb, h=h: (a + b) / 2 + h / 8 * (fa - fb), state(ys, n), state(ys, n + 1), before, after
        )
        middle = slope((ts[n] + ts[n + 1]) / 2, between)
        z = map_leaves(
            lambda z, c, a, m, b, h=h: z + h * (c - a) + h / 6 * (a + 4 * m + b), z, carried, before, middle, after
        )
        before = after
        if n < len(ts) - 2:
            carried = slope(ts[n + 1], z)
    return map_leaves(lambda y, z: y - z, state(ys, -1), z)


class Corrected:
    """A solve hook that takes the estimated error off the last state: what a more exact solver would roughly return.

    Give it to :func:`pynode.training.solving_with` together with ``saveat=SaveAt(steps=True)``.
    """

    saveat = SaveAt(steps=True)

    def __call__(self, ode: NeuralODE, inputs: tuple[Any, ...], solution: Solution) -> Solution:
        error = defect(ode, inputs, solution)
        corrected = copy.copy(solution)
        corrected.ys = map_leaves(lambda ys, e: torch.cat([ys[:-1], ys[-1:] - e]), solution.ys, error)
        return corrected
