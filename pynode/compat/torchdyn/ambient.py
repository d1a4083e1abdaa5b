"""What a field's layers may ask for while it is evaluated: the time, the control, the noise of a trace.

Layers in a ``torch.nn.Sequential`` are called with the state alone. torchdyn writes what else they need into the
modules; here it is a context variable, which belongs to the thread, and to the evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from torch import Tensor

from pynode.errors import InputError, explain


@dataclass(frozen=True)
class Ambient:
    """Of one evaluation: the time, the control or None, and the noise by the place of the module that asked for it."""

    t: Tensor
    control: Tensor | None = None
    noise: Mapping[int, Tensor] = field(default_factory=dict)


_AMBIENT: ContextVar[Ambient | None] = ContextVar("pynode.compat.torchdyn.ambient", default=None)


@contextmanager
def evaluating(ambient: Ambient) -> Iterator[None]:
    """Inside, ``current`` returns ``ambient``."""
    token = _AMBIENT.set(ambient)
    try:
        yield
    finally:
        _AMBIENT.reset(token)


def current(layer: str) -> Ambient:
    """What the evaluation that is going on knows.

    Raises
    ------
    InputError
        Outside an evaluation, naming the ``layer`` that asked.
    """
    ambient = _AMBIENT.get()
    if ambient is None:
        raise InputError(
            explain(
                f"{layer} is called outside a field",
                "a call from within a solve, or by model.vf(t, x)",
                "put it into the vector field of a NeuralODE",
            )
        )
    return ambient
