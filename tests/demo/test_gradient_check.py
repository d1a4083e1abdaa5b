"""The check itself: it passes what is right and catches what is wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import pynode
from pynode.demo.gradient_check import GradientCheck, check_gradient
from pynode.demo.models import Block, Classifier, ODEBody, res_net
from pynode.errors import PynodeError
from pynode.nn import NeuralODE

pytest.importorskip("scipy")

IMAGES, LABELS = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 7])


def classifier(
    field: torch.nn.Module, algorithm: pynode.Algorithm, sensealg: pynode.SensitivityAlgorithm
) -> Classifier:
    torch.manual_seed(0)
    ode = NeuralODE(field, algorithm=algorithm, sensealg=sensealg, rtol=1e-3, atol=1e-3)
    return Classifier(ODEBody(ode), 8, 8, 10)


@pytest.mark.parametrize("algorithm", [pynode.Tsit5(), pynode.DP5()])
@pytest.mark.parametrize(
    "sensealg", [pynode.CheckpointedAdjoint(), pynode.BacksolveAdjoint(), pynode.DirectAdjoint()], ids=lambda s: s.name
)
def test_every_sensitivity_algorithm_passes(algorithm, sensealg):
    model = classifier(Block(8), algorithm, sensealg)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    check = check_gradient(model, IMAGES, LABELS, seed=0)
    assert check.passed, check
    assert max(check.state, check.parameters) < 1e-6
    # The net under test is left as it was: precision, tolerances, parameters.
    assert model.body.ode.rtol == 1e-3
    for key, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[key])


def test_a_fixed_step_is_checked_with_an_adaptive_algorithm_that_is_named():
    check = check_gradient(
        classifier(Block(8), pynode.Euler(steps=2), pynode.CheckpointedAdjoint()), IMAGES, LABELS, seed=0
    )
    assert check.passed
    assert check.algorithm == "Tsit5"
    assert check.as_trained > 1e-4  # two Euler steps are no solution of the equation


class HalfGradient(Block):
    """A field whose derivative is wrong by a factor: autograd sees half of it."""

    def forward(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        slope = super().forward(t, y)
        return (slope + slope.detach()) / 2


def test_differences_catch_a_field_whose_own_derivative_is_wrong():
    model = classifier(HalfGradient(8), pynode.Tsit5(), pynode.CheckpointedAdjoint())
    check = check_gradient(model, IMAGES, LABELS, seed=0)
    assert check.parameters < 1e-6  # both sides believe the same wrong derivative
    assert check.directions > 0.1
    assert not check.passed


def test_a_wrong_gradient_fails(monkeypatch):
    import pynode.demo.gradient_check as module

    right = module._gradient

    def wrong(*args):
        gradient = right(*args)
        return replace(gradient, parameters=gradient.parameters * (1 + 1e-4))

    monkeypatch.setattr(module, "_gradient", wrong)
    check = check_gradient(classifier(Block(8), pynode.Tsit5(), pynode.DirectAdjoint()), IMAGES, LABELS, seed=0)
    assert 0.9e-4 < check.parameters < 1.1e-4
    assert not check.passed


def test_nan_does_not_pass():
    good = GradientCheck(4, "Tsit5", "DirectAdjoint", 1e-9, 1e-8, 1e-8, 1e-7, 1e-3)
    assert good.passed
    assert good.as_json()["passed"]
    for name in ("loss", "state", "parameters", "directions"):
        assert not replace(good, **{name: float("nan")}).passed
        assert not replace(good, **{name: 2e-5}).passed


def test_a_net_without_an_ode_is_refused():
    with pytest.raises(PynodeError, match="ResidualBody"):
        check_gradient(res_net(8, 8, 10), IMAGES, LABELS, seed=0)
