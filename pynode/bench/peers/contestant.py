"""What is timed of a library: a solve or a gradient of a case, made ready before the clock runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pynode.bench.contestants import Way, final, gradient
from pynode.bench.fields import Case

#: Makes a case ready: returns what is called and timed.
Prepare = Callable[[Case], Callable[[], Any]]


@dataclass(frozen=True)
class Contestant:
    """A way to solve a case, or to differentiate ``sum(y(t[-1])**2)`` in y0 and every parameter.

    What ``prepare(case)()`` returns is y(t[-1]), or the gradients in that order, in arrays of the library's own:
    turning them into tensors is not timed.
    """

    name: str
    prepare: Prepare


def solving(name: str, solver: Way) -> Contestant:
    """The solve of a solver on tensors, without autograd."""
    return Contestant(name, lambda case: functools.partial(final, solver, case))


def differentiating(name: str, solver: Way) -> Contestant:
    """The gradient by a solver on tensors."""
    return Contestant(name, lambda case: functools.partial(gradient, solver, case))


def tensors(result: Any) -> list[Tensor]:
    """A contestant's result as tensors."""
    import numpy as np

    values = result if isinstance(result, list | tuple) else [result]
    return [x.detach() if isinstance(x, Tensor) else torch.from_numpy(np.array(x)) for x in values]
