"""A mark on results whose first derivatives are exact and whose second ones would not be."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pynode.errors import GradientError, explain


class _Once(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return gradient
        # Torch's own once_differentiable lets a second derivative pass whose first one came in as a constant.
        marked: Tensor = _Refused.apply(gradient, ctx.saved_tensors[0])  # type: ignore[no-untyped-call]
        return marked


class _Refused(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, x: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        return

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        raise GradientError(
            explain(
                "a gradient through an implicit step was differentiated again",
                "one differentiation: the step is differentiated by the implicit function theorem, with a constant "
                "inverse",
                "use an explicit method such as Tsit5() for second derivatives",
            )
        )


def once(x: Tensor) -> Tensor:
    """``x``, a second derivative of which raises GradientError instead of being wrong."""
    marked: Tensor = _Once.apply(x)  # type: ignore[no-untyped-call]
    return marked
