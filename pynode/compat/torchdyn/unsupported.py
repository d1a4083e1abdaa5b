"""Names of torchdyn for which pynode has nothing."""

from __future__ import annotations

from typing import Any, NoReturn

from pynode.errors import UnsupportedError, explain


def refuse(name: str, remedy: str) -> NoReturn:
    """Raise UnsupportedError for ``name``."""
    raise UnsupportedError(
        explain(
            f"pynode.compat.torchdyn has no {name}", "an ordinary differential equation solved step by step", remedy
        )
    )


class Refused:
    """Base class of classes that raise UnsupportedError."""

    remedy = "use torchsde, or torchdyn itself"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        refuse(type(self).__name__, self.remedy)


class NeuralSDE(Refused):
    """Stochastic: raises UnsupportedError."""


class SDEFunc(Refused):
    """Stochastic: raises UnsupportedError."""


class SDEProblem(Refused):
    """Stochastic: raises UnsupportedError."""


class MultipleShootingProblem(Refused):
    """Parallel in time: raises UnsupportedError."""

    remedy = "use ODEProblem, which solves the same equation in sequence"


class MultipleShootingLayer(Refused):
    """Parallel in time: raises UnsupportedError."""

    remedy = "use NeuralODE, which solves the same equation in sequence"
