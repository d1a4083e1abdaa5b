"""Solves inside ``torch.func`` transforms and among dual numbers: what is asked of a tensor there.

A solver needs numbers (is the step accepted, is the state finite), and a transformed tensor stands for many: one per
sample of a ``vmap``, with derivatives at every level of ``grad`` and ``jvp``. All of them come from this file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pynode.errors import GradientError, UnsupportedError, explain
from pynode.sensealg import DirectAdjoint, SensitivityAlgorithm


def _never() -> bool:
    return False


#: Whether a ``torch.func`` transform is being applied: what torch itself asks before it runs an autograd.Function.
active = getattr(torch._C, "_are_functorch_transforms_active", _never)


def _wrapped(x: Tensor) -> bool:
    return torch._C._functorch.is_functorch_wrapped_tensor(x)


def dual_level() -> bool:
    """Whether dual numbers can be about (``torch.autograd.forward_ad.dual_level``)."""
    level: int = getattr(forward_ad, "_current_level", -1)
    return level >= 0


def transformed() -> bool:
    """Whether derivatives may be followed by other means than ``requires_grad``."""
    return active() or dual_level()


def has_tangent(x: Tensor) -> bool:
    """Whether ``x`` is a dual number outside ``torch.func``."""
    return forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]


def moves(x: Tensor) -> bool:
    """Whether a derivative with respect to ``x`` may be asked for, at any level of any transform."""
    return x.requires_grad or (active() and _wrapped(x)) or (dual_level() and has_tangent(x))


def refuse_transform(sensealg: SensitivityAlgorithm) -> None:
    """Raise GradientError inside a ``torch.func`` transform for any sensitivity algorithm but ``DirectAdjoint``."""
    if active() and not isinstance(sensealg, DirectAdjoint):
        raise GradientError(
            explain(
                f"sensealg={sensealg.name}() inside a torch.func transform (grad, vjp, jvp, vmap, ...)",
                "an algorithm whose every operation the transform can follow",
                "use sensealg=DirectAdjoint(), or leave sensealg out",
            )
        )


def refuse_tangents(tensors: Iterable[Tensor], sensealg: SensitivityAlgorithm) -> None:
    """Raise GradientError if one of the tensors is a dual number: only the tape's operations carry tangents along."""
    if any(has_tangent(x) for x in tensors):
        raise GradientError(
            explain(
                f"the solve depends on a dual number (torch.autograd.forward_ad) under sensealg={sensealg.name}()",
                "an algorithm that carries tangents along",
                "use sensealg=DirectAdjoint(); ForwardSensitivity() gives forward sensitivities through backward()",
            )
        )


def refuse_queries(t: Tensor) -> None:
    """Raise GradientError inside a transform, or for dual times: for a solve that does not stand on torch's tape."""
    if active() or (dual_level() and has_tangent(t)):
        raise GradientError(
            explain(
                "sol(t) was called inside a torch.func transform or with dual times, for a solve that does not stand "
                "on torch's tape",
                "a solve under DirectAdjoint",
                "solve with sensealg=DirectAdjoint() inside the transform, or evaluate sol(t) outside it",
            )
        )


class _Highest(torch.autograd.Function):
    """The largest entry over all vmapped dimensions, elementwise, NaN where one of them is; has no derivative."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> None:
        return None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> None:
        return None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], x: Tensor) -> tuple[Tensor, None]:
        # Called once for each level of vmap, from the innermost out.
        highest = _highest(x if in_dims[0] is None else x.amax(in_dims[0]))
        return highest, None


def _highest(x: Tensor) -> Tensor:
    highest: Tensor = _Highest.apply(x.detach())  # type: ignore[no-untyped-call]
    return highest


def number(x: Tensor | float) -> float:
    """A scalar tensor as a number: the largest over all vmapped samples, NaN if one is."""
    if not isinstance(x, Tensor):
        return float(x)
    return float(_highest(x).item() if active() else x.item())


def smallest(x: Tensor | float) -> float:
    """A tolerance, or the smallest of those of many components, as :func:`number`."""
    return number(x.min()) if isinstance(x, Tensor) else x


def any_true(x: Tensor) -> bool:
    """Whether any entry of any vmapped sample is true."""
    return number(x.any().to(torch.float32)) > 0 if active() else bool(x.any())


def finite(x: Tensor) -> bool:
    """Whether all entries of all vmapped samples are finite."""
    if active():
        return not any_true(torch.isfinite(x.detach()).logical_not())
    # Squares may overflow: only then every entry is looked at.
    x = x.detach()
    return (x.ndim == 1 and math.isfinite(torch.dot(x, x).item())) or bool(torch.isfinite(x).all())


def numbers(name: str, x: Tensor) -> list[float]:
    """A 1-D tensor as numbers, after :func:`check_common`."""
    check_common(name, x)
    if active():
        # torch 2.8 has no tolist() inside a transform.
        return [float(one.item()) for one in _highest(x).unbind()]
    listed: list[float] = x.detach().tolist()
    return listed


def check_common(name: str, x: Tensor) -> None:
    """Raise UnsupportedError if ``x`` differs between the samples of a ``vmap``."""
    if active() and bool((_highest(x) > -_highest(-x)).any()):
        raise UnsupportedError(
            explain(
                f"{name} differs between the samples of a vmap",
                f"one {name} for all samples, which are solved in common steps",
                "keep it out of vmap's in_dims; give samples a time span of their own by rescaling time in f "
                "(dy/ds = T f(T s, y) for s from 0 to 1), a tolerance of their own by rescaling their state",
            )
        )
