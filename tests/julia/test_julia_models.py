"""Every model of pynode.nn, solved and differentiated by the real Julia, without the callback route."""

from __future__ import annotations

import warnings

import pytest
import torch
from exported_models import DISCRETE, EVERY, loss_of, made

import pynode
from pynode import CallbackWarning
from pynode.julia import runtime

pytestmark = [
    pytest.mark.julia,
    pytest.mark.skipif(not runtime.installed(), reason="juliacall is not installed"),
]


def gradients(name: str, rtol: float, **options: object) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model, x = made(name, rtol=rtol, atol=rtol / 10, **options)
    inputs = [*(x.values() if isinstance(x, dict) else [x]), *model.parameters()]
    loss = loss_of(model(x))
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return loss.detach(), [torch.zeros_like(p) if g is None else g for p, g in zip(inputs, found, strict=True)]


@pytest.mark.parametrize("name", sorted(EVERY.keys() - DISCRETE))
def test_julia_agrees_with_torch(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", CallbackWarning)
        loss, found = gradients(name, 1e-8, backend="julia", sensealg=pynode.GaussAdjoint())
    truth, expected = gradients(name, 1e-10)
    # 1000 tolerances: models of series solve one problem after another.
    assert abs(loss - truth) <= 1e-5 * abs(truth)
    whole = torch.cat([g.reshape(-1) for g in expected])
    assert whole.norm() > 0
    assert (torch.cat([g.reshape(-1) for g in found]) - whole).norm() <= 1e-5 * whole.norm()
