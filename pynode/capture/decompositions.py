"""Which operators are taken apart before anything is emitted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions, get_decompositions

aten = torch.ops.aten

#: Not core operators in torch's sense, or core ones whose parts the emitter has anyway.
_MORE = (
    aten.native_layer_norm,
    aten.native_layer_norm_backward,
    aten.native_group_norm,
    aten.native_group_norm_backward,
    aten._native_batch_norm_legit_no_training,
    aten.native_batch_norm,
    aten.native_batch_norm_backward,
    aten.cudnn_batch_norm,
    aten._softmax,
    aten._log_softmax,
    aten._softmax_backward_data,
    aten._log_softmax_backward_data,
    aten.addmm,
    aten.addmv,
    aten.baddbmm,
    aten.addbmm,
    aten.gelu,
    aten.gelu_backward,
    aten.hardtanh,
    aten.leaky_relu,
    aten.elu,
    aten.elu_backward,
    aten.mv,
    aten.dot,
    aten.logsumexp,
    aten.embedding,
    aten.embedding_dense_backward,
    aten.index_select,
    aten.stack,
    aten.split_with_sizes,
    aten.split,
    aten.unbind,
    aten.lerp,
    aten.norm,
    aten.linalg_vector_norm,
    aten.select_backward,
    aten.slice_backward,
    aten.index_add,
    aten.index_copy,
)


#: Taken apart by torch into more than they are: the emitter writes into part of an array, or computes them at once.
_KEPT = (
    aten.slice_scatter,
    aten.select_scatter,
    aten.diagonal_scatter,
    aten.constant_pad_nd,
    aten.cumsum,
    aten.cumprod,
    aten.index_put,
    aten.scatter_add,
    aten.argmax,
    aten.argmin,
    aten.sigmoid,
    aten.expm1,
    aten.log1p,
    aten.rsqrt,
    aten.convolution_backward,
)


def _var_mean(
    x: Tensor, dim: Any = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    dims = list(range(x.ndim)) if not dim else [d % x.ndim for d in dim]
    count = math.prod(x.shape[d] for d in dims)
    mean = x.mean(dims, keepdim=True)
    squares = (x - mean).square().sum(dims, keepdim=keepdim)
    free = count - (1 if correction is None else correction)
    return squares / max(free, 0), mean if keepdim else x.mean(dims)


def _var(x: Tensor, dim: Any = None, *, correction: float | None = None, keepdim: bool = False) -> Tensor:
    return _var_mean(x, dim, correction=correction, keepdim=keepdim)[0]


def _std(x: Tensor, dim: Any = None, *, correction: float | None = None, keepdim: bool = False) -> Tensor:
    return _var(x, dim, correction=correction, keepdim=keepdim).sqrt()


def _repeat(x: Tensor, repeats: list[int]) -> Tensor:
    lead = len(repeats) - x.ndim
    shape = [1] * lead + list(x.shape)
    apart = [k for n in shape for k in (1, n)]
    spread = [k for r, n in zip(repeats, shape, strict=True) for k in (r, n)]
    return x.reshape(apart).expand(spread).reshape([r * n for r, n in zip(repeats, shape, strict=True)])


def _trilinear(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    expand_a: list[int],
    expand_b: list[int],
    expand_c: list[int],
    over: list[int],
    _: int = 1,
) -> Tensor:
    for d in expand_a:
        a = a.unsqueeze(d)
    for d in expand_b:
        b = b.unsqueeze(d)
    for d in expand_c:
        c = c.unsqueeze(d)
    return (a * b * c).sum(over)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    norm = v.square().sum([d for d in range(v.ndim) if d != dim % v.ndim], keepdim=True).sqrt()
    return v * (g / norm), norm


def _weight_norm_backward(grad: Tensor, v: Tensor, g: Tensor, norm: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    others = [d for d in range(v.ndim) if d != dim % v.ndim]
    along = (grad * v).sum(others, keepdim=True)
    return g / norm * (grad - v * (along / norm.square())), along / norm


def _cdist(a: Tensor, b: Tensor, p: float, _: int | None = None) -> Tensor:
    distance: Tensor = torch.linalg.vector_norm(a.unsqueeze(-2) - b.unsqueeze(-3), p, -1)
    return distance


def _cdist_backward(grad: Tensor, a: Tensor, b: Tensor, p: float, distance: Tensor) -> Tensor:
    step = a.unsqueeze(-2) - b.unsqueeze(-3)
    far = distance.unsqueeze(-1)
    rate = step.sign() * (step.abs() / far) ** (p - 1) if p != 2 else step / far
    return (grad.unsqueeze(-1) * torch.where(far == 0, 0.0, rate)).sum(-2)


def _padded(x: Tensor, amounts: list[int]) -> tuple[list[int], Tensor]:
    """Indices, into the flat last dimensions of ``x``, of what lies in its padded form."""
    sizes = list(x.shape[-(len(amounts) // 2) :])
    flat = torch.zeros([1] * len(sizes), dtype=torch.int64, device=x.device)
    for k, n in enumerate(reversed(sizes)):
        before, after = amounts[2 * k : 2 * k + 2]
        places = torch.arange(-before, n + after, device=x.device).clamp(0, n - 1)
        step = math.prod(sizes[len(sizes) - k :])
        flat = flat + (places * step).reshape([-1 if d == len(sizes) - 1 - k else 1 for d in range(len(sizes))])
    return sizes, flat.reshape(-1)


def _replication_pad_backward(grad: Tensor, x: Tensor, padding: list[int]) -> Tensor:
    sizes, places = _padded(x, list(padding))
    lead = list(x.shape[: x.ndim - len(sizes)])
    zero = torch.zeros([*lead, math.prod(sizes)], dtype=x.dtype, device=x.device)
    return zero.index_add(-1, places, grad.reshape(*lead, -1)).reshape(x.shape)


def _windows(
    kernel: Sequence[int], stride: Sequence[int], sizes: Sequence[int]
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """For each offset of a pooling kernel, where its windows' elements begin and end in the padded image."""
    (h, w), (s, r), (p, q) = kernel, stride, sizes
    return [((i, i + (p - 1) * s + 1), (j, j + (q - 1) * r + 1)) for i in range(h) for j in range(w)]


def _pair(values: Sequence[int], default: Sequence[int] = ()) -> list[int]:
    found = list(values) or list(default)
    return found * 2 if len(found) == 1 else found


def _pool_counts(
    x: Tensor, sizes: Sequence[int], kernel: list[int], stride: list[int], padding: list[int], padded: bool, fixed: Any
) -> Any:
    """What the sums of the windows are divided by."""
    if fixed is not None:
        return fixed
    if padded or not any(padding):
        return kernel[0] * kernel[1]
    counts = []
    for n, size, k, s, p in zip(x.shape[-2:], sizes, kernel, stride, padding, strict=True):
        start = torch.arange(size, device=x.device) * s - p
        counts.append((start + k).clamp(max=n) - start.clamp(min=0))
    return (counts[0][:, None] * counts[1][None]).to(x.dtype)


def _avg_pool2d(
    x: Tensor,
    kernel: list[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    kernel, padding = _pair(kernel), _pair(padding)
    stride = _pair(stride, kernel)
    if ceil_mode:
        return NotImplemented
    sizes = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip(x.shape[-2:], padding, kernel, stride, strict=True)]
    wide = aten.constant_pad_nd(x, [padding[1], padding[1], padding[0], padding[0]], 0.0) if any(padding) else x
    total: Any = 0
    for (a, b), (c, d) in _windows(kernel, stride, sizes):
        total = total + wide[..., a : b : stride[0], c : d : stride[1]]
    return total / _pool_counts(x, sizes, kernel, list(stride), list(padding), count_include_pad, divisor_override)


def _avg_pool2d_backward(
    grad: Tensor,
    x: Tensor,
    kernel: list[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Any:
    kernel, padding = _pair(kernel), _pair(padding)
    stride = _pair(stride, kernel)
    if ceil_mode:
        return NotImplemented
    sizes = list(grad.shape[-2:])
    each = grad / _pool_counts(x, sizes, kernel, list(stride), list(padding), count_include_pad, divisor_override)
    h, w = (n + 2 * p for n, p in zip(x.shape[-2:], padding, strict=True))
    total: Any = torch.zeros([*x.shape[:-2], h, w], dtype=x.dtype, device=x.device)
    for (a, b), (c, d) in _windows(kernel, stride, sizes):
        row = torch.zeros([*x.shape[:-2], sizes[0], w], dtype=x.dtype, device=x.device)
        row = aten.slice_scatter(row, each, -1, c, d, stride[1])
        total = total + aten.slice_scatter(torch.zeros_like(total), row, -2, a, b, stride[0])
    return total[..., padding[0] : h - padding[0], padding[1] : w - padding[1]]


def _hardshrink_backward(grad: Tensor, x: Tensor, bound: float) -> Tensor:
    return torch.where(x.abs() <= bound, 0.0, grad)


def _nearest_backward(grad: Tensor, output_size: Sequence[int], input_size: Sequence[int], *_: Any) -> Any:
    rank = len(output_size)
    if any(wide % n for wide, n in zip(output_size, input_size[-rank:], strict=True)):
        return NotImplemented  # not every element is repeated as often as the others
    apart = [k for wide, n in zip(output_size, input_size[-rank:], strict=True) for k in (n, wide // n)]
    lead = list(input_size[:-rank])
    return grad.reshape([*lead, *apart]).sum([len(lead) + 2 * d + 1 for d in range(rank)])


def _zeros_of_tangent(x: Tensor, other: Tensor, *, self_num_batch_dims: int = 0) -> Tensor:
    """What forward differentiation (torch.func.jvp) starts a tangent with."""
    return x.new_zeros([*x.shape[:self_num_batch_dims], *other.shape])


_OWN: dict[Any, Any] = {
    aten._new_zeros_with_same_feature_meta.default: _zeros_of_tangent,
    aten.var_mean.correction: _var_mean,
    aten.var.correction: _var,
    aten.std.correction: _std,
    aten.repeat.default: _repeat,
    aten._trilinear.default: _trilinear,
    aten.avg_pool2d.default: _avg_pool2d,
    aten.avg_pool2d_backward.default: _avg_pool2d_backward,
    aten.upsample_nearest1d_backward.default: _nearest_backward,
    aten.upsample_nearest2d_backward.default: _nearest_backward,
    aten.hardshrink_backward.default: _hardshrink_backward,
    aten.softshrink_backward.default: _hardshrink_backward,
    aten._cdist_forward.default: _cdist,
    aten._cdist_backward.default: _cdist_backward,
    aten.replication_pad1d_backward.default: _replication_pad_backward,
    aten.replication_pad2d_backward.default: _replication_pad_backward,
    aten._weight_norm_interface.default: _weight_norm,
    aten._weight_norm_interface_backward.default: _weight_norm_backward,
}


def _table() -> dict[Any, Any]:
    table: dict[Any, Any] = dict(core_aten_decompositions())
    table.update(get_decompositions(_MORE))
    table.update(_OWN)
    packet: Any
    for packet in _KEPT:
        for name in packet.overloads():
            table.pop(getattr(packet, name), None)
    return table


TABLE = _table()
