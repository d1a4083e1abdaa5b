"""A mark on results whose first derivatives are exact and whose second ones would not be."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Once(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        return

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def once(x: Tensor) -> Tensor:
    """``x``, a second derivative of which raises an error instead of being wrong."""
    marked: Tensor = _Once.apply(x)  # type: ignore[no-untyped-call]
    return marked
