"""Table 1 of the undergraduates' report as running code: which network is which solver."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import pynode
from pynode.nn import (
    ConcatTime,
    NeuralODE,
    PolyNet,
    ResNet,
    ResNetBlock,
    RevNet,
    RungeKuttaNet,
    Stacked,
    TimeSequential,
)

F64 = torch.float64
Y0 = torch.tensor([[0.7, -0.2], [1.1, 0.4]], dtype=F64)
#: Ten or so additions and products of numbers of size 1 in another order, in each of 8 steps.
ROUNDING = 8 * 10 * torch.finfo(F64).eps


def branch(seed: int = 0, size: int = 2) -> TimeSequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = ConcatTime(nn.Linear(size + 1, 8)), nn.Tanh(), nn.Linear(8, size)
    return TimeSequential(*layers).double()


def _same(network: nn.Module, ode: NeuralODE, y0: torch.Tensor = Y0, bound: float = ROUNDING) -> None:
    """Values and gradients, of the input and of every parameter by name, to rounding."""
    found = []
    for model in (network, ode):
        y = y0.clone().requires_grad_()
        out = model(y)
        found.append((out, *torch.autograd.grad(out.pow(2).sum(), [y, *model.parameters()])))
    assert [*network.state_dict()] == [*ode.state_dict()]
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max().item() < bound * max(1.0, b.abs().max().item())


@pytest.mark.parametrize("span", [(0.0, 1.0), (0.3, 2.5), (1.0, 0.0)])
def test_a_resnet_of_depth_n_is_eulers_method_with_n_steps(span) -> None:
    f = branch()
    _same(ResNet(f, 7, span), NeuralODE(f, span, algorithm=pynode.Euler(steps=7)))
    states = ResNet(f, 7, span).state_dict()
    NeuralODE(branch(1), span).load_state_dict(states)  # the same names


def test_a_resnet_with_blocks_of_their_own_is_eulers_method_for_stacked_parameters() -> None:
    fields = [branch(i) for i in range(5)]
    resnet = ResNet(fields)
    ode = NeuralODE(Stacked(fields), algorithm=pynode.Euler(steps=5))
    found = [torch.autograd.grad(m(Y0).pow(2).sum(), list(m.parameters())) for m in (resnet, ode)]
    # A jump at a step's start is evaluated at the next number after it: one rounding more in t.
    assert (resnet(Y0) - ode(Y0)).abs().max().item() < ROUNDING
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max().item() < 10 * ROUNDING


def test_a_sum_of_branches_is_eulers_method_too() -> None:
    """ResNeXt."""
    branches = nn.ModuleList([branch(i) for i in range(3)])
    resnext = ResNet(lambda t, y: sum(f(t, y) for f in branches), 6)
    ode = NeuralODE(lambda t, y: sum(f(t, y) for f in branches), algorithm=pynode.Euler(steps=6))
    assert (resnext(Y0) - ode(Y0)).abs().max().item() < ROUNDING


def test_a_block_is_the_residual_block() -> None:
    f = branch()
    assert torch.equal(ResNetBlock(f)(Y0), Y0 + f(torch.tensor(0.0, dtype=F64), Y0))


@pytest.mark.parametrize("algorithm", [pynode.RK4, pynode.Heun, pynode.Euler, pynode.SSPRK33], ids=lambda a: a.__name__)
def test_dense_connections_are_a_runge_kutta_method(algorithm) -> None:
    f = branch()
    _same(RungeKuttaNet(f, 4, algorithm=algorithm()), NeuralODE(f, algorithm=algorithm(steps=4)))


def test_connections_can_be_learned_and_start_as_the_method() -> None:
    network = RungeKuttaNet(branch(), 4, learned=True).double()
    ode = NeuralODE(network.f, algorithm=pynode.RK4(steps=4))
    assert (network(Y0) - ode(Y0)).abs().max().item() < ROUNDING
    network(Y0).sum().backward()
    assert network.b.grad.abs().min() > 0
    assert (network.a.grad.tril(-1) != 0).sum() == 6


@pytest.mark.parametrize("order", [1, 2, 5])
def test_polynet_is_the_polynomial_that_approximates_backward_euler(order: int) -> None:
    """With z = h lambda: sum of z^k up to the order, which misses 1 / (1 - z) by z^(order + 1) / (1 - z) a block."""
    rate, depth = -1.5, 5
    z = rate / depth
    end = PolyNet(lambda t, y: rate * y, depth, order=order)(Y0)
    block = sum(z**k for k in range(order + 1))
    assert (end - block**depth * Y0).abs().max().item() < ROUNDING
    assert block - 1 / (1 - z) == pytest.approx(-(z ** (order + 1)) / (1 - z), rel=1e-12)


def test_polynet_converges_to_backward_euler_with_its_order() -> None:
    """One block: the distance from the solution z of z = y + h f(t + h, z) falls by at least h L with each order."""
    f, h, span = branch(), 0.2, (0.3, 0.5)
    end = torch.tensor(0.5, dtype=F64)
    z = Y0
    for _ in range(200):
        z = Y0 + h * f(end, z)
    assert (z - Y0 - h * f(end, z)).abs().max().item() < ROUNDING
    # Of tanh networks: the product of the spectral norms of the weights.
    first, last = f.layers[0].layer.weight[:, :2], f.layers[2].weight
    lipschitz = (torch.linalg.matrix_norm(first, 2) * torch.linalg.matrix_norm(last, 2)).item()
    errors = [(PolyNet(f, 1, span, order=k)(Y0) - z).norm(dim=-1).max().item() for k in range(1, 7)]
    assert h * lipschitz < 0.5
    for before, after in itertools.pairwise(errors):
        assert after <= h * lipschitz * before + ROUNDING
    assert errors[0] > 1e-4  # there is something to converge


def test_a_revnet_is_undone_exactly_and_has_order_one() -> None:
    f, g = branch(0), branch(1)
    y0 = (Y0, Y0.flip(-1))
    net = RevNet(f, g, 6, (0.2, 1.1))
    back = net.inverse(net(y0))
    for a, b in zip(back, y0, strict=True):
        assert (a - b).abs().max().item() < 2 * ROUNDING
    exact = NeuralODE(lambda t, y: (f(t, y[1]), g(t, y[0])), (0.2, 1.1), algorithm="vern7", rtol=1e-10, atol=1e-12)(y0)
    errors = [
        max((a - b).abs().max().item() for a, b in zip(RevNet(f, g, n, (0.2, 1.1))(y0), exact, strict=True))
        for n in (40, 80)
    ]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.1)  # order 1, up to 1/40 relative


def test_trees_arguments_and_single_precision() -> None:
    def f(t, y, rate):
        return {"q": rate * y["p"], "p": -rate * y["q"] * t}

    y0 = {"q": Y0.float(), "p": Y0.float() + 1}
    for network, algorithm in (
        (ResNet(f, 6), pynode.Euler(steps=6)),
        (RungeKuttaNet(f, 6), pynode.RK4(steps=6)),
    ):
        end, expected = network(y0, 1.3), NeuralODE(f, algorithm=algorithm)(y0, 1.3)
        for key in y0:
            assert end[key].dtype == torch.float32
            assert (end[key] - expected[key]).abs().max().item() < 2 * ROUNDING / torch.finfo(F64).eps * 1.2e-7


def test_bad_input_is_named() -> None:
    for make, message in (
        (lambda: ResNet(branch()), "depth = None"),
        (lambda: ResNet([branch()], 2), "depth = 2"),
        (lambda: ResNet(3, 2), "f is a int"),
        (lambda: PolyNet(branch(), 2, order=0), "order = 0"),
    ):
        with pytest.raises(pynode.InputError, match=message):
            make()
    with pytest.raises(pynode.UnsupportedError, match="ReversibleHeun has no tableau"):
        RungeKuttaNet(branch(), 2, algorithm=pynode.ReversibleHeun())
