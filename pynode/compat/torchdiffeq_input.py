"""What torchdiffeq takes: fields, states, times, parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from torch import Tensor

from pynode.compat.torchdiffeq_options import AssertedInputError
from pynode.errors import explain
from pynode.strict import warn

State: TypeAlias = Tensor | tuple[Tensor, ...]


class Field:
    """The user's function, forgiven what torchdiffeq forgives: another precision than the state's (autocast), and for
    tuple states another shape of as many elements."""

    def __init__(self, func: Callable[..., Any]) -> None:
        self.func = func

    def __call__(self, t: Tensor, y: State) -> Any:
        derivative = self.func(t, y)
        if isinstance(y, Tensor):
            return _cast(derivative, y)
        if not isinstance(derivative, tuple | list) or len(derivative) != len(y):
            return derivative  # the layout says what is wrong
        return tuple(_shaped(_cast(d, like), like) for d, like in zip(derivative, y, strict=True))


def _cast(derivative: Any, like: Tensor) -> Any:
    if not isinstance(derivative, Tensor) or derivative.dtype is like.dtype:
        return derivative
    return derivative if derivative.is_complex() and not like.is_complex() else derivative.to(like.dtype)


def _shaped(derivative: Any, like: Tensor) -> Any:
    if not isinstance(derivative, Tensor) or derivative.shape == like.shape or derivative.numel() != like.numel():
        return derivative
    return derivative.reshape(like.shape)


def checked(y0: Any, t: Any) -> Tensor:
    """``t`` on the device of ``y0``, both being what torchdiffeq takes."""
    if not isinstance(y0, Tensor) and not (isinstance(y0, tuple) and y0 and all(isinstance(x, Tensor) for x in y0)):
        raise AssertedInputError(
            explain(
                f"y0 is a {type(y0).__name__}", "a tensor or a tuple of tensors", "see pynode.solve for other trees"
            )
        )
    if not isinstance(t, Tensor):
        raise AssertedInputError(
            explain(f"t is a {type(t).__name__}", "a 1-D floating point tensor", "write torch.tensor(...)")
        )
    if t.ndim != 1 or t.numel() == 0 or not t.is_floating_point():
        raise AssertedInputError(
            explain(
                f"t has shape {tuple(t.shape)} and dtype {t.dtype}",
                "a non-empty 1-D floating point tensor",
                "give the initial time and the times at which the state is wanted",
            )
        )
    device = (y0 if isinstance(y0, Tensor) else y0[0]).device
    if t.device != device:
        warn(f"t is on {t.device} and y0 on {device}: t is moved there")
    times: Tensor = t.to(device)
    return times


def initial(y0: State) -> State:
    """The solution at the initial time alone."""
    return y0[None] if isinstance(y0, Tensor) else tuple(y[None] for y in y0)


def parameters(func: Any, given: Iterable[Tensor] | None, own_norm: bool) -> list[Tensor]:
    """The parameters to differentiate, each once."""
    if given is not None:
        params = list(given)
    elif getattr(func, "_is_replica", False):
        # Replicas of DataParallel hold their parameters as plain attributes.
        held = [x for module in func.modules() for x in vars(module).values()]
        params = [x for x in held if isinstance(x, Tensor) and x.requires_grad]
    else:
        params = list(func.parameters())
    wanted = [p for p in params if p.requires_grad]
    if own_norm and len(wanted) < len(params):
        warn(
            f"{len(params) - len(wanted)} of {len(params)} adjoint parameters do not require a gradient: they are no "
            "part of the adjoint solve, nor of what adjoint_options['norm'] is called with"
        )
    return list({id(p): p for p in wanted}.values())
