"""Torch models in Lux and DiffEqFlux against torch itself."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import pynode
from pynode.errors import InputError, SolveError, UnsupportedError
from pynode.julia import LuxLayer, neural_ode, register_lux, to_lux
from pynode.julia.lux import _array, _tensor
from pynode.julia.lux_convert import layer_of
from pynode.julia.lux_layers import augment, chain, concat_time, elementwise, parameter_paths

ACTIVATIONS = [
    nn.Tanh(),
    nn.Sigmoid(),
    nn.ReLU(),
    nn.ReLU6(),
    nn.LeakyReLU(0.2),
    nn.ELU(0.7),
    nn.CELU(1.3),
    nn.SELU(),
    nn.GELU(),
    nn.GELU(approximate="tanh"),
    nn.SiLU(),
    nn.Mish(),
    nn.Softplus(),
    nn.Softplus(2.0, 3.0),
    nn.Softsign(),
    nn.LogSigmoid(),
    nn.Tanhshrink(),
    nn.Softshrink(0.3),
    nn.Hardshrink(0.3),
    nn.Threshold(0.1, -2.0),
    nn.Hardtanh(-0.5, 2.0),
    nn.Hardsigmoid(),
    nn.Hardswish(),
    nn.Identity(),
]


class ConcatTime(nn.Module):
    """A wrapper as the literature has it: the time as one more channel of the input of ``inner``."""

    def __init__(self, inner: nn.Module, dim: int) -> None:
        super().__init__()
        self.inner = inner
        self.dim = dim

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        time = t.to(y) * torch.ones_like(y.narrow(self.dim, 0, 1))
        return self.inner(torch.cat((y, time), self.dim))


class Augment(nn.Module):
    def __init__(self, channels: int, dim: int = -1) -> None:
        super().__init__()
        self.channels = channels
        self.dim = dim

    def forward(self, y: Tensor) -> Tensor:
        shape = list(y.shape)
        shape[self.dim] = self.channels
        return torch.cat((y, y.new_zeros(shape)), self.dim)


register_lux(ConcatTime, lambda m, convert: chain([concat_time(m.dim), convert(m.inner, "inner")]))
register_lux(Augment, lambda m, convert: augment(m.channels, m.dim))


class Field(nn.Module):
    """A field of the user's own, as pynode.solve takes it. Smooth: dense output across a kink is no good."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Linear(3, width)
        self.net = nn.Sequential(nn.Linear(width, width), nn.Softplus(), nn.Linear(width, 2, bias=False))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        time = t.expand(y.shape[0], 1)
        hidden = torch.tanh(self.first(torch.cat([time, y**3], dim=-1)))
        return 0.5 * self.net(nn.functional.softplus(hidden, 2.0)) - 0.1


class Autonomous(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))


def images() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(4, 6, (3, 5), stride=(1, 2), padding=(2, 1), dilation=(2, 1), bias=False),
        nn.GroupNorm(3, 6),
        nn.SiLU(),
        nn.Conv2d(6, 4, (2, 3), padding="same", groups=2),
    )


def convolutions() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 3, padding=1))


def signals() -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(3, 5, 4, stride=2, padding=1), nn.ReLU(), nn.Conv1d(5, 2, 3, padding="valid"))


def nested() -> nn.Sequential:
    inner = nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.GELU(), nn.Linear(8, 3)))
    return nn.Sequential(Augment(2), inner, nn.Sequential(), nn.Softplus())


MODELS = {
    "linear": (lambda: nn.Linear(2, 3, bias=False), (5, 2)),
    "mlp": (mlp, (7, 2)),
    "mlp, three dimensions": (mlp, (3, 4, 2)),
    "images": (images, (2, 4, 9, 8)),
    "signals": (signals, (3, 3, 11)),
    "nested": (nested, (5, 2)),
    "augmented images": (lambda: nn.Sequential(Augment(2, 1), nn.Conv2d(3, 1, 3)), (2, 1, 5, 6)),
}


def randomised(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Every parameter drawn anew: weights that start at 0 or 1 would hide a mistake."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) / max(p[0].numel(), 1) ** 0.5)
    return model.to(dtype)


def close(actual: Tensor, expected: Tensor, scale: float = 100.0) -> None:
    """To rounding: sums of at most some 60 products, a handful of layers."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    bound = scale * torch.finfo(expected.dtype).eps * expected.abs().max()
    assert (actual - expected).abs().max() <= bound


each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


# What needs no Julia.


def test_source_reads_as_lux() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Tanh(), nn.Conv2d(3, 4, (1, 2), padding=(0, 1))))
    assert layer_of(model).source() == (
        "Chain(\n"
        "    Dense(2 => 3),\n"
        "    Chain(\n"
        "        Activation(tanh),\n"
        "        Conv((2, 1), 3 => 4; stride = (1, 1), pad = (1, 1, 0, 0), dilation = (1, 1), groups = 1, "
        "cross_correlation = true),\n"
        "    ),\n"
        ")"
    )


def test_custom_forward_is_followed() -> None:
    layer = layer_of(Field())
    assert layer.timed
    assert [child.code for child in layer.children if not child.children] == [
        "Activation(y -> y^3)",
        "ConcatTime(-1; before = true)",
        "Dense(3 => 16)",
        "Activation(tanh)",
        "Activation(softplus_above, 2.0, 20.0)",
        "Activation((y, c) -> c * y, 0.5)",
        "Activation(-, 0.1)",
    ]
    assert [path for path, *_ in parameter_paths(layer)] == [
        "layer_3.weight",
        "layer_3.bias",
        "layer_6.layer_1.weight",
        "layer_6.layer_1.bias",
        "layer_6.layer_3.weight",
    ]


class Residual(nn.Module):
    def forward(self, y: Tensor) -> Tensor:
        return y + torch.tanh(y)


class TwoTimes(nn.Module):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(y) * t


class Branching(nn.Module):
    def forward(self, y: Tensor) -> Tensor:
        return y if y.sum() > 0 else -y


class Keyworded(nn.Module):
    def forward(self, y: Tensor, *, scale: float = 1.0) -> Tensor:
        return scale * y


class Direct(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, y: Tensor) -> Tensor:
        return self.scale * y


class Louder(nn.Linear):
    def forward(self, y: Tensor) -> Tensor:
        return 2 * super().forward(y)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.BatchNorm1d(2), "BatchNorm1d"),
        (nn.Dropout(0.5), "Dropout"),
        (nn.Flatten(), "Flatten"),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), "Conv2d"),
        (Residual(), "Residual"),
        (TwoTimes(), "TwoTimes"),
        (Branching(), "Branching"),
        (Keyworded(), "Keyworded"),
        (Direct(), "Direct"),
        (Louder(2, 2), "Louder"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_unsupported_modules_are_named_with_their_path(module: nn.Module, name: str) -> None:
    model = nn.Sequential(nn.Tanh(), nn.Sequential(nn.Identity(), module))
    with pytest.raises(UnsupportedError, match=rf"{name} at 1\.1 .*register_lux"):
        to_lux(model)


def test_hooks_are_refused() -> None:
    model = mlp()
    model[2].register_forward_hook(lambda module, args, output: 2 * output)
    with pytest.raises(UnsupportedError, match=r"Linear at 2 has hooks"):
        to_lux(model)


def test_tied_and_computed_weights_are_refused() -> None:
    shared = nn.Linear(2, 2)
    with pytest.raises(UnsupportedError, match=r"'0\.weight' is used twice"):
        to_lux(nn.Sequential(shared, nn.Tanh(), shared))
    with pytest.raises(UnsupportedError, match="computed from parameters"):
        to_lux(nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2))))


def test_dtypes_that_julia_would_promote_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="bfloat16"):
        to_lux(mlp().bfloat16())
    model = mlp()
    model[2].double()
    with pytest.raises(UnsupportedError, match=r"float32.*float64|float64.*float32"):
        to_lux(model)


def test_register_wants_a_module_class() -> None:
    with pytest.raises(InputError, match=r"subclass of torch\.nn\.Module"):
        register_lux(torch.tanh, lambda module, convert: elementwise("tanh"))


def test_a_registered_class_speaks_for_subclasses_with_its_forward() -> None:
    class Smaller(Augment):
        pass

    class Other(Augment):
        def forward(self, y: Tensor) -> Tensor:
            return super().forward(y) + 1

    assert layer_of(Smaller(1)).code == "Augment(1, -1)"
    with pytest.raises(UnsupportedError, match="Other"):
        layer_of(Other(1))


# With Julia.


@pytest.mark.julia
@each_dtype
@pytest.mark.parametrize("name", MODELS)
def test_forward_agrees(name: str, dtype: torch.dtype) -> None:
    make, shape = MODELS[name]
    model = randomised(make(), dtype)
    y = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(5))
    close(to_lux(model)(y), model(y).detach())


@pytest.mark.julia
@each_dtype
def test_activations_agree(dtype: torch.dtype) -> None:
    y = torch.cat((torch.linspace(-25.0, 25.0, 301, dtype=dtype), torch.tensor([0.3, -0.3, 0.1, 3.0], dtype=dtype)))
    for module in ACTIVATIONS:
        actual = to_lux(nn.Sequential(module).to(dtype))(y) if dtype == torch.float32 else _exported(module, dtype)(y)
        expected = module(y)
        # Cancellation in e.g. x - tanh(x) is of the size of x, not of the result.
        bound = 20 * torch.finfo(dtype).eps * torch.maximum(expected.abs(), torch.clamp(y.abs(), max=1.0))
        assert actual.dtype == dtype
        assert ((actual - expected).abs() <= bound).all(), module


def _exported(module: nn.Module, dtype: torch.dtype):
    """An activation has no parameters to tell the dtype by: a layer that does nothing brings them."""
    unit = nn.Linear(1, 1, bias=False, dtype=dtype)
    with torch.no_grad():
        unit.weight.fill_(1.0)
    lux = to_lux(nn.Sequential(unit, module))
    return lambda y: lux(y[:, None])[:, 0]


@pytest.mark.julia
def test_fields_with_time_agree() -> None:
    y = torch.randn(6, 2, dtype=torch.float64)
    for model in (
        randomised(Field(), torch.float64),
        randomised(Autonomous(mlp()), torch.float64),
        randomised(ConcatTime(nn.Sequential(nn.Linear(3, 5), nn.Tanh()), -1), torch.float64),
    ):
        lux = to_lux(model)
        t = torch.tensor(0.37, dtype=torch.float64)
        close(lux(t, y) if lux.takes_time else lux(y), model(t, y).detach())
    model = randomised(ConcatTime(nn.Conv2d(3, 2, 3, padding=1), 1), torch.float64)
    y = torch.randn(2, 2, 4, 5, dtype=torch.float64)
    close(to_lux(model)(0.37, y), model(torch.tensor(0.37, dtype=torch.float64), y).detach())


@pytest.mark.julia
def test_strided_input_and_wrong_input() -> None:
    model = randomised(mlp(), torch.float64)
    lux = to_lux(model)
    y = torch.randn(2, 7, dtype=torch.float64).T
    close(lux(y), model(y).detach())
    with pytest.raises(InputError, match="float32"):
        lux(y.float())
    with pytest.raises(InputError, match="2 arguments"):
        lux(0.0, y)


@pytest.mark.julia
@pytest.mark.parametrize("name", ["mlp", "images", "signals", "nested"])
def test_weights_go_back(name: str) -> None:
    make, _ = MODELS[name]
    model = randomised(make(), torch.float64)
    other = make().double()
    to_lux(model).load_into(other)
    for expected, actual in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(expected, actual)


@pytest.mark.julia
def test_weights_go_back_only_where_they_fit() -> None:
    lux = to_lux(mlp())
    with pytest.raises(InputError, match=r"no parameter '0\.weight'"):
        lux.load_into(nn.Linear(2, 16))
    target = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 3))
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(InputError, match=r"\(3, 16\) '2\.weight'"):
        lux.load_into(target)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


@pytest.mark.julia
def test_frozen_parameters_stay_out_of_training() -> None:
    model = randomised(mlp(), torch.float64)
    model[0].weight.requires_grad_(False)
    lux = to_lux(model)
    y = torch.randn(3, 2, dtype=torch.float64)
    close(lux(y), model(y).detach())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert len(lux.parameters) == trained
    other = mlp().double()
    lux.load_into(other)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


TIMES = [0.0, 0.4, 1.0]

FIELDS = {
    "mlp": (lambda: Autonomous(mlp()), (4, 2)),
    "time": (Field, (4, 2)),
    "images": (lambda: ConcatTime(convolutions(), 1), (2, 2, 4, 5)),
}


def check_solution(ode, field: nn.Module, y0: Tensor, rtol: float, atol: float) -> None:
    """As good as the same method is in torch, whose steps are others: the error of either against the truth."""
    times = torch.tensor(ode.t, dtype=torch.float64)
    exact = copy.deepcopy(field).double()
    with torch.no_grad():
        truth = pynode.solve(exact, y0.double(), times, rtol=1e-12, atol=1e-13).ys
        ours = pynode.solve(field, y0, times, algorithm=pynode.Tsit5(), rtol=rtol, atol=atol).ys
    actual = ode(y0)
    assert actual.shape == ours.shape
    assert actual.dtype == y0.dtype
    error = float((ours.double() - truth).abs().max())
    rounding = torch.finfo(y0.dtype).eps * float(truth.abs().max())
    assert float((actual.double() - truth).abs().max()) <= 10 * error + 100 * rounding


@pytest.mark.julia
@each_dtype
@pytest.mark.parametrize("name", FIELDS)
def test_solution_agrees(name: str, dtype: torch.dtype) -> None:
    make, shape = FIELDS[name]
    field = randomised(make(), dtype)
    y0 = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(5))
    rtol, atol = (1e-5, 1e-6) if dtype == torch.float32 else (1e-9, 1e-10)
    for times in (TIMES, [1.0, 0.3, -0.2]):
        check_solution(neural_ode(field, times, algorithm="Tsit5", rtol=rtol, atol=atol), field, y0, rtol, atol)


def gradients(ode, y0: Tensor, parameters) -> tuple[Tensor, list[Tensor]]:
    """Of the sum of squares at all save times: with respect to y0, and a model's parameters in torch's order."""
    import juliacall

    pull = juliacall.Main.seval(
        "(import Zygote; (layer, ps, st, y0) -> "
        "Zygote.gradient((p, y) -> sum(abs2, stack(first(layer(y, p, st)).u)), ps, y0))"
    )
    dp, dy = pull(ode.layer, ode.parameters, ode.states, _array(y0))
    holder = copy.deepcopy(parameters)
    ode.load_into(holder, dp)
    return _tensor(dy), [p.detach() for p in holder.parameters()]


# Zygote compiles a minute or two for every pair: the others are there, and slow.
_PAIRS = [
    ("mlp", "GaussAdjoint"),
    ("mlp", "InterpolatingAdjoint"),
    ("time", "GaussAdjoint"),
    *(
        pytest.param(*pair, marks=pytest.mark.slow)
        for pair in (("mlp", "QuadratureAdjoint"), ("mlp", "BacksolveAdjoint"), ("images", "InterpolatingAdjoint"))
    ),
]


@pytest.mark.julia
@pytest.mark.parametrize(("name", "sensealg"), _PAIRS)
def test_gradients_agree(name: str, sensealg: str) -> None:
    make, shape = FIELDS[name]
    field = randomised(make(), torch.float64)
    y0 = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).requires_grad_()
    ode = neural_ode(field, TIMES, rtol=1e-9, atol=1e-9, sensealg=sensealg)
    dy, dp = gradients(ode, y0, field)
    times = torch.tensor(TIMES, dtype=torch.float64)
    solved = pynode.solve(field, y0, times, rtol=1e-11, atol=1e-11)
    expected = torch.autograd.grad(solved.ys.square().sum(), [y0, *field.parameters()])
    scale = max(float(g.abs().max()) for g in expected)
    # QuadratureAdjoint's own default tolerance for the parameter integral is 1e-6 and 1e-3.
    bound = 1e-3 if sensealg == "QuadratureAdjoint" else 1e-6
    for actual, wanted in zip([dy, *dp], expected, strict=True):
        assert (actual - wanted).abs().max() <= bound * scale


@pytest.mark.julia
def test_trained_in_julia_used_in_torch() -> None:
    import juliacall

    field = randomised(Autonomous(mlp()), torch.float64)
    y0 = torch.randn(4, 2, dtype=torch.float64)
    ode = neural_ode(field, TIMES, rtol=1e-9, atol=1e-9)
    before = ode(y0)
    train = juliacall.Main.seval(
        """
        begin
            import Optimisers, Zygote
            function train_some_steps(layer, ps, st, y0)
                loss(p) = sum(abs2, first(layer(y0, p, st)).u[end] .- 1)
                state = Optimisers.setup(Optimisers.Adam(0.01), ps)
                losses = [loss(ps)]
                for _ in 1:5
                    state, ps = Optimisers.update(state, ps, Zygote.gradient(loss, ps)[1])
                    push!(losses, loss(ps))
                end
                return ps, losses
            end
        end
        """
    )
    ode.parameters, losses = train(ode.layer, ode.parameters, ode.states, _array(y0))
    assert losses[-1] < losses[0]
    after = ode(y0)
    assert (after - before).abs().max() > 1e-3
    untrained = copy.deepcopy(field.state_dict())
    ode.load_into(field)
    assert not any(torch.equal(value, untrained[name]) for name, value in field.state_dict().items())
    check_solution(ode, field, y0, rtol=1e-9, atol=1e-9)


@pytest.mark.julia
def test_a_solve_that_fails_raises() -> None:
    field = randomised(Autonomous(mlp()), torch.float64)
    with pytest.raises(SolveError, match="MaxIters") as raised:
        neural_ode(field, TIMES, rtol=1e-9, atol=1e-9, maxiters=3)(torch.ones(1, 2, dtype=torch.float64))
    assert raised.value.retcode is pynode.ReturnCode.MaxIters


@pytest.mark.julia
def test_layers_of_other_packages() -> None:
    """A registered class may name any layer of Lux, with its parameters."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.randn(3))

        def forward(self, y: Tensor) -> Tensor:
            return torch.sin(self.gain * y)

    def convert(module: Scaled, convert: object) -> LuxLayer:
        return chain([LuxLayer("Scale(3; use_bias = false)", {"weight": module.gain}), elementwise("sin")])

    register_lux(Scaled, convert)
    model = nn.Sequential(nn.Linear(2, 3), Scaled())
    y = torch.randn(4, 2)
    close(to_lux(model)(y), model(y).detach())
