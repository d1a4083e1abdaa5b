"""Fields that put single families of operators to work: convolutions, elementwise functions, reductions, indexing."""

from __future__ import annotations

import torch
from fields import Draw, Made, field, through
from torch import Tensor, nn

# Convolutions


@field
def convolution_1d(draw: Draw) -> Made:
    layers = (
        lambda: nn.Conv1d(4, 6, 3, padding=1),
        nn.Tanh,
        lambda: nn.Conv1d(6, 4, 3, padding=2, dilation=2, groups=2, bias=False),
    )
    return through(draw, draw.normal(2, 4, 7), *layers)


@field
def convolution_1d_without_batch(draw: Draw) -> Made:
    return through(draw, draw.normal(2, 7), lambda: nn.Conv1d(2, 2, 3, padding="same"))


@field
def convolution_1d_down_and_up(draw: Draw) -> Made:
    layers = (
        lambda: nn.Conv1d(2, 4, 3, stride=2, padding=1),
        nn.ReLU,
        lambda: nn.ConvTranspose1d(4, 2, 3, stride=2, padding=1, output_padding=1),
    )
    return through(draw, draw.normal(2, 2, 8), *layers)


@field
def convolution_2d(draw: Draw) -> Made:
    layers = (
        lambda: nn.Conv2d(2, 4, 3, padding=1),
        nn.Softplus,
        lambda: nn.Conv2d(4, 4, (3, 1), padding=(2, 0), dilation=(2, 1), groups=4),
        lambda: nn.Conv2d(4, 2, 1),
    )
    return through(draw, draw.normal(2, 2, 5, 4), *layers)


@field
def convolution_2d_down_and_up(draw: Draw) -> Made:
    layers = (
        lambda: nn.Conv2d(1, 3, (2, 3), stride=(2, 1), padding=(0, 1), bias=False),
        nn.Tanh,
        lambda: nn.ConvTranspose2d(3, 1, (2, 3), stride=(2, 1), padding=(0, 1)),
    )
    return through(draw, draw.normal(2, 1, 4, 5), *layers)


@field
def transposed_convolution_with_groups(draw: Draw) -> Made:
    layers = (
        lambda: nn.ConvTranspose2d(4, 6, 3, padding=1, groups=2, dilation=1),
        lambda: nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"),
    )
    return through(draw, draw.normal(1, 4, 3, 4), *layers)


class ConvolutionInTime(nn.Module):
    """The block of the image classifiers: normalisation, and convolutions with the time as a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(2, 4) for _ in range(2))
        self.layers = nn.ModuleList(nn.Conv2d(5, 4, 3, padding=1) for _ in range(2))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.layers, strict=True):
            y = torch.relu(norm(y))
            y = layer(torch.cat([torch.ones_like(y[:, :1]) * t, y], 1))
        return y


@field
def convolution_block_with_time(draw: Draw) -> Made:
    return Made(draw.module(ConvolutionInTime), draw.normal(2, 4, 4, 3))


# Elementwise


@field
def trigonometry(draw: Draw) -> Made:
    a, b = draw.parameter(6), draw.parameter(6)

    def f(t: Tensor, y: Tensor) -> Tensor:
        inside = 0.9 * torch.tanh(y)
        angles = torch.asin(inside) + torch.acos(inside * a) + torch.atan(y) + torch.atan2(y, b)
        return angles + torch.sin(a * y) * torch.cos(b * y) + torch.tan(inside) + torch.hypot(y, a) + torch.sinc(y)

    return Made(f, draw.normal(6))


@field
def hyperbolics(draw: Draw) -> Made:
    a = draw.parameter(6)

    def f(t: Tensor, y: Tensor) -> Tensor:
        inside = 0.9 * torch.tanh(a * y)
        return torch.sinh(y) - torch.cosh(a * y) + torch.asinh(y) + torch.acosh(1.5 + y * y) + torch.atanh(inside)

    return Made(f, draw.normal(6))


@field
def exponentials_and_logarithms(draw: Draw) -> Made:
    a = draw.parameter(6)

    def f(t: Tensor, y: Tensor) -> Tensor:
        up = torch.exp(0.5 * y) + torch.expm1(a * y) + torch.exp2(y) + torch.logaddexp(y, a)
        size = 0.5 + y * y
        return up + torch.log(size) + torch.log1p(size) + torch.log2(size) * torch.log10(size) + torch.xlogy(y, size)

    return Made(f, draw.normal(6))


@field
def powers_and_roots(draw: Draw) -> Made:
    a, b = nn.Parameter(draw.positive(6)), nn.Parameter(draw.positive(6))

    def f(t: Tensor, y: Tensor) -> Tensor:
        size = 0.5 + torch.square(y)
        whole = y**3 - y**2 + y**5 + 1 / size + torch.reciprocal(a + size) + y**-1 + y**0
        return whole + torch.sqrt(size) * torch.rsqrt(a) + size**b + size**1.5 + 2**y + torch.pow(size, -0.5)

    return Made(f, draw.positive(6))


@field
def error_functions(draw: Draw) -> Made:
    a = draw.parameter(6)
    return Made(lambda t, y: torch.erf(a * y) + torch.erfc(y) * torch.special.ndtr(a), draw.normal(6))


@field
def choices(draw: Draw) -> Made:
    a = draw.parameter(8)

    def f(t: Tensor, y: Tensor) -> Tensor:
        z = torch.where(y > 0, a * y, torch.exp(y) - 1)
        z = torch.where((y < a) & ~(y <= -1) | (y == 0), z, 2.0) + (y >= 0.5) * y + (y != a).to(y.dtype)
        steps = torch.heaviside(y.detach(), a.detach())
        return z.clamp(-1.0, 1.5) + z.clamp(min=0.1) - y.masked_fill(y < -0.2, 0.7) + steps

    return Made(f, draw.normal(8))


@field
def extremes(draw: Draw) -> Made:
    a = draw.parameter(8)

    def f(t: Tensor, y: Tensor) -> Tensor:
        z = torch.maximum(y, a) - torch.minimum(y, 2 * a) + torch.clamp(y, min=a) + torch.fmax(y, t)
        return z + torch.abs(y) * torch.sign(a) + torch.relu(-y) + torch.clamp(y, max=t * a)

    return Made(f, draw.normal(8))


@field
def rounding(draw: Draw) -> Made:
    """Derivatives that are zero almost everywhere, and remainders."""
    a = draw.parameter(8)

    def f(t: Tensor, y: Tensor) -> Tensor:
        steps = torch.floor(y) + torch.ceil(2 * y) + torch.round(3 * y) + torch.trunc(y) + torch.frac(a * y)
        return a * steps + torch.remainder(y, 0.7) + torch.fmod(y, 0.3) + y.detach() // 0.4

    return Made(f, draw.normal(8))


@field
def kinds_of_numbers(draw: Draw) -> Made:
    """Integer and boolean tensors made on the way, and a passage through the other precision."""
    a = draw.parameter(5)

    def f(t: Tensor, y: Tensor) -> Tensor:
        order = torch.arange(5)
        grid = torch.linspace(0.0, 1.0, 5, dtype=y.dtype)
        mask = (order % 2 == 0).to(y.dtype)
        one_hot = nn.functional.one_hot(order[:3], 5).to(y.dtype).sum(0)
        full = torch.full_like(y, 0.3) + torch.zeros(5, dtype=y.dtype) + torch.eye(5, dtype=y.dtype) @ grid
        return a * y * mask + order * one_hot * y + full + (y > 0).sum() * grid

    return Made(f, draw.normal(5))


# Reductions


@field
def sums_and_moments(draw: Draw) -> Made:
    a = draw.parameter(3, 4)

    def f(t: Tensor, y: Tensor) -> Tensor:
        z = a * y
        moments = z.mean(1, keepdim=True) + z.var(1, keepdim=True) + z.std(0) + z.var((0, 1), correction=0)
        return y * z.sum() + z.sum((0, 1), keepdim=True) + moments + z.sum(-1, keepdim=True) * z.mean()

    return Made(f, draw.normal(3, 4))


@field
def extremes_of_axes(draw: Draw) -> Made:
    a = draw.parameter(3, 4)

    def f(t: Tensor, y: Tensor) -> Tensor:
        z = a * y
        largest = z.amax(1, keepdim=True) * z.amin(0) + z.max() - z.min(dim=1, keepdim=True).values
        return y * largest + z.max(dim=0).values

    return Made(f, draw.normal(3, 4))


@field
def norms_and_products(draw: Draw) -> Made:
    a = draw.parameter(3, 4)

    def f(t: Tensor, y: Tensor) -> Tensor:
        z = a + y
        norms = z.norm(dim=1, keepdim=True) + torch.linalg.vector_norm(z) + z.norm(p=1, dim=0) + z.norm(p=3)
        unit = nn.functional.normalize(z, dim=-1)
        return norms * unit + z.prod(1, keepdim=True) + z.prod(0) + torch.linalg.vector_norm(z, ord=float("inf"))

    return Made(f, draw.normal(3, 4))


@field
def running_sums(draw: Draw) -> Made:
    a = draw.parameter(3, 4)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.cumsum(a * y, 1) - torch.logsumexp(y, 0) + torch.cumsum(y.sin(), 0) + torch.diff(y, dim=1).sum()

    return Made(f, draw.normal(3, 4))


@field
def cumulative_product(draw: Draw) -> Made:
    a = draw.parameter(4)
    return Made(lambda t, y: torch.cumprod(1.5 + a * y.tanh(), 0), draw.normal(4))


# Indexing and shapes


@field
def slices_and_joins(draw: Draw) -> Made:
    a = draw.parameter(2, 6)

    def f(t: Tensor, y: Tensor) -> Tensor:
        first, second, third = y.split([1, 2, 3], dim=1)
        even, odd = y[:, ::2], y[..., 1::2]
        joined = torch.cat([third, a[:, :2] * second, first.sin()], dim=1)
        stacked = torch.stack([even, odd], dim=-1).flatten(1)
        return joined * stacked + torch.hstack([y[:, 4:], y[:, :4]]) + y[1] + y[:, -1:] + y.unbind(1)[2][:, None]

    return Made(f, draw.normal(2, 6))


@field
def gathers(draw: Draw) -> Made:
    a = draw.parameter(3, 4)
    where = torch.tensor([[0, 3, 3, 1], [2, 2, 0, 1], [1, 0, 3, 2]])

    def f(t: Tensor, y: Tensor) -> Tensor:
        rows = torch.tensor([2, 0, 2])
        picked = y.gather(1, where) * a[rows] + torch.index_select(y, 0, rows) + y[[0, 1, 1], :]
        return picked + y[rows, torch.tensor([1, 1, 3])].sum() + nn.functional.embedding(rows, a) * y[:, [3, 2, 1, 0]]

    return Made(f, draw.normal(3, 4))


@field
def scatters(draw: Draw) -> Made:
    """A graph's messages: edges read at their sources, added up at their targets."""
    weight = draw.parameter(3, 3)
    sources, targets = torch.tensor([0, 1, 2, 3, 3]), torch.tensor([1, 1, 0, 2, 1])

    def f(t: Tensor, y: Tensor) -> Tensor:
        messages = torch.tanh((y[sources] - y[targets]) @ weight)
        summed = torch.zeros_like(y).index_add(0, targets, messages)
        return summed + torch.zeros_like(y).scatter_add(1, torch.tensor([[0, 0, 2]] * 4), y * y)

    return Made(f, draw.normal(4, 3))


@field
def moved_around(draw: Draw) -> Made:
    a = draw.parameter(3, 4)

    def f(t: Tensor, y: Tensor) -> Tensor:
        z = torch.flip(y, (0, 1)) * a + torch.roll(y, (1, -2), (0, 1)) + torch.roll(y, 1)
        padded = nn.functional.pad(y, (1, 2, 0, 1), value=0.5)[1:, 2:-1]
        around = nn.functional.pad(y[None], (1, 1), mode="circular")[0]
        return z * padded + around[:, 2:] - around[:, :-2] + nn.functional.pad(y, (-1, 1))

    return Made(f, draw.normal(3, 4))


@field
def permutations_and_outer_products(draw: Draw) -> Made:
    a, b = draw.parameter(4), draw.parameter(2, 3)

    def f(t: Tensor, y: Tensor) -> Tensor:
        turned = y.permute(2, 0, 1).reshape(4, 6).transpose(0, 1).view(2, 3, 4)
        outer = torch.outer(b.flatten(), a).view(2, 3, 4) + torch.einsum("ij,k->ijk", b, a)
        spread = a.expand(2, 3, 4) * b[:, :, None] + b.unsqueeze(-1).repeat(1, 1, 4) + y.mT.contiguous().mT
        return turned * outer + spread + torch.movedim(y, 0, 2).swapaxes(0, 2).swapaxes(1, 2).reshape(2, 3, 4)

    return Made(f, draw.normal(2, 3, 4))


@field
def contractions(draw: Draw) -> Made:
    a, b = draw.parameter(2, 4, 4), draw.parameter(3, 3)

    def f(t: Tensor, y: Tensor) -> Tensor:
        z = torch.einsum("bik,bkl,ij->bjl", y, a, b) + b @ y + torch.bmm(y, a) + torch.matmul(y, a[0])
        return z * torch.einsum("bij,bij->b", y, y)[:, None, None] + torch.tensordot(y, a[1], dims=([2], [1]))

    return Made(f, draw.normal(2, 3, 4))


@field
def matrices(draw: Draw) -> Made:
    a, axis = draw.parameter(3, 3), draw.normal(3)

    def f(t: Tensor, y: Tensor) -> Tensor:
        skew = torch.triu(a, 1) - torch.triu(a, 1).T + torch.tril(y)
        return skew @ y + torch.trace(y) * torch.diag(axis) + torch.diagonal(y) + torch.linalg.cross(y, a)

    return Made(f, draw.normal(3, 3))


@field
def written_piece_by_piece(draw: Draw) -> Made:
    rates = draw.parameter(3)

    def f(t: Tensor, y: Tensor) -> Tensor:
        derivative = torch.zeros_like(y)
        derivative[..., 0] = rates[0] * (y[..., 1] - y[..., 0])
        derivative[..., 1] += y[..., 0] * rates[1]
        derivative[:, 2:] = y[:, 1:2] ** 2
        derivative.mul_(2.0)
        return derivative

    return Made(f, draw.normal(2, 3))


@field
def pooling(draw: Draw) -> Made:
    def f(t: Tensor, y: Tensor) -> Tensor:
        small = nn.functional.avg_pool2d(y, 2)
        return nn.functional.interpolate(small, scale_factor=2.0) + nn.functional.adaptive_avg_pool2d(y, 1)

    return Made(f, draw.normal(1, 2, 4, 6))
