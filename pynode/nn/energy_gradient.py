"""Gradients of a scalar function of each row of a batch, inside a field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pynode.errors import FieldError, explain


def gradient(scalar: Callable[..., Any], name: str, *inputs: Any, args: tuple[Any, ...] = ()) -> tuple[Any, ...]:
    """``d scalar(*inputs, *args) / d inputs``, row by row, each like its input; differentiable again.

    ``scalar`` gives one number a row, (...,) or (..., 1). ``name``: what it is called in messages.
    """

    def total(*inputs: Any) -> Tensor:
        return summed(scalar(*inputs, *args), name)

    found: tuple[Any, ...] = torch.func.grad(total, argnums=tuple(range(len(inputs))))(*inputs)
    return found


def summed(value: Any, name: str) -> Tensor:
    """The sum of the rows' numbers.

    Raises
    ------
    FieldError
        If ``value`` is no tensor.
    """
    if not isinstance(value, Tensor):
        raise FieldError(
            explain(f"{name} returned a {type(value).__name__}", "a tensor, one number a row", "return a tensor")
        )
    return value.sum()
