"""What a solver does to the states themselves: how far its end states are from the flow's, and whether trajectories
pass through each other, which those of a differential equation never do."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from pynode.errors import SolveError
from pynode.layout import Tree, leaves_of
from pynode.nn.neural_ode import NeuralODE
from pynode.nn.trees import map_leaves
from pynode.saveat import SaveAt

#: Samples that are compared: pairs of them are, and all their states are kept.
SAMPLES = 256


@dataclasses.dataclass(frozen=True)
class StateSpace:
    """One NeuralODE solved as it is trained, beside its flow.

    Attributes
    ----------
    discrepancy : float
        Root mean square distance between its end states and those of the reference, in units of the root mean square
        distance by which the reference moves the samples. 0: the flow; 1: nothing in common with it; infinite where
        the reference fails, as on flows that explode.
    crossings : float
        Of all pairs of a sample with its nearest neighbour and all steps, the fraction in which the separation
        ``d = y_i - y_j`` turns round, ``<d_n, d_(n+1)> < 0``: they pass through or around each other within the step.
        In one dimension exactly the crossings. NaN for fewer than two samples.
    reference_crossings : float
        The same of the reference, at the same times: what a step this long sees of the flow itself.
    steps, samples : int

    Examples
    --------
    >>> model = pynode.nn.NeuralODE(lambda t, y: -y, algorithm=pynode.Euler(steps=1))
    >>> report = pynode.training.validity(model, [(torch.linspace(1, 2, 4)[:, None], torch.zeros(4, 1))], "mse")
    >>> (state,) = report.states.values()
    >>> state.discrepancy > 0.1, state.steps, state.samples  # one step of Euler is not the flow
    (True, 1, 4)
    """

    discrepancy: float
    crossings: float
    reference_crossings: float
    steps: int
    samples: int


def compare_flows(ode: NeuralODE, inputs: tuple[Any, ...], reference: NeuralODE) -> StateSpace:
    """``ode`` at its own steps beside ``reference`` at the same times, from the same inputs ``(x, *args)``.

    Without gradients; both in the mode they are in. At most :data:`SAMPLES` samples where there are no further
    arguments (which may belong to samples, too).
    """
    x, args = inputs[0], inputs[1:]
    if not args:
        x = map_leaves(lambda leaf: leaf[:SAMPLES], x)
    with torch.no_grad():
        stepped = ode.with_solver(saveat=SaveAt(steps=True), running_cost=None).solve(x, args=args)
        own = _per_sample(stepped.ys)
        try:
            flow = reference.with_solver(running_cost=None).solve(x, stepped.ts, args=args)
        except SolveError:
            return StateSpace(math.inf, _crossings(own), math.nan, len(own) - 1, own.shape[1])
    exact = _per_sample(flow.ys)
    moved = (exact[-1] - exact[0]).pow(2).sum(-1).mean().sqrt()
    apart = (own[-1] - exact[-1]).pow(2).sum(-1).mean().sqrt()
    return StateSpace(
        discrepancy=float(apart / moved) if float(moved) > 0 else (0.0 if float(apart) == 0 else math.inf),
        crossings=_crossings(own),
        reference_crossings=_crossings(exact),
        steps=len(own) - 1,
        samples=own.shape[1],
    )


def output_distance(output: Tree, other: Tree) -> float:
    """Root mean square distance of two outputs in units of the deviation of ``output`` over the batch: a gap that
    needs no target."""
    end = _per_sample(map_leaves(lambda leaf: leaf[None], output))
    beside = _per_sample(map_leaves(lambda leaf: leaf[None], other))
    spread = (end - end.mean(1, keepdim=True)).pow(2).mean().sqrt()
    apart = float((end - beside).pow(2).mean().sqrt())
    if not math.isfinite(apart):
        return math.inf
    return apart / float(spread) if float(spread) > 0 else (0.0 if apart == 0 else math.inf)


def _crossings(ys: Tensor) -> float:
    """Of trajectories (T, N, D)."""
    if ys.shape[1] < 2:
        return math.nan
    distances = torch.cdist(ys[0], ys[0])
    # Equal samples stay equal and cross nobody.
    distances[distances == 0] = math.inf
    nearest = distances.argmin(1)
    pairs = torch.isfinite(distances.min(1).values)
    between = (ys - ys[:, nearest])[:, pairs]
    turned = (between[:-1] * between[1:]).sum(-1) < 0
    return float(turned.double().mean()) if turned.numel() else math.nan


def _per_sample(ys: Tree) -> Tensor:
    """States (T, N, ...) of a tree as one float64 tensor (T, N, D); a state (T, D) is one sample."""
    parts = []
    for _, leaf in leaves_of(ys):
        real = torch.view_as_real(leaf.resolve_conj()) if leaf.is_complex() else leaf
        samples = leaf.shape[1] if leaf.ndim > 2 else 1
        parts.append(real.detach().to("cpu", torch.float64).reshape(len(leaf), samples, -1))
    most = max(part.shape[1] for part in parts)
    return torch.cat([part.expand(-1, most, -1) for part in parts], -1)
