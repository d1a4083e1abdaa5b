"""Gradients of log-densities: second derivatives of the network inside the field, under every sensitivity algorithm."""

from __future__ import annotations

import pytest
import torch
from available import AVAILABLE, each_available
from flow_fields import F64, Perceptron
from torch import Tensor, nn

import pynode
from pynode import julia
from pynode.nn import CNF, ConcatContext, ExactTrace, HutchinsonTrace, JacobianFrobenius, KineticEnergy
from pynode.nn.field_costs import OnFlow

TOLERANCE = 1e-9
#: Fewer than 60 steps of local errors below tolerance (1 + |y|) with |y| < 10 (adjoints too), amplified less than 10
#: times, in the solve and in its adjoint.
BOUND = 2 * 60 * 11 * 10 * TOLERANCE
TRACES = {"exact": ExactTrace(), "rademacher": HutchinsonTrace(), "gaussian": HutchinsonTrace("gaussian", 2)}
each_trace = pytest.mark.parametrize("trace", TRACES.values(), ids=TRACES)


class Conditional(nn.Module):
    """Everything a gradient is owed to: field, encoder, base, times, data, and costs along the way."""

    def __init__(self, trace, **options) -> None:
        super().__init__()
        field = Perceptron(2, context=2, width=5)
        kinetic, frobenius = OnFlow(KineticEnergy(field)), OnFlow(JacobianFrobenius(field))
        self.flow = CNF(
            field,
            2,
            trace=trace,
            t=nn.Parameter(torch.tensor([0.1, 0.9], dtype=F64)),
            encoder=nn.Embedding(2, 2).to(F64),
            running_cost=lambda *given: kinetic(*given) + frobenius(*given),
            rtol=TOLERANCE,
            atol=TOLERANCE,
            **options,
        )
        with torch.no_grad():
            self.flow.encoder.weight.copy_(torch.tensor([[0.5, -1.0], [0.3, 0.8]]))

    def forward(self, x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        log_p, cost = self.flow.log_prob_and_cost(x, torch.tensor([0, 1, 1]), generator=generator)
        return (log_p + 0.1 * cost).sum()


def data() -> Tensor:
    return torch.tensor([[0.3, -0.2], [1.0, 0.4], [-0.7, 0.9]], dtype=F64)


def gradients(trace, sensealg) -> list[Tensor]:
    model, x = Conditional(trace, sensealg=sensealg), data().requires_grad_()
    return list(torch.autograd.grad(model(x), [x, *model.parameters()]))


@each_trace
@each_available
def test_gradients_agree_over_sensealgs(trace, sensealg) -> None:
    expected = gradients(trace, pynode.DirectAdjoint())
    found = gradients(trace, sensealg)
    assert all(g.abs().max() > 1e-3 for g in expected)
    for g, e in zip(found, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=0, atol=BOUND)


def test_the_comparison_covers_the_adjoints_that_were_asked_for() -> None:
    names = {"CheckpointedAdjoint", "DirectAdjoint", "BacksolveAdjoint", "InterpolatingAdjoint", "GaussAdjoint"}
    assert names <= set(AVAILABLE)


@each_trace
def test_gradients_by_finite_differences(trace) -> None:
    """Of a fixed number of steps, whose value is a smooth function of everything, along a few directions."""
    model, x = Conditional(trace, algorithm=pynode.RK4(steps=6)), data()
    inputs = [x.requires_grad_(), *model.parameters()]
    found = torch.autograd.grad(model(x), inputs)
    generator = torch.Generator().manual_seed(4)
    step = 1e-4
    for _ in range(3):
        direction = [torch.randn(y.shape, generator=generator, dtype=F64) for y in inputs]
        values = []
        with torch.no_grad():
            for move in (step, -2 * step):
                for y, d in zip(inputs, direction, strict=True):
                    y += move * d
                values.append(model(x))
            for y, d in zip(inputs, direction, strict=True):
                y += step * d
        difference = (values[0] - values[1]) / (2 * step)
        slope = sum((g * d).sum() for g, d in zip(found, direction, strict=True))
        # A sixth of the third derivative along a direction of length about 7, and the rounding of a few thousand
        # operations on numbers about 10.
        assert slope.abs() > 0.1
        assert abs(difference - slope) < 7**3 * step**2 * max(1.0, slope.abs()) + 1e3 * 10 * 2.2e-16 / step


@each_trace
def test_reparametrised_samples_have_the_same_gradient_under_an_adjoint(trace) -> None:
    def found(sensealg) -> list[Tensor]:
        cnf = CNF(Perceptron(2), 2, trace=trace, rtol=TOLERANCE, atol=TOLERANCE, sensealg=sensealg)
        x, log_p = cnf.rsample_and_log_prob(3, generator=torch.Generator().manual_seed(1))
        return list(torch.autograd.grad((log_p + x.square().sum(-1)).sum(), list(cnf.parameters())))

    for g, e in zip(found(pynode.GaussAdjoint()), found(pynode.DirectAdjoint()), strict=True):
        torch.testing.assert_close(g, e, rtol=0, atol=BOUND)


@each_trace
@pytest.mark.parametrize("conditional", [False, True])
def test_the_field_is_captured_without_callbacks(trace, conditional) -> None:
    """``source`` raises where it cannot; what it gives is run in tests/julia, with fields_of_densities."""
    x, context = data(), torch.ones(3, 4, dtype=F64, requires_grad=True)
    cnf = CNF(ConcatContext(Reading()) if conditional else Perceptron(2), 2, trace=trace)
    args = (cnf.probes(x), *([context] if conditional else []))
    program = julia.source(cnf.field, 0.3, (x, x.new_zeros(3)), args)
    assert all(name in program for name in ("f!(du, u, p, t)", "vjp!(", "vjp_p!(", "net.2.weight"))


class Reading(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 5), nn.SiLU(), nn.Linear(5, 2)).to(F64)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y) * t
