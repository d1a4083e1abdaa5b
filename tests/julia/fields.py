"""A zoo of fields for the Julia backend: small, deterministic, and between them using every operator it emits.

``FIELDS[name](dtype)`` is one of them in a precision. Both precisions hold the same numbers, all of which float32 can
hold, so that the float64 one is the reference of the float32 one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Made:
    """A field ready to be captured: ``f(t, y0, *args)``, at times that float32 can hold."""

    f: Callable[..., Any]
    y0: Any
    args: tuple[Any, ...] = ()
    times: tuple[float, float] = (0.375, 1.25)


class Draw:
    """Numbers and modules in one precision, the same in each."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.generator = torch.Generator().manual_seed(0)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=self.generator)).to(self.dtype)

    def positive(self, *shape: int) -> Tensor:
        """In (0.5, 1.5)."""
        return (0.5 + torch.rand(shape, generator=self.generator)).to(self.dtype)

    def parameter(self, *shape: int, scale: float = 0.5) -> nn.Parameter:
        return nn.Parameter(self.normal(*shape, scale=scale))

    def module(self, make: Callable[[], nn.Module]) -> nn.Module:
        """What ``make`` builds, with every parameter and buffer moved off its initial value."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = make()
        with torch.no_grad():
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
                if tensor.is_floating_point():
                    noise = 0.2 * torch.randn(tensor.shape, generator=self.generator)
                    tensor.add_(noise.abs() if "var" in name else noise)
        return module.to(self.dtype)


FIELDS: dict[str, Callable[[torch.dtype], Made]] = {}


def field(make: Callable[[Draw], Made]) -> Callable[[Draw], Made]:
    """Put a field into the zoo under the name of the function that makes it."""
    assert make.__name__ not in FIELDS
    FIELDS[make.__name__] = lambda dtype: make(Draw(dtype))
    return make


class Autonomous(nn.Module):
    """``net(y)``."""

    def __init__(self, net: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y)


def through(draw: Draw, y0: Tensor, *layers: Callable[[], nn.Module]) -> Made:
    """``y -> layers(y)``."""
    return Made(Autonomous(draw.module(lambda: nn.Sequential(*(x() for x in layers)))), y0)


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


def activated(draw: Draw, *activations: Callable[[], nn.Module]) -> Made:
    """A perceptron with each of the activations in turn, on a batch on both sides of every kink."""
    layers: list[Callable[[], nn.Module]] = []
    for activation in activations:
        layers += [lambda: nn.Linear(3, 3), activation]
    return through(draw, draw.normal(6, 3, scale=2.0), *layers, lambda: nn.Linear(3, 3))


# Linear maps and perceptrons


@field
def linear(draw: Draw) -> Made:
    return through(draw, draw.normal(4), lambda: nn.Linear(4, 4))


@field
def matrix_times_vector(draw: Draw) -> Made:
    matrix, offset = draw.parameter(3, 3), draw.parameter(3)
    return Made(lambda t, y: matrix @ y - y @ matrix + torch.dot(y, offset) * offset, draw.normal(3))


@field
def perceptron(draw: Draw) -> Made:
    layers = (lambda: nn.Linear(2, 20), nn.Tanh, lambda: nn.Linear(20, 20, bias=False), nn.Tanh)
    return through(draw, draw.normal(5, 2), *layers, lambda: nn.Linear(20, 2))


@field
def batch_of_batches(draw: Draw) -> Made:
    return through(draw, draw.normal(2, 3, 4), lambda: nn.Linear(4, 5), nn.Tanh, lambda: nn.Linear(5, 4))


@field
def activations_classic(draw: Draw) -> Made:
    return activated(draw, nn.Tanh, nn.ReLU, nn.Sigmoid, nn.LeakyReLU)


@field
def activations_exponential(draw: Draw) -> Made:
    return activated(draw, nn.ELU, nn.Softplus, nn.SELU, lambda: nn.Softplus(beta=2.0, threshold=1.0))


@field
def activations_gated(draw: Draw) -> Made:
    return activated(draw, nn.SiLU, nn.GELU, lambda: nn.GELU(approximate="tanh"), nn.Mish)


@field
def activations_piecewise(draw: Draw) -> Made:
    return activated(draw, nn.Hardtanh, nn.Softsign, Sine, nn.ReLU6, nn.PReLU)


@field
def activations_rare(draw: Draw) -> Made:
    return activated(draw, nn.CELU, nn.LogSigmoid, nn.Tanhshrink, nn.Hardswish)


@field
def activations_thresholds(draw: Draw) -> Made:
    return activated(draw, nn.Softshrink, nn.Hardshrink, lambda: nn.Threshold(0.1, 0.3), lambda: nn.Softmin(dim=-1))


@field
def gated_linear_unit(draw: Draw) -> Made:
    return through(draw, draw.normal(4, 3), lambda: nn.Linear(3, 6), nn.GLU)


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


@field
def nested_sequential(draw: Draw) -> Made:
    def block() -> nn.Module:
        return Residual(nn.Sequential(nn.LayerNorm(4), nn.Sequential(nn.Linear(4, 6), nn.SiLU()), nn.Linear(6, 4)))

    return through(draw, draw.normal(3, 4), block, nn.Identity, lambda: nn.Sequential(block(), block()))


@field
def gru(draw: Draw) -> Made:
    cell = draw.module(lambda: nn.GRUCell(2, 4))
    x = draw.normal(3, 2)
    return Made(lambda t, y: cell(x, y) - y, draw.normal(3, 4))


@field
def bilinear_and_fused(draw: Draw) -> Made:
    pair, matrix = draw.module(lambda: nn.Bilinear(3, 3, 3)), draw.parameter(3, 3)

    def f(t: Tensor, y: Tensor) -> Tensor:
        fused = torch.addmm(y, y, matrix, beta=0.5, alpha=2.0) + torch.addcmul(y, y, y.sin(), value=0.3)
        return pair(y, y.cos()) + torch.lerp(fused, y, 0.25) + torch.addcdiv(y, y, 2 + y.cos(), value=-0.1)

    return Made(f, draw.normal(4, 3))


# Normalisation and attention


@field
def layer_norm(draw: Draw) -> Made:
    return through(draw, draw.normal(3, 5), lambda: nn.LayerNorm(5), nn.Tanh, lambda: nn.LayerNorm((3, 5)))


@field
def root_mean_square_norm(draw: Draw) -> Made:
    return through(draw, draw.normal(3, 5), lambda: nn.RMSNorm(5), lambda: nn.Linear(5, 5))


@field
def group_norm(draw: Draw) -> Made:
    return through(draw, draw.normal(2, 6, 5), lambda: nn.GroupNorm(3, 6), nn.ReLU, lambda: nn.GroupNorm(2, 6))


@field
def instance_norm(draw: Draw) -> Made:
    layers = (lambda: nn.InstanceNorm2d(3, affine=True), nn.Tanh, lambda: nn.InstanceNorm2d(3))
    return through(draw, draw.normal(2, 3, 4, 3), *layers)


@field
def batch_norm_in_eval(draw: Draw) -> Made:
    made = through(draw, draw.normal(4, 3), lambda: nn.BatchNorm1d(3), nn.Tanh, lambda: nn.BatchNorm1d(3, affine=False))
    made.f.eval()
    return made


class Attention(nn.Module):
    """Softmax attention with two heads, by einsum and bmm."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        batch, length, _ = y.shape
        q, k, v = (x.view(batch, length, 2, 2).transpose(1, 2) for x in self.qkv(y).chunk(3, dim=-1))
        weights = torch.softmax(torch.einsum("bhid,bhjd->bhij", q, k) * 2**-0.5, dim=-1)
        mixed = torch.bmm(weights.flatten(0, 1), v.flatten(0, 1)).view(batch, 2, length, 2)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, 4))


@field
def attention(draw: Draw) -> Made:
    return Made(draw.module(Attention), draw.normal(2, 3, 4))


@field
def scaled_dot_product(draw: Draw) -> Made:
    weight = draw.parameter(4, 4)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(y @ weight, y, y, is_causal=True)

    return Made(f, draw.normal(2, 3, 4))


@field
def softmaxes(draw: Draw) -> Made:
    weight = draw.parameter(4, 4)

    def f(t: Tensor, y: Tensor) -> Tensor:
        z = y @ weight
        return torch.softmax(z, 0) + torch.log_softmax(z, -1) + z * torch.logsumexp(z, 1, keepdim=True)

    return Made(f, draw.normal(3, 4))


# Where f's tensors come from, and what shape the state has


@field
def frozen_parameters(draw: Draw) -> Made:
    made = through(draw, draw.normal(3, 2), lambda: nn.Linear(2, 6), nn.Tanh, lambda: nn.Linear(6, 2))
    made.f.net[0].requires_grad_(False)
    return made


class Buffered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 3))
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("chosen", torch.tensor([2, 0, 0]))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return (y - self.mean) @ self.weight + y[:, self.chosen]


@field
def buffers(draw: Draw) -> Made:
    return Made(draw.module(Buffered), draw.normal(4, 3))


@field
def shared_parameter(draw: Draw) -> Made:
    def make() -> nn.Module:
        first, second = nn.Linear(3, 3), nn.Linear(3, 3)
        second.weight = first.weight
        return nn.Sequential(first, nn.Tanh(), second)

    return Made(Autonomous(draw.module(make)), draw.normal(2, 3))


@field
def module_used_twice(draw: Draw) -> Made:
    net = draw.module(lambda: nn.Linear(3, 3))
    return Made(Autonomous(nn.Sequential(net, nn.Tanh(), net)), draw.normal(2, 3))


@field
def unused_parameter(draw: Draw) -> Made:
    made = through(draw, draw.normal(2, 3), lambda: nn.Linear(3, 3), nn.Tanh)
    made.f.left_out = draw.parameter(4)
    return made


@field
def closure_over_tensors(draw: Draw) -> Made:
    weight, constant = draw.normal(3, 3).requires_grad_(), draw.normal(3)
    return Made(lambda t, y: torch.tanh(y @ weight) * constant + torch.as_tensor(0.5), draw.normal(2, 3))


@field
def captured_tensor_with_history(draw: Draw) -> Made:
    made_outside = 2.0 * draw.normal(3, 3).requires_grad_()  # exact, so the same in both precisions
    return Made(lambda t, y: y @ made_outside, draw.normal(2, 3))


@field
def arguments(draw: Draw) -> Made:
    net = draw.module(lambda: nn.Linear(3, 3))
    options = {"shift": draw.normal(3), "rates": [draw.normal(3).requires_grad_(), 0.5], "mode": "damped"}

    def f(t: Tensor, y: Tensor, gain: Tensor, options: dict[str, Any], power: int) -> Tensor:
        damping = options["rates"][0] * options["rates"][1] if options["mode"] == "damped" else 0.0
        return gain * net(y + options["shift"]) ** power - damping * y

    return Made(f, draw.normal(2, 3), (draw.normal().requires_grad_(), options, 2))


@field
def no_parameters(draw: Draw) -> Made:
    return Made(lambda t, y: torch.sin(y) - 0.1 * y, draw.normal(3))


@field
def scalar_state(draw: Draw) -> Made:
    rate = draw.parameter()
    return Made(lambda t, y: rate * y * (1 - y) + torch.cos(t), draw.normal())


@field
def tuple_state(draw: Draw) -> Made:
    net = draw.module(lambda: nn.Linear(3, 3))

    def f(t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        position, weight = y
        return net(position).tanh() * weight, -(position**2).sum(-1, keepdim=True)

    return Made(f, (draw.normal(2, 3), draw.normal(2, 1)))


@field
def nested_state(draw: Draw) -> Made:
    matrix = draw.parameter(2, 3)

    def f(t: Tensor, y: dict[str, Any]) -> dict[str, Any]:
        a, (b, c) = y["a"], y["rest"]
        return {"a": matrix @ b, "rest": [b * a.mean(), c + t]}

    return Made(f, {"a": draw.normal(2), "rest": [draw.normal(3), draw.normal()]})


@field
def detached_inside(draw: Draw) -> Made:
    weight = draw.parameter(3)

    def f(t: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            scale = y.abs().mean()
        return weight * y * scale + y.detach() ** 2 * weight.detach() * t

    return Made(f, draw.normal(3))


@field
def constant_field(draw: Draw) -> Made:
    return Made(lambda t, y: torch.ones_like(y), draw.normal(3))


@field
def identity_field(draw: Draw) -> Made:
    return Made(lambda t, y: y, draw.normal(3))


@field
def parameter_as_field(draw: Draw) -> Made:
    velocity = draw.parameter(3)
    return Made(lambda t, y: velocity.expand(2, 3), draw.normal(2, 3))
