"""Where ``torch.compile`` of a surrounding model stops."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


def eager(function: Callable[P, T]) -> Callable[P, T]:
    """``function``, never traced by ``torch.compile``: a graph ends before it and another begins behind it.

    A solve decides by the values of tensors how it goes on. Traced, it would break into hundreds of graphs, which take
    a minute to compile and save nothing; ``pynode.solve(..., compile="step")`` compiles what can be.
    """

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling():
            # Not as a decorator above: it imports the compiler, seconds that every program would pay for.
            untraced: Callable[P, T] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
            return untraced(*args, **kwargs)
        return function(*args, **kwargs)

    return called
