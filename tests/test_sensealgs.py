"""Every sensitivity algorithm, in both precisions, on a tensor and on a tree, for everything a gradient is owed to.

The field is contracting or neutral up to a growth of 2 over the span, and every local error, forward and backward, is
below the tolerance: some 20 steps in each direction leave an error of 2 * 20 * 2 = 80 tolerances. The bound is 100
tolerances for all of them, relative to the size of the quantity; the discrete gradients are those of a solution that is
itself within this bound. In single precision the tolerance is some 80 roundings, so that the bound is far above what
these add up to.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from available import OF_TORCH
from torch import Tensor

import pynode
from pynode.sensealg import SensitivityAlgorithm

CASES: dict[str, SensitivityAlgorithm] = {cls.__name__: cls() for cls in OF_TORCH} | {
    "CheckpointedAdjoint-3": pynode.CheckpointedAdjoint(checkpoints=3),
    "BacksolveAdjoint-full": pynode.BacksolveAdjoint(norm="full"),
    "InterpolatingAdjoint-full": pynode.InterpolatingAdjoint(norm="full"),
    "InterpolatingAdjoint-checkpointing": pynode.InterpolatingAdjoint(checkpointing=True),
    "GaussAdjoint-checkpointing": pynode.GaussAdjoint(checkpointing=True),
}
TOLERANCE = {"float32": 1e-5, "float64": 1e-6}
MULTIPLE = 100.0
TIGHT = {"algorithm": pynode.Vern9(), "rtol": 1e-12, "atol": 1e-12}

#: What is differentiated: the initial state, the field's weights, the times, the argument, the cost's own parameter.
START = {
    "y0": [0.5, -0.3, 0.8],
    "params": [[0.4, -0.7], [0.9, 0.3]],
    "t": [0.1, 0.55, 0.9],
    "args": [0.4, -0.6],
    "cost": [1.3],
}
QUANTITIES = ("y0", "params", "t", "args", "running_cost")


def _field(t: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    inner = torch.tanh(w @ y[..., :2]) * torch.cos(2.0 * t) + a * y[..., 2]
    return torch.cat([inner, -(a * inner).sum()[None] - 0.5 * y[..., 2:]])


def _cost(t: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return c[0] * torch.sin(t + y).sum() + c[0] ** 2 * y.prod()


def _solve(form: str, inputs: dict[str, Tensor], **options: object) -> tuple[Tensor, Tensor]:
    """States (3, 3) at the three times, and the running cost."""
    w, c = inputs["params"], inputs["cost"]
    y0 = inputs["y0"]
    if form == "tensor":
        field: Callable[..., object] = lambda t, y, a: _field(t, y, w, a)  # noqa: E731
        cost: Callable[..., object] = lambda t, y, a: _cost(t, y, c)  # noqa: E731
        sol = pynode.solve(field, y0, inputs["t"], args=(inputs["args"],), running_cost=cost, **options)
        return sol.ys, sol.running_cost

    def joined(y):
        return torch.cat([y["p"][0], y["q"].reshape(-1)])

    def field(t, y, more):
        dy = _field(t, joined(y), w, more["a"])
        return {"q": dy[1:].reshape(2, 1), "p": (dy[:1],)}

    start = {"q": y0[1:].reshape(2, 1), "p": (y0[:1],)}
    sol = pynode.solve(
        field,
        start,
        inputs["t"],
        args=({"a": inputs["args"]},),
        running_cost=lambda t, y, more: (_cost(t, joined(y), c),),
        **options,
    )
    return torch.cat([sol.ys["p"][0], sol.ys["q"].flatten(1)], dim=1), sol.running_cost[0]


def _losses(states: Tensor, cost: Tensor) -> tuple[Tensor, Tensor]:
    weights = torch.cos(torch.arange(1.0, states.numel() + 1.0, dtype=states.dtype)).reshape(states.shape)
    return (weights * states + 0.5 * states**2).sum(), cost


def _inputs(dtype: torch.dtype, requires_grad: bool = True) -> dict[str, Tensor]:
    # Times stay in double precision, as they do inside.
    return {
        name: torch.tensor(value, dtype=torch.float64 if name == "t" else dtype, requires_grad=requires_grad)
        for name, value in START.items()
    }


def _sorted(of_states: dict[str, Tensor], of_cost: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {name: of_states[name].double() for name in QUANTITIES[:-1]}
    found["running_cost"] = torch.cat([of_cost[name].double().reshape(-1) for name in START])
    return found


@functools.cache
def _gradients(case: str, form: str, precision: str, tight: bool = False) -> dict[str, Tensor]:
    sensealg = CASES[case]
    tolerance = TOLERANCE[precision]
    algorithm = (
        pynode.ReversibleHeun(adaptive=True) if isinstance(sensealg, pynode.ReversibleAdjoint) else pynode.Tsit5()
    )
    options = TIGHT if tight else {"algorithm": algorithm, "rtol": tolerance, "atol": tolerance}
    inputs = _inputs(getattr(torch, precision))
    losses = _losses(*_solve(form, inputs, sensealg=sensealg, **options))
    found = []
    for loss in losses:
        gradients = torch.autograd.grad(
            loss, list(inputs.values()), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        found.append(dict(zip(inputs, gradients, strict=True)))
    return _sorted(*found)


@functools.cache
def _differences(form: str) -> dict[str, Tensor]:
    """Central differences of fourth order: wrong by EPS**4 = 1e-12 times a fifth derivative, and by the 2e-11 of the
    solve over EPS, 2e-8, where a perturbation changes the steps taken."""
    eps, stencil = 1e-3, ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12))
    found: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for name in START:
        for part in found:
            part[name] = torch.zeros_like(_inputs(torch.float64, False)[name])
        for index in range(found[0][name].numel()):
            for step, weight in stencil:
                inputs = _inputs(torch.float64, False)
                inputs[name].view(-1)[index] += step * eps
                with torch.no_grad():
                    losses = _losses(*_solve(form, inputs, **TIGHT))
                for part, loss in zip(found, losses, strict=True):
                    part[name].view(-1)[index] += weight / eps * loss
    return _sorted(*found)


def _distance(x: Tensor, y: Tensor) -> float:
    """Relative to the larger of 1 and the size of ``y``."""
    return ((x - y).abs().max() / y.abs().max().clamp(min=1.0)).item()


@pytest.mark.parametrize("form", ["tensor", "tree"])
@pytest.mark.parametrize("quantity", QUANTITIES)
def test_the_references_agree(form, quantity) -> None:
    reference = _gradients("DirectAdjoint", form, "float64", tight=True)[quantity]
    assert _distance(reference, _differences(form)[quantity]) < 1e-7
    assert reference.abs().max() > 0.1  # or the bounds below would mean nothing
    # Nothing is zero but the cost's derivative by the save time in between, on which it does not depend.
    assert reference.eq(0.0).sum() == (1 if quantity == "running_cost" else 0)


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("form", ["tensor", "tree"])
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("case", CASES)
def test_every_gradient_of_every_sensealg(case, precision, form, quantity) -> None:
    found = _gradients(case, form, precision)[quantity]
    bound = MULTIPLE * TOLERANCE[precision]
    assert _distance(found, _differences(form)[quantity]) < bound
    assert _distance(found, _gradients("DirectAdjoint", form, "float64", tight=True)[quantity]) < bound
