"""torchdyn's API over pynode: its names, its examples, and what each of its classes computes."""

from __future__ import annotations

import copy
import functools
import importlib
import io
import math
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

import pynode
from pynode import julia
from pynode.compat.torchdyn.core import DEFunc, NeuralDE, NeuralODE, ODEProblem
from pynode.compat.torchdyn.models import (
    CNF,
    GNF,
    HNN,
    LNN,
    ConservativeLinearSNF,
    HybridNeuralDE,
    autograd_trace,
    hutch_trace,
)
from pynode.compat.torchdyn.nn import (
    Augmenter,
    Chebychev,
    DataControl,
    DepthCat,
    Fourier,
    GalConv2d,
    GalLinear,
    GaussianRBF,
    MultiquadRBF,
    Polynomial,
    VanillaRBF,
)

TIGHT = {"atol": 1e-10, "rtol": 1e-10, "atol_adjoint": 1e-10, "rtol_adjoint": 1e-10}
SENSITIVITIES = ("autograd", "adjoint", "interpolated_adjoint")

#: torchdyn 1.0.6: the names of each ``__all__``, of the functions its modules define, and what its tutorials import.
NAMES = {
    "core": "DEFunc SDEFunc NeuralODE NeuralDE NeuralSDE ODEProblem SDEProblem MultipleShootingProblem "
    "MultipleShootingLayer",
    "nn": "Augmenter DepthCat DataControl GalLayer GalLinear GalConv2d VanillaRBF MultiquadRBF GaussianRBF Fourier "
    "Polynomial Chebychev",
    "models": "CNF HNN LNN GNF ConservativeLinearSNF autograd_trace hutch_trace NeuralODE NeuralSDE ODEProblem "
    "MultipleShootingLayer",
    "numerics": "odeint odeint_symplectic odeint_mshooting odeint_hybrid sdeint Euler RungeKutta4 DormandPrince45 "
    "Tsitouras45 AsynchronousLeapfrog HyperEuler MSZero MSBackward Lorenz VanDerPol",
    "datasets": "ToyDataset generate_moons generate_spirals generate_concentric_spheres generate_gaussians "
    "generate_gaussians_spiral generate_diffeqml randnsphere",
    "utils": "plot_2d_boundary plot_2d_flows plot_traj_vf_1D plot_2D_depth_trajectory plot_2D_state_space "
    "plot_2D_space_depth plot_static_vector_field plot_3D_dataset",
}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("module", NAMES)
def test_public_names_import(module):
    found = importlib.import_module(f"pynode.compat.torchdyn.{module}")
    assert [name for name in NAMES[module].split() if not callable(getattr(found, name, None))] == []
    assert set(NAMES[module].split()) <= set(found.__all__)


def test_the_readme_example_makes_a_trainable_model():
    f = nn.Sequential(nn.Conv2d(1, 32, 3), nn.Softplus(), nn.Conv2d(32, 1, 3))
    nde = NeuralODE(f)
    assert sum(p.numel() for p in nde.parameters() if p.requires_grad) == 609
    # As it stands there, its field shrinks the image: torchdyn fails in an addition, pynode says what is wrong.
    with pytest.raises(pynode.FieldError, match=r"\(2, 1, 4, 4\).*\(2, 1, 8, 8\)"):
        nde(torch.randn(2, 1, 8, 8))


def test_the_readme_example_with_padding_trains():
    f = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Softplus(), nn.Conv2d(8, 1, 3, padding=1))
    nde = NeuralODE(f)
    x = torch.randn(4, 1, 6, 6)
    optimizer = torch.optim.Adam(nde.parameters(), lr=0.02)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        t_eval, y = nde(x)
        (y[-1] + x).square().mean().backward()
        losses.append((y[-1] + x).square().mean().item())
        optimizer.step()
    assert t_eval.tolist() == [0, 1]
    assert y.shape == (2, 4, 1, 6, 6)
    assert losses[-1] < losses[0] * 0.8


@pytest.mark.parametrize("sensitivity", SENSITIVITIES)
def test_the_quickstart_separates_moons(sensitivity):
    from pynode.compat.torchdyn.datasets import ToyDataset

    x, y = ToyDataset().generate(n_samples=128, noise=1e-1, dataset_type="moons")
    model = NeuralODE(nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)), "dopri5", sensitivity=sensitivity)
    t_span = torch.linspace(0, 1, 5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(30):
        optimizer.zero_grad()
        _, path = model(x, t_span)
        nn.CrossEntropyLoss()(path[-1], y).backward()
        optimizer.step()
    assert path.shape == (5, 128, 2)
    assert (path[-1].argmax(dim=1) == y).float().mean() > 0.8


def linear(weight, bias=None):
    layer = nn.Linear(len(weight[0]), len(weight), bias=bias is not None, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        if bias is not None:
            layer.bias.copy_(torch.tensor(bias))
    return layer


X = torch.tensor([[0.3], [-0.7]], dtype=torch.float64)


def test_depthcat_appends_the_time():
    """``x' = t``, whose solution is ``x0 + t^2 / 2``."""
    model = NeuralODE(nn.Sequential(DepthCat(1), linear([[0.0, 1.0]])), **TIGHT)
    t_span = torch.linspace(0, 2, 5, dtype=torch.float64)
    t_eval, path = model(X, t_span)
    torch.testing.assert_close(t_eval, t_span)
    torch.testing.assert_close(path, X + t_span[:, None, None] ** 2 / 2, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(model.vf(3, X), torch.full_like(X, 3.0))


@pytest.mark.parametrize("sensitivity", SENSITIVITIES)
def test_data_control_appends_the_input_and_passes_its_gradient(sensitivity):
    """``x' = x0``: ``x(1) = 2 x0``."""
    model = NeuralODE(nn.Sequential(DataControl(), linear([[0.0, 1.0]])), sensitivity=sensitivity, **TIGHT)
    x = X.clone().requires_grad_()
    path = model.trajectory(x, torch.linspace(0, 1, 3))
    torch.testing.assert_close(path[-1], 2 * x, rtol=1e-8, atol=1e-8)
    path[-1].sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(X, 2.0), rtol=1e-7, atol=0)
    assert model.controlled
    with pytest.raises(pynode.InputError, match=r"control=x0"):
        model.vf(0.0, X)
    torch.testing.assert_close(model.vf(0.0, X, control=X + 1), X + 1)


@pytest.mark.parametrize("sensitivity", SENSITIVITIES)
def test_higher_order_takes_the_highest_derivative(sensitivity):
    """``x'' = -x``: ``cos`` for ``(1, 0)``."""
    model = NeuralODE(linear([[-1.0, 0.0]]), order=2, sensitivity=sensitivity, **TIGHT)
    t = torch.linspace(0, 3, 7, dtype=torch.float64)
    path = model.trajectory(torch.tensor([[1.0, 0.0]], dtype=torch.float64), t)
    torch.testing.assert_close(path[:, 0], torch.stack([t.cos(), -t.sin()], dim=1), rtol=1e-8, atol=1e-8)


def test_augmenter_puts_zeros_or_features_first_or_last():
    x = torch.randn(3, 2)
    net = nn.Linear(2, 4)
    zeros = torch.zeros(3, 5)
    torch.testing.assert_close(Augmenter()(x), torch.cat([zeros, x], 1))
    torch.testing.assert_close(Augmenter(1, 5, order="last")(x), torch.cat([x, zeros], 1))
    torch.testing.assert_close(Augmenter(augment_func=net)(x), torch.cat([net(x), x], 1))
    torch.testing.assert_close(Augmenter(augment_func=net, order="last")(x), torch.cat([x, net(x)], 1))
    image = torch.randn(2, 3, 4, 4)
    assert Augmenter(1, 2)(image).shape == (2, 5, 4, 4)
    with pytest.raises(pynode.InputError, match="'first' or 'last'"):
        Augmenter(order="middle")


def plain(basis, n, s):
    """Each basis function by its formula, for one number ``n`` and one ``s``."""
    return {
        Fourier: [math.cos(n * s), math.sin(n * s)],
        Polynomial: [s**n],
        GaussianRBF: [math.exp(-((abs(s) * n / 2) ** 2))],
        VanillaRBF: [abs(s) * n / 2],
        MultiquadRBF: [1 + math.sqrt(1 + (abs(s) * n / 2) ** 2)],
    }[basis]


@pytest.mark.parametrize("basis", [Fourier, Polynomial, GaussianRBF, VanillaRBF, MultiquadRBF, Chebychev])
@pytest.mark.parametrize("bias", [True, False])
def test_galerkin_weights_are_the_expansion(basis, bias):
    deg, t = 4, 0.3
    layer = GalLinear(2, 3, bias=bias, expfunc=basis(deg)).double()
    assert layer(torch.rand(5, 3, dtype=torch.float64)).abs().max() == 0  # zero to begin with
    with torch.no_grad():
        layer.coeffs.normal_()
        layer.dilation.fill_(1.7)
        layer.shift.fill_(-0.2)
    s = 1.7 * t - 0.2
    expected = torch.zeros(len(layer.coeffs), dtype=torch.float64)
    for j in range(deg):
        n = j * deg / (deg - 1)  # torchdyn's numbers: linspace(0, deg, deg)
        values = [math.cos(j * math.acos(s))] if basis is Chebychev else plain(basis, n, s)
        for i, value in enumerate(values):
            expected += layer.coeffs[:, j, i].detach() * value
    x = torch.randn(5, 2, dtype=torch.float64)
    out = layer(torch.cat([x, torch.full((5, 1), t, dtype=torch.float64)], 1))
    shift = expected[6:] if bias else 0.0
    torch.testing.assert_close(out, x @ expected[:6].reshape(3, 2).T + shift)
    kernel = GalConv2d(2, 3, 1, bias=bias, expfunc=basis(deg)).double()
    kernel.load_state_dict(layer.state_dict())
    image = torch.cat([x[..., None, None], torch.full((5, 1, 1, 1), t, dtype=torch.float64)], 1)
    torch.testing.assert_close(kernel(image)[..., 0, 0], out)


def test_adaptive_bases_are_learned():
    f = nn.Sequential(DepthCat(1), GalLinear(2, 2, expfunc=GaussianRBF(3, adaptive=True)))
    nn.init.normal_(f[1].coeffs)
    _, path = NeuralODE(f, "rk4")(torch.randn(4, 2), torch.linspace(0.1, 1, 4))
    path[-1].square().sum().backward()
    # The first of them belongs to n = 0.
    assert f[1].expfunc.centers.grad[1:].abs().min() > 0
    assert f[1].expfunc.eps_scales.grad[1:].abs().min() > 0
    assert f[1].dilation.grad.abs() > 0


class Recovering(nn.Module):
    """A field with a parameter that it does not use, as torchdyn's Lorenz has one."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
        self.unused = nn.Linear(1, 1)

    def forward(self, t, x, args=None):
        return self.net(x) * (1 + t)


@pytest.mark.parametrize("solver", ["tsit5", "dopri5", "rk4"])
def test_sensitivities_agree(solver):
    f = Recovering()
    t_span = torch.linspace(0, 1, 5 if solver != "rk4" else 61, dtype=torch.float64)
    found = {}
    for sensitivity in SENSITIVITIES:
        x = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
        _, path = NeuralODE(f, solver, sensitivity=sensitivity, **TIGHT)(x, t_span)
        loss = path.square().mean(dim=0).sum()
        found[sensitivity] = torch.autograd.grad(loss, [x, *f.net.parameters()])
    # rk4 with 60 steps: (1 / 60)^4 = 8e-8, times the size of fifth derivatives.
    bound = 1e-7 if solver != "rk4" else 1e-6
    for sensitivity in SENSITIVITIES[1:]:
        for a, b in zip(found[sensitivity], found["autograd"], strict=True):
            torch.testing.assert_close(a, b, rtol=bound, atol=bound)


def test_the_integral_loss_has_one_gradient_whatever_the_sensitivity():
    """``L = sum x(1)^2 + int l``, against finite differences; the loss's own parameter included."""

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

        def forward(self, t, x):
            return self.scale * (x**2).sum(dim=1) * (1 + t)

    f, loss = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double(), Loss()
    x = torch.tensor([[0.4, -0.2], [0.1, 0.9]], dtype=torch.float64)
    t_span = torch.linspace(0, 1, 3, dtype=torch.float64)
    parameters = [*f.parameters(), loss.scale]

    def total():
        augmented = torch.cat([torch.zeros(2, 1, dtype=torch.float64), x], 1)
        end = NeuralODE(f, integral_loss=loss, **TIGHT)(augmented, t_span)[1][-1]
        return end[:, 0].sum() + end[:, 1:].square().sum()

    expected = torch.autograd.grad(total(), parameters)
    for sensitivity in SENSITIVITIES[1:]:
        end = NeuralODE(f, sensitivity=sensitivity, integral_loss=loss, **TIGHT)(x, t_span)[1][-1]
        found = torch.autograd.grad(end.square().sum(), parameters)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    eps = 1e-5
    with torch.no_grad():
        loss.scale += eps
        above = total()
        loss.scale -= 2 * eps
        below = total()
    assert ((above - below) / (2 * eps)).item() == pytest.approx(expected[-1].item(), rel=1e-5)


def test_integral_loss_and_higher_order():
    """torchdyn has no such field (its ``horder_forward`` is missing): ``x'' = -x`` with ``l = x^2``."""
    model = NeuralODE(linear([[-1.0, 0.0]]), order=2, integral_loss=lambda t, x: x[:, 0] ** 2, **TIGHT)
    end = model(torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64), torch.tensor([0.0, math.pi]))[1][-1]
    # The span is float32's pi, which is off by 9e-8; cos^2 at its end is 1.
    torch.testing.assert_close(end, torch.tensor([[math.pi / 2, -1.0, 0.0]]).double(), rtol=0, atol=3e-7)


@pytest.mark.parametrize("sensitivity", SENSITIVITIES)
@pytest.mark.parametrize("estimator", [None, autograd_trace, hutch_trace, "own"])
def test_cnf_of_a_linear_field(estimator, sensitivity):
    """``log p`` falls by the trace. With noise of ones, Hutchinson's estimate is the sum over the diagonal matrix."""
    net = linear([[0.5, 0.0], [0.0, -1.25]])
    noise = None
    if estimator is hutch_trace:
        noise = MultivariateNormal(torch.ones(2).double(), 1e-30 * torch.eye(2).double())
    given = (lambda x_out, x_in, noise=None: autograd_trace(x_out, x_in)) if estimator == "own" else estimator
    field = CNF(net, trace_estimator=given, noise_dist=noise)
    model = nn.Sequential(Augmenter(1, 1), NeuralODE(field, sensitivity=sensitivity, return_t_eval=False, **TIGHT))
    x = torch.randn(4, 2, dtype=torch.float64)
    end = model(x)[-1]
    torch.testing.assert_close(end[:, 0], torch.full((4,), 0.75, dtype=torch.float64), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(end[:, 1:], x * torch.tensor([0.5, -1.25]).double().exp(), rtol=1e-8, atol=1e-8)
    (gradient,) = torch.autograd.grad(end[:, 0].sum(), net.weight)
    product = torch.ones(2, 2) if estimator is hutch_trace else torch.eye(2)  # noise noise^T
    torch.testing.assert_close(gradient, -4 * product.double(), rtol=1e-7, atol=1e-7)


def test_hutchinson_noise_is_drawn_once_a_solve():
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    noise = MultivariateNormal(torch.zeros(2), torch.eye(2))
    options = {"atol": 1e-6, "rtol": 1e-6}
    model = NeuralODE(nn.Sequential(CNF(net, hutch_trace, noise)), "dopri5", **options)
    x = Augmenter(1, 1)(torch.randn(3, 2, dtype=torch.float64))
    first, second = model(x)[1][-1], model(x)[1][-1]
    assert (first[:, 0] - second[:, 0]).abs().min() > 1e-4  # another draw
    torch.testing.assert_close(first[:, 1:], second[:, 1:], rtol=1e-4, atol=1e-4)  # other steps, one path
    exact = NeuralODE(CNF(net), "dopri5", **options)(x)[1][-1]
    with torch.no_grad():
        draws = torch.stack([model(x)[1][-1][:, 0] for _ in range(40)])
    deviation = draws.std(dim=0) / math.sqrt(40)
    assert ((draws.mean(dim=0) - exact[:, 0]).abs() < 4 * deviation).all()
    with pytest.raises(pynode.InputError, match="noise_dist"):
        CNF(net, hutch_trace)


def test_hutch_trace_equals_its_formula():
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    matrix = torch.randn(3, 3, dtype=torch.float64)
    noise = torch.randn(5, 3, dtype=torch.float64)
    expected = torch.einsum("bi,ij,bj->b", noise, matrix, noise)
    torch.testing.assert_close(hutch_trace(x @ matrix, x, noise=noise), expected)
    torch.testing.assert_close(autograd_trace(x @ matrix, x), matrix.trace().expand(5))


def test_modules_of_the_users_own_find_time_control_and_noise_in_themselves():
    """What torchdyn's tutorials write themselves: layers with ``t``, and a CNF with ``noise``."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.t, self._control, self.noise = None, None, None
            self.trace_estimator = hutch_trace
            self.noise_dist = MultivariateNormal(torch.ones(1), 1e-30 * torch.eye(1))

        def forward(self, x):
            assert self.noise.shape == (2, 1)
            return torch.cat([0 * x[:, :1], self.t * self._control], dim=1)

    own = Own()
    start = torch.cat([torch.zeros(2, 1).double(), X], 1)
    end = NeuralODE(nn.Sequential(own), **TIGHT)(start)[1][-1]
    torch.testing.assert_close(end[:, 1:], 1.5 * X, rtol=1e-7, atol=0)
    assert own.t is own._control is own.noise is None


@pytest.mark.parametrize("sensitivity", SENSITIVITIES)
def test_args_reach_the_field_and_are_differentiated(sensitivity):
    scale = torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)
    model = NeuralODE(lambda t, x, args: args["scale"] * x, sensitivity=sensitivity, **TIGHT)
    end = model(X, args={"scale": scale})[1][-1]
    torch.testing.assert_close(end, X * math.exp(-0.5), rtol=1e-8, atol=0)
    end.sum().backward()
    torch.testing.assert_close(scale.grad, (X * math.exp(-0.5)).sum(), rtol=1e-7, atol=0)


def test_every_signature_is_understood():
    class Time(nn.Module):
        def forward(self, s, z):  # two arguments of any name: the time comes first
            return s * torch.ones_like(z)

    def shifted(t, x, u, args=None):
        return x + u

    for field, end in (
        (lambda x: x, math.e),
        (lambda t, x: x, math.e),
        (lambda t, x, args: x, math.e),
        (Time(), 1.5),
        (functools.partial(shifted, u=1.0), 2 * math.e - 1),
    ):
        path = NeuralODE(field, **TIGHT)(torch.ones(1, 1, dtype=torch.float64))[1]
        assert path[-1].item() == pytest.approx(end, rel=1e-8)
    for field in (lambda a, b, c: a, 3, lambda: 0):
        with pytest.raises(pynode.InputError, match=r"f\(x\), f\(t, x\) or f\(t, x, args\)"):
            NeuralODE(field)


def test_optimizable_parameters_are_those_of_the_model():
    layer = nn.Linear(1, 1).double()
    model = NeuralODE(lambda t, x: layer(x), sensitivity="adjoint", optimizable_params=layer.parameters())
    assert {id(p) for p in model.parameters()} == {id(p) for p in layer.parameters()}
    model(X)[1][-1].sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


def test_times_come_back_as_they_were_asked_for():
    model = NeuralODE(lambda x: -x, **TIGHT)
    t_span = torch.tensor([1.0, 0.25, 0.0], dtype=torch.float64)
    t_eval, path = model(X, t_span)
    torch.testing.assert_close(t_eval, t_span)
    torch.testing.assert_close(path[-1], X * math.e, rtol=1e-8, atol=0)
    t_eval, path = model(X, torch.linspace(0, 1, 5), save_at=torch.tensor([0.5, 1.0]))
    assert t_eval.tolist() == [0.5, 1.0]
    torch.testing.assert_close(path[0], X * math.exp(-0.5), rtol=1e-7, atol=0)
    model.t_span, model.return_t_eval = torch.linspace(0, 2, 3), False
    torch.testing.assert_close(model(X)[-1], X * math.exp(-2), rtol=1e-7, atol=0)
    assert NeuralDE is NeuralODE


def test_function_evaluations_are_counted_backward_ones_too():
    model = NeuralODE(nn.Linear(1, 1).double(), "rk4", sensitivity="adjoint")
    end = model(X, torch.linspace(0, 1, 4))[1][-1]
    forward = model.vf.nfe
    assert forward >= 12  # three steps of four
    end.sum().backward()
    assert model.vf.nfe > forward
    assert f"NFE: {model.vf.nfe}" in repr(model)
    model.vf.nfe = 0
    for _ in range(40):
        model(X, torch.linspace(0, 1, 4))
    assert model.vf.nfe == 40 * forward


def test_state_dict_has_torchdyns_names_and_restores():
    def make():
        f = nn.Sequential(DepthCat(1), GalLinear(2, 4, expfunc=Fourier(2)), nn.Tanh(), DataControl(), nn.Linear(6, 2))
        nn.init.normal_(f[1].coeffs)
        return NeuralODE(f, "rk4")

    model, other = make(), make()
    names = ["dilation", "shift", "coeffs"]
    assert list(model.state_dict()) == [*(f"vf.vf.vf.1.{n}" for n in names), "vf.vf.vf.4.weight", "vf.vf.vf.4.bias"]
    x = torch.randn(3, 2)
    expected = model(x)[1]
    assert not torch.equal(other(x)[1], expected)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for twin in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(x)[1], expected, rtol=0, atol=0)
    second = NeuralODE(nn.Linear(2, 1), order=2)
    torch.testing.assert_close(pickle.loads(pickle.dumps(second))(x)[1], second(x)[1], rtol=0, atol=0)


def test_one_model_in_several_threads():
    f = nn.Sequential(DataControl(), DepthCat(1), nn.Linear(5, 2)).double()
    model = NeuralODE(f, "rk4", sensitivity="interpolated_adjoint")
    inputs = [torch.randn(3, 2, dtype=torch.float64) for _ in range(4)]
    spans = [torch.linspace(k, k + 1, 30) for k in range(4)]
    expected = [torch.autograd.grad(model(x, t)[1].sum(), f[2].weight)[0] for x, t in zip(inputs, spans, strict=True)]
    found = [None] * 4

    def work(k):
        found[k] = torch.autograd.grad(model(inputs[k], spans[k])[1].sum(), f[2].weight)[0]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(DepthCat(1), GalLinear(2, 4, expfunc=Chebychev(3)), nn.Tanh(), nn.Linear(4, 2)),
        lambda: nn.Sequential(DepthCat(1), GalLinear(2, 2, expfunc=MultiquadRBF(3))),
        lambda: CNF(nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))),
        lambda: HNN(nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))),
        lambda: GNF(nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))),
    ],
    ids=["Galerkin", "RBF", "CNF", "HNN", "GNF"],
)
def test_fields_are_captured_for_julia(make):
    model = NeuralODE(make().double(), order=1)
    text = julia.source(model.vf, 0.25, torch.randn(3, 2, dtype=torch.float64), ({}, None, ()))
    assert "vjp_p!" in text


class Quadratic(nn.Module):
    """``(a x0^2 + b x1^2) / 2``, (batch, 1)."""

    def __init__(self, a, b):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([a, b], dtype=torch.float64))

    def forward(self, x):
        return (self.weights * x**2).sum(dim=-1, keepdim=True) / 2


@pytest.mark.parametrize("sensitivity", SENSITIVITIES)
@pytest.mark.parametrize("kind", ["HNN", "LNN", "GNF", "SNF"])
def test_fields_of_energies_have_their_solutions(kind, sensitivity):
    """Oscillators of frequency 2, ``(q, p)`` or ``(q, v)`` or turned by a matrix; and a relaxation."""
    field = {
        "HNN": lambda: HNN(Quadratic(2.0, 2.0)),
        "LNN": lambda: LNN(Quadratic(-4.0, 1.0)),
        "GNF": lambda: GNF(Quadratic(1.0, 3.0)),
        "SNF": lambda: ConservativeLinearSNF(
            Quadratic(1.0, 1.0), lambda x: torch.tensor([0.0, 3.0, -1.0, 0.0]).to(x).expand(len(x), 4)
        ),
    }[kind]()
    x0 = torch.tensor([[0.5, -0.2], [1.0, 0.3]], dtype=torch.float64)
    q, p = x0.T
    c, s = math.cos(2), math.sin(2)
    expected = {
        "HNN": [q * c + p * s, -q * s + p * c],
        "LNN": [q * c + p * s / 2, -2 * q * s + p * c],
        "GNF": [q * math.exp(-1), p * math.exp(-3)],
        "SNF": [q * c + p * s, -q * s + p * c],
    }[kind]
    end = NeuralODE(field, sensitivity=sensitivity, **TIGHT)(x0)[1][-1]
    torch.testing.assert_close(end, torch.stack(expected, dim=1), rtol=1e-8, atol=1e-8)
    end.square().sum().backward()
    found = next(field.parameters()).grad
    if kind == "GNF":
        torch.testing.assert_close(found, -2 * (torch.stack(expected, dim=1) ** 2).sum(dim=0), rtol=1e-6, atol=1e-8)
    assert found.abs().min() > 1e-9 or kind == "SNF"


@pytest.mark.parametrize("lstm", [False, True])
def test_hybrid_models_flow_after_each_jump(lstm):
    jump = (nn.LSTMCell if lstm else nn.GRUCell)(2, 3)
    x = torch.randn(5, 4, 2)
    still = HybridNeuralDE(NeuralODE(lambda t, h: 0 * h), jump, nn.Identity(), last_output=False)
    h = c = torch.zeros(4, 3)
    states = []
    for element in x:
        h, c = jump(element, (h, c)) if lstm else (jump(element, h), c)
        states.append(h)
    torch.testing.assert_close(still(x), torch.stack(states))
    halving = HybridNeuralDE(lambda h: h / 2, jump, nn.Identity(), reverse=True)
    h = c = torch.zeros(4, 3)
    for element in x.flip(0):
        h, c = jump(element, (h, c)) if lstm else (jump(element, h), c)
        h = h / 2
    torch.testing.assert_close(halving(x), h)


def test_defunc_is_a_field_for_pynode():
    f = DEFunc(nn.Sequential(DepthCat(1), linear([[0.0, 1.0]])))
    torch.testing.assert_close(pynode.solve(f, X, [0.0, 2.0]).ys[-1], X + 2, rtol=1e-4, atol=0)
    assert NeuralODE(f, "rk4").vf is f


def test_ode_problem_and_bad_input():
    t_eval, path = ODEProblem(lambda x: -x, "dopri5", atol=1e-9, rtol=1e-9).odeint(X, torch.linspace(0, 1, 2))
    torch.testing.assert_close(path[-1], X * math.exp(-1), rtol=1e-7, atol=0)
    assert t_eval.tolist() == [0, 1]
    with pytest.raises(pynode.InputError, match="one of autograd, adjoint, interpolated_adjoint"):
        NeuralODE(lambda x: x, sensitivity="adjoints")
    with pytest.raises(pynode.InputError, match=r"solver = 'tsit6'.*tsit5"):
        NeuralODE(lambda x: x, "tsit6")
    with pytest.raises(pynode.InputError, match="outside a field"):
        DepthCat(1)(X)
    with pytest.raises(pynode.InputError, match="None or '4th'"):
        NeuralODE(lambda x: x, interpolator="5th")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        *[("core", n) for n in ("NeuralSDE", "SDEFunc", "SDEProblem", "MultipleShootingProblem")],
        *[("core", "MultipleShootingLayer"), ("models", "LatentNeuralSDE")],
        *[("numerics", n) for n in ("sdeint", "odeint_hybrid", "odeint_mshooting", "MSZero", "MSBackward")],
        ("numerics", "ImplicitEuler"),
    ],
)
def test_what_is_not_offered_says_so(module, name):
    found = getattr(importlib.import_module(f"pynode.compat.torchdyn.{module}"), name)
    with pytest.raises(pynode.UnsupportedError, match=rf"no {name}.*Remedy"):
        found(lambda t, x: x, torch.ones(2), [0.0, 1.0])
