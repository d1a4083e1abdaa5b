"""Ways to solve and differentiate: what of pynode runs when the field of :mod:`faulty_field` is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import pynode

RTOL = 1e-6
SPAN = (0.0, 1.0)


@dataclass(frozen=True)
class Way:
    """Options of a solve, the form of its state, and what is looked at."""

    options: dict[str, Any] = field(default_factory=dict)
    tree: bool = False
    rows: int = 0
    dense: bool = False
    #: What the loss depends on, beside the states.
    cost: bool = False

    def state(self) -> Any:
        y0 = torch.tensor([1.0, 0.5], dtype=torch.float64)
        if self.rows:
            y0 = torch.stack([y0 * (1.0 + 0.3 * i) for i in range(self.rows)])
        y0 = y0.clone().requires_grad_()
        return {"a": y0, "b": (0.3 * y0).detach()} if self.tree else y0

    def solve(self, f: Callable[..., Any], y0: Any) -> pynode.Solution:
        save = [0.0, 0.37, 1.0] if "saveat" not in self.options else list(SPAN)
        return pynode.solve(f, y0, save, **{"rtol": RTOL, "atol": 1e-2 * RTOL, **self.options})

    def loss(self, sol: pynode.Solution) -> Tensor:
        """A number that depends on all that was saved."""
        leaves = sol.ys.values() if self.tree else [sol.ys]
        total = sum(leaf.nan_to_num(7.0).square().sum() for leaf in leaves)
        if self.dense:
            total = total + sol(torch.tensor([0.21, 0.83], dtype=torch.float64)).square().sum()
        if self.cost:
            total = total + sol.running_cost
        return total

    def tensors(self, f: nn.Module, y0: Any) -> list[Tensor]:
        return [y0["a"] if self.tree else y0, *f.parameters()]


def _event(direction: int = 0, **options: Any) -> pynode.Event:
    return pynode.Event(lambda t, y: y[..., 0] - 1.2, **options)


_long = {"dt0": 1.0}  # the first attempt is rejected

WAYS: dict[str, Way] = {
    "default": Way(_long),
    "checkpoints=2": Way({"sensealg": pynode.CheckpointedAdjoint(checkpoints=2), **_long}),
    "direct": Way({"sensealg": pynode.DirectAdjoint(), **_long}),
    "backsolve": Way({"sensealg": pynode.BacksolveAdjoint(), **_long}),
    "interpolating": Way({"sensealg": pynode.InterpolatingAdjoint(), **_long}),
    "interpolating, checkpointing": Way({"sensealg": pynode.InterpolatingAdjoint(checkpointing=True)}),
    "gauss": Way({"sensealg": pynode.GaussAdjoint()}),
    "gauss, checkpointing": Way({"sensealg": pynode.GaussAdjoint(checkpointing=True)}),
    "quadrature": Way({"sensealg": pynode.QuadratureAdjoint()}),
    "forward": Way({"sensealg": pynode.ForwardSensitivity(), **_long}),
    "reversible": Way(
        {"algorithm": pynode.ReversibleHeun(steps=20), "sensealg": pynode.ReversibleAdjoint()},
    ),
    "asynchronous leapfrog": Way(
        {"algorithm": pynode.AsynchronousLeapfrog(steps=20), "sensealg": pynode.CheckpointedAdjoint()}
    ),
    "tree": Way(tree=True),
    "tree, gauss": Way({"sensealg": pynode.GaussAdjoint()}, tree=True),
    "saved steps": Way({"saveat": pynode.SaveAt(steps=True)}),
    "dense": Way({"saveat": pynode.SaveAt(ts=[0.5], dense=True)}, dense=True),
    "rows, vern7": Way({"batching": "independent", "algorithm": "Vern7"}, rows=3),
    "dense, vern7": Way({"saveat": pynode.SaveAt(ts=[0.1, 0.5, 0.6], dense=True), "algorithm": "Vern7"}, dense=True),
    "running cost": Way({"running_cost": lambda t, y: y.square().sum()}, cost=True),
    "terminal event": Way({"events": _event()}),
    "event with effect": Way({"events": _event(terminal=False, effect=lambda t, y: 0.5 * y)}),
    "jump": Way({"d_discontinuities": [0.4]}),
    "pid controller": Way({"controller": pynode.PIDController(), **_long}),
    "rk4": Way({"algorithm": pynode.RK4(steps=10)}),
    "BS3": Way({"algorithm": "BS3", **_long}),
    "DP8": Way({"algorithm": "DP8", **_long}),
    "vcabm": Way({"algorithm": "VCABM", **_long}),
    "KenCarp4": Way({"algorithm": "KenCarp4"}),
    "kencarp4, gauss": Way({"algorithm": "KenCarp4", "sensealg": pynode.GaussAdjoint()}),
    "Rodas5P": Way({"algorithm": "Rodas5P"}),
    "radau": Way({"algorithm": "RadauIIA5"}),
    "FBDF": Way({"algorithm": "FBDF"}),
    "auto switch": Way({"algorithm": pynode.AutoSwitch()}),
    "trapezoid": Way({"algorithm": pynode.Trapezoid(steps=10)}),
    "rkc": Way({"algorithm": "RKC"}),
    "compiled step": Way({"compile": "step"}),
    "compiled solve": Way({"compile": "solve"}),
    "rows": Way({"batching": "independent", **_long}, rows=3),
    "rows, direct": Way({"batching": "independent", "sensealg": pynode.DirectAdjoint()}, rows=3),
    "rows, tree": Way({"batching": "independent"}, rows=3, tree=True),
    "rows, event": Way({"batching": "independent", "events": _event()}, rows=3),
    "rows, dense": Way({"batching": "independent", "saveat": pynode.SaveAt(ts=[0.5], dense=True)}, rows=3, dense=True),
}
