"""The fields of :mod:`pynode.bench.peers.fields` as functions of jax arrays, with weights in the modules' order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from pynode.bench.peers.fields import ConvolutionalBlock, TracedField
from pynode.errors import UnsupportedError, explain
from pynode.problems import Perceptron
from pynode.problems.formula import FormulaField

#: ``field(t, y, p)`` with ``p`` the list of parameters.
JaxField = Callable[[Any, Any, list[Any]], Any]


def jax_field(module: nn.Module) -> JaxField:
    """The same field in jax.

    Raises
    ------
    UnsupportedError
        For a module that has not been written in jax here.
    """
    if isinstance(module, Perceptron):
        return _perceptron(module.power)
    if isinstance(module, TracedField):
        return _traced
    if isinstance(module, ConvolutionalBlock):
        return _block(module.norm1.num_groups, module.norm1.eps)
    if isinstance(module, FormulaField):
        return _formula(module)
    raise UnsupportedError(
        explain(f"the field {type(module).__name__}", "one that is written in jax too", "add it to jax_fields.py")
    )


def _perceptron(power: int) -> JaxField:
    import jax.numpy as jnp

    def field(t: Any, y: Any, p: list[Any]) -> Any:
        h = y if power == 1 else y**power
        for index in range(0, len(p), 2):
            h = h @ p[index].T + p[index + 1]
            h = jnp.tanh(h) if index + 2 < len(p) else h
        return h

    return field


def _traced(t: Any, y: Any, p: list[Any]) -> Any:
    import jax.numpy as jnp

    h, columns = y[:, :-1], None
    for index in range(0, len(p), 2):
        weight = p[index]
        columns = weight.T[:, None] if columns is None else columns @ weight.T
        h = h @ weight.T + p[index + 1]
        if index + 2 < len(p):
            h = jnp.tanh(h)
            columns = columns * (1.0 - h * h)
    trace = jnp.trace(columns, axis1=0, axis2=2)
    return jnp.concatenate((h, -trace[:, None]), axis=1)


def _block(groups: int, eps: float) -> JaxField:
    import jax
    import jax.numpy as jnp

    def half(t: Any, y: Any, scale: Any, shift: Any, weight: Any, bias: Any) -> Any:
        grouped = y.reshape(y.shape[0], groups, -1)
        mean = grouped.mean(axis=2, keepdims=True)
        spread = ((grouped - mean) ** 2).mean(axis=2, keepdims=True)
        normal = ((grouped - mean) * jax.lax.rsqrt(spread + eps)).reshape(y.shape)
        active = jax.nn.silu(normal * scale[:, None, None] + shift[:, None, None])
        time = jnp.broadcast_to(jnp.asarray(t, y.dtype), (y.shape[0], 1, *y.shape[2:]))
        both = jnp.concatenate((active, time), axis=1)
        return jax.lax.conv_general_dilated(both, weight, (1, 1), "SAME") + bias[:, None, None]

    def field(t: Any, y: Any, p: list[Any]) -> Any:
        return half(t, half(t, y, *p[:4]), *p[4:])

    return field


def _formula(module: FormulaField) -> JaxField:
    import jax.numpy as jnp

    names = [name for name, _ in module.named_parameters()]

    def field(t: Any, y: Any, p: list[Any]) -> Any:
        return module.formula(jnp, t, y, dict(zip(names, p, strict=True)))

    return field
