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
        return last(gradient, ctx.saved_tensors[0])


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
                "a gradient through an implicit step, or through a solve by SciPy, was differentiated again",
                "one differentiation: the implicit function theorem is used with a constant inverse, and SciPy's "
                "adjoint solve leaves no tape",
                "use an explicit method such as Tsit5() for second derivatives",
            )
        )


def once(x: Tensor) -> Tensor:
    """``x``, a second derivative of which raises GradientError instead of being wrong."""
    marked: Tensor = _Once.apply(x)  # type: ignore[no-untyped-call]
    return marked


def last(gradient: Tensor, x: Tensor) -> Tensor:
    """``gradient`` computed with ``x`` and no tape, the differentiation of which raises GradientError.

    Torch's own once_differentiable lets a second derivative pass whose first one came in as a constant: its mark stands
    on no way back to what the gradient depends on. This one stands on that of ``x``.
    """
    marked: Tensor = _Refused.apply(gradient, x)  # type: ignore[no-untyped-call]
    return marked
