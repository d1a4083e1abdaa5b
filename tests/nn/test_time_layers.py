"""Fields that vary with depth, against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import pynode
from pynode.nn import (
    RBF,
    AdaptiveDepth,
    Chebyshev,
    ConcatSquash,
    ConcatTime,
    ConditionalHyperNetwork,
    DataControl,
    Fourier,
    GalerkinConv2d,
    GalerkinLinear,
    HyperNetwork,
    NeuralODE,
    Polynomial,
    Stacked,
    TimeSequential,
    parameters_size,
)

F64 = torch.float64
X = torch.tensor([[0.7, -0.2], [1.1, 0.4], [-0.3, 0.9]], dtype=F64)
TIGHT = {"rtol": 1e-10, "atol": 1e-10}
#: Fewer than 100 steps, each wrong by less than the tolerance, of fields that do not amplify errors by more than 3.
BOUND = 3e-8


def filled(layer: nn.Module, **values: object) -> nn.Module:
    layer = layer.double()
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(torch.as_tensor(values[name.replace(".", "_")], dtype=F64))
    return layer


def rate(value: float) -> nn.Module:
    """y' = value * y on one feature."""
    return TimeSequential(filled(nn.Linear(1, 1, bias=False), weight=[[value]]))


# ------------------------------------------------------------------------------------------- time as a feature


def test_concatenated_time_is_the_last_feature() -> None:
    """y' = y + 2 t in the first feature and -t in the second."""
    layer = filled(nn.Linear(3, 2, bias=False), weight=[[1.0, 0.0, 2.0], [0.0, 0.0, -1.0]])
    end = NeuralODE(ConcatTime(layer), **TIGHT)(X)
    first = (X[:, 0] + 2) * math.e - 4  # y = (x + 2) e^t - 2 t - 2
    assert (end - torch.stack([first, X[:, 1] - 0.5], -1)).abs().max().item() < BOUND
    kernel = filled(nn.Conv2d(3, 2, 1, bias=False), weight=layer.weight.detach()[:, :, None, None])
    of_images = NeuralODE(ConcatTime(kernel, dim=1), **TIGHT)(X.T.reshape(1, 2, 1, 3))
    assert (of_images.reshape(2, 3).T - end).abs().max().item() < BOUND


@pytest.mark.parametrize("images", [False, True])
def test_squash_gates_and_shifts(images: bool) -> None:
    """Of a layer that is 1: the integral of sigmoid(2 t - 1) + 3 t from 0 to 1."""
    layer: nn.Module = nn.Conv2d(1, 1, 3, padding=1) if images else nn.Linear(1, 1)
    field = filled(
        ConcatSquash(layer), layer_weight=0.0, layer_bias=1.0, gate_weight=2.0, gate_bias=-1.0, shift_weight=3.0
    )
    y0 = torch.zeros(2, 1, 3, 3, dtype=F64) if images else torch.zeros(2, 1, dtype=F64)
    softplus = [math.log1p(math.exp(z)) for z in (1.0, -1.0)]
    expected = (softplus[0] - softplus[1]) / 2 + 1.5
    assert (NeuralODE(field, **TIGHT)(y0) - expected).abs().max().item() < BOUND


# --------------------------------------------------------------------------------------------------------- bases

GAUSS = torch.tensor(
    [[-0.9061798459386640, 0.2369268850561891], [-0.5384693101056831, 0.4786286704993665], [0, 0.5688888888888889],
     [0.5384693101056831, 0.4786286704993665], [0.9061798459386640, 0.2369268850561891]], dtype=F64,
)  # fmt: skip


def test_fourier_functions_are_orthogonal_over_the_span() -> None:
    basis = Fourier(3, span=(0.5, 2.5))
    t = 0.5 + 2 * torch.arange(16, dtype=F64) / 16  # the equidistant rule is exact for these
    gram = basis(t).T @ basis(t) / 16
    assert (gram - torch.diag(torch.tensor([1.0] + 6 * [0.5], dtype=F64))).abs().max().item() < 1e-14


def test_chebyshev_polynomials_are_cosines() -> None:
    theta = torch.linspace(0, math.pi, 9, dtype=F64)
    t = (theta.cos() + 1) / 2
    expected = torch.cos(theta[:, None] * torch.arange(6, dtype=F64))
    assert (Chebyshev(6)(t) - expected).abs().max().item() < 1e-13  # T_5' = 25 at the ends


def test_polynomials_are_powers_on_the_scaled_span() -> None:
    t = torch.tensor([[1.0, 2.0], [3.0, 1.5]], dtype=F64)
    expected = (t - 2)[..., None] ** torch.arange(4)
    assert torch.equal(Polynomial(4, span=(1.0, 3.0))(t), expected)
    assert Polynomial(1)(t).shape == (2, 2, 1)
    assert Chebyshev(1)(t).shape == (2, 2, 1)


def test_gaussians_peak_at_their_centres() -> None:
    basis = RBF(3).double()
    values = basis(torch.tensor([0.0, 0.5, 1.0], dtype=F64))
    expected = torch.exp(-0.5 * torch.tensor([[0.0, 1, 4], [1, 0, 1], [4, 1, 0]], dtype=F64))
    assert (values - expected).abs().max().item() < 1e-15
    assert [name for name, _ in basis.named_parameters()] == ["centres", "log_widths"]
    assert list(RBF(2, learned=False).parameters()) == []


# ------------------------------------------------------------------------------------------------ depth variance


@pytest.mark.parametrize("basis", [Fourier(2), Chebyshev(4), Polynomial(5), RBF(4)], ids=lambda b: type(b).__name__)
def test_galerkin_is_the_linear_equation_with_that_coefficient(basis) -> None:
    """y' = a(t) y with a(t) = sum_j a_j psi_j(t): y(1) = x exp(integral of a), here by composite Gauss quadrature of
    order 10 on 40 intervals, and dy(1)/da_j = y(1) * integral of psi_j."""
    basis = basis.double()
    coefficients = torch.cos(torch.arange(basis.size, dtype=F64))
    layer = GalerkinLinear(1, 1, basis, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(coefficients[:, None, None])
    nodes = ((GAUSS[:, 0] + 1) / 2 + torch.arange(40, dtype=F64)[:, None]) / 40
    integrals = torch.einsum("inj,n->j", basis(nodes), GAUSS[:, 1]).detach() / 80
    expected = X[:, :1] * torch.exp(integrals @ coefficients)
    end = NeuralODE(layer, **TIGHT)(X[:, :1])
    assert (end - expected).abs().max().item() < 3 * BOUND  # grows by at most exp(2)
    (gradient,) = torch.autograd.grad(end.sum(), layer.weight)
    assert (gradient[:, 0, 0] - expected.sum() * integrals).abs().max().item() < 3 * BOUND


def test_galerkin_with_a_constant_is_the_layer_of_torch() -> None:
    layer = GalerkinLinear(2, 3, Polynomial(1)).double()
    expected = nn.functional.linear(X, layer.weight[0], layer.bias[0])
    torch.testing.assert_close(layer(torch.tensor(0.3, dtype=F64), X), expected, rtol=1e-15, atol=1e-15)
    kernel = GalerkinConv2d(2, 3, 3, Polynomial(1), stride=2, padding=1).double()
    images = torch.linspace(-1, 1, 2 * 2 * 5 * 5, dtype=F64).reshape(2, 2, 5, 5)
    expected = nn.functional.conv2d(images, kernel.weight[0], kernel.bias[0], 2, 1)
    torch.testing.assert_close(kernel(torch.tensor(0.3, dtype=F64), images), expected, rtol=1e-15, atol=1e-15)


LAYERS = {
    "GalerkinLinear": (lambda: GalerkinLinear(2, 3, Fourier(2)), X),
    "GalerkinConv2d": (lambda: GalerkinConv2d(2, 3, 1, Chebyshev(3)), X.reshape(3, 2, 1, 1)),
    "ConcatTime": (lambda: ConcatTime(nn.Linear(3, 2)), X),
    "ConcatSquash": (lambda: ConcatSquash(nn.Linear(2, 2)), X),
    "ConcatSquash of images": (lambda: ConcatSquash(nn.Conv2d(2, 2, 1)), X.reshape(3, 2, 1, 1)),
    "more dimensions": (lambda: GalerkinLinear(2, 3, Polynomial(3)), X.reshape(3, 1, 2).expand(3, 4, 2)),
    "squash, more dimensions": (lambda: ConcatSquash(nn.Linear(2, 3)), X.reshape(3, 1, 2).expand(3, 4, 2)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_time_for_every_sample(name: str) -> None:
    """What AdaptiveDepth asks for: row i at its time equals the layer at that time, to rounding."""
    make, y = LAYERS[name]
    layer = make().double()
    times = torch.tensor([0.1, 0.5, 0.8], dtype=F64)
    together = layer(times.reshape(3, *[1] * (y.ndim - 1)), y)
    alone = torch.cat([layer(t, y[i : i + 1]) for i, t in enumerate(times)])
    torch.testing.assert_close(together, alone, rtol=1e-14, atol=1e-14)


RATES = [0.5, -1.2, 2.0, 0.3]


@pytest.mark.parametrize("algorithm", [pynode.Tsit5(), pynode.RK4(steps=40)], ids=lambda a: a.name)
@pytest.mark.parametrize("direction", [1, -1])
def test_stacked_parameters_are_piecewise_constant(algorithm, direction: int) -> None:
    """y' = a_i y: y(1) = x exp(sum of a_i times its interval), and dy(1)/da_i = y(1) times its interval."""
    field = Stacked([rate(a) for a in RATES], ends=[0.2, 0.5, 0.6])
    lengths = torch.tensor([0.2, 0.3, 0.1, 0.4], dtype=F64)
    ode = NeuralODE(field, (0.0, 1.0)[::direction], algorithm=algorithm, **TIGHT)
    expected = X[:, :1] * torch.exp(direction * lengths @ torch.tensor(RATES, dtype=F64))
    sol = ode.solve(X[:, :1])
    # RK4: 40 steps with (a h)^5 / 120 each, times 3 for a growth of at most e.
    bound = 3 * 40 * (2 / 40) ** 5 / 120 if algorithm.name == "RK4" else BOUND
    assert (sol.ys[-1] - expected).abs().max().item() < bound
    gradients = torch.autograd.grad(sol.ys[-1].sum(), list(field.parameters()))
    assert (torch.cat(gradients).flatten() - direction * expected.sum() * lengths).abs().max().item() < 10 * bound


def test_stacked_equals_one_solve_after_the_other() -> None:
    torch.manual_seed(0)
    fields = [TimeSequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double() for _ in range(3)]
    y = X
    for i, field in enumerate(fields):
        y = NeuralODE(field, (i / 3, (i + 1) / 3), **TIGHT)(y)
    together = NeuralODE(Stacked(fields), **TIGHT)
    assert (together(X) - y).abs().max().item() < BOUND
    assert together.solve(X).stats.forward.rejected <= 3  # the jumps are known, not found


def test_a_network_of_time_computes_the_parameters() -> None:
    """theta + h(t) = 0.4 + 3 t: y(1) = x exp(0.4 + 1.5)."""
    field = HyperNetwork(rate(0.4), filled(nn.Linear(1, 1, bias=False), weight=[[3.0]]))
    end = NeuralODE(field, **TIGHT)(X[:, :1])
    assert (end - X[:, :1] * math.exp(1.9)).abs().max().item() < 3 * BOUND  # grows by exp(1.9)
    gradients = torch.autograd.grad(end.sum(), list(field.parameters()))
    expected = X[:, 0].sum().item() * math.exp(1.9)
    assert [g.item() for g in gradients] == pytest.approx([expected, expected / 2], abs=10 * BOUND)


def test_a_network_of_the_input_computes_the_parameters_of_each_sample() -> None:
    h = filled(nn.Linear(1, 1), weight=[[2.0]], bias=[0.1])
    ode = NeuralODE(ConditionalHyperNetwork(rate(0.4)), condition=h, **TIGHT)
    x = X[:, :1]
    assert (ode(x) - x * torch.exp(0.5 + 2 * x)).abs().max().item() < 30 * BOUND  # grows by exp(2.7)
    f = TimeSequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    moves = torch.linspace(-1, 1, 3 * parameters_size(f), dtype=F64).reshape(3, -1)
    together = ConditionalHyperNetwork(f)(torch.tensor(0.0), X, moves)
    for i in range(3):
        twin = TimeSequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
        flat = nn.utils.parameters_to_vector(f.parameters()) + moves[i]
        nn.utils.vector_to_parameters(flat, twin.parameters())
        torch.testing.assert_close(together[i], twin(torch.tensor(0.0), X[i]), rtol=1e-14, atol=1e-14)


# ----------------------------------------------------------------------------------------- the input as control


def test_data_control_reflects_without_augmentation() -> None:
    """y' = -2 u with u = x: x -> -x, whose trajectories cross."""
    field = DataControl(TimeSequential(filled(nn.Linear(2, 1, bias=False), weight=[[0.0, -2.0]])))
    x = torch.linspace(-2, 2, 5, dtype=F64)[:, None].requires_grad_()
    end = NeuralODE(field, condition=nn.Identity(), **TIGHT)(x)
    assert (end + x).abs().max().item() < BOUND
    (gradient,) = torch.autograd.grad(end.sum(), x)  # through the state, 1, and through the control, -2
    assert (gradient + 1).abs().max().item() < BOUND


def test_every_sample_is_integrated_to_its_own_depth() -> None:
    """y' = cos(t) y to T = g(x), negative ones backward: y = x exp(sin T), dy/dT = cos(T) y."""
    depth = torch.tensor([[0.3], [2.0], [-1.1]], dtype=F64, requires_grad=True)
    field = AdaptiveDepth(lambda t, y: torch.cos(t) * y)
    end = NeuralODE(field, condition=lambda x: depth, **TIGHT)(X)
    expected = X * torch.exp(torch.sin(depth))
    assert (end - expected).abs().max().item() < BOUND
    (gradient,) = torch.autograd.grad(end.sum(), depth)
    assert (gradient - (torch.cos(depth) * expected).sum(-1, keepdim=True)).abs().max().item() < 3 * BOUND
    each = [NeuralODE(lambda t, y: torch.cos(t) * y, (0.0, d), **TIGHT)(x) for d, x in zip(depth[:, 0], X, strict=True)]
    assert (end - torch.stack(each)).abs().max().item() < BOUND


def test_depth_of_trees_and_of_one_number() -> None:
    def f(t: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"a": -y["a"], "b": (torch.cos(t) if t.ndim else torch.cos(t).expand(3)) * y["b"]}

    tree = {"a": X, "b": X[:, 0]}
    for depth in (torch.tensor([0.3, 2.0, 1.1], dtype=F64), torch.tensor([[0.7]], dtype=F64)):
        end = NeuralODE(AdaptiveDepth(f), condition=lambda x, d=depth: d, **TIGHT)(tree)
        each = depth.reshape(-1)
        assert (end["a"] - X * torch.exp(-each)[:, None]).abs().max().item() < BOUND
        assert (end["b"] - X[:, 0] * torch.exp(torch.sin(each))).abs().max().item() < BOUND


def test_bad_input_is_named() -> None:
    t, times = torch.tensor(0.5, dtype=F64), torch.tensor([[0.5], [0.5], [0.5]], dtype=F64)
    two = [rate(1.0), rate(2.0)]
    cases = [
        (lambda: Fourier(-1), "Fourier of -1 functions"),
        (lambda: Polynomial(0), "Polynomial of 0 functions"),
        (lambda: Polynomial(2, span=(1.0, 1.0)), "span ="),
        (lambda: ConcatSquash(nn.Tanh()), "layer is a Tanh"),
        (lambda: Stacked([]), "fields is empty"),
        (lambda: Stacked([nn.Linear(1, 1), nn.Linear(2, 2)]), "fields differ"),
        (lambda: Stacked([nn.BatchNorm1d(2), nn.BatchNorm1d(2)]), "buffers"),
        (lambda: Stacked(two, ends=[0.1, 0.2]), "ends ="),
        (lambda: Stacked(two)(times, X[:, :1]), "one time for all samples"),
        (lambda: HyperNetwork(rate(1.0), nn.Linear(1, 2).double())(t, X[:, :1]), r"h returned shape \(2,\)"),
        (lambda: HyperNetwork(rate(1.0), nn.Linear(1, 1))(times, X[:, :1]), "one time for all samples"),
        (lambda: AdaptiveDepth(lambda t, y: y)(t, X, torch.ones(2)), r"the depth is \(2,\)"),
        (lambda: AdaptiveDepth(lambda t, y: y)(t, X, 2.0), "the depth is float"),
        (lambda: DataControl(3), "f is a int"),
    ]
    for make, message in cases:
        with pytest.raises(pynode.InputError, match=message):
            make()
