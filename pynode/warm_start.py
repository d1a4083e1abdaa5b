"""First steps from earlier solves: what a training loop knows that a single solve does not."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from pynode.algorithms import Algorithm
from pynode.errors import InputError, UnsupportedError, explain


@dataclass
class WarmStart:
    """The first step of a solve from the solve before: ``solve(..., dt0=warm)`` with one object for a training loop.

    A cold solve spends one evaluation of ``f`` on guessing its first step, and guesses with care: it then takes steps
    that are shorter than the tolerance asks for. A warm one begins with the step that the error of the last solve's
    first step asked for. Every step is accepted by the same error test, so that this changes what a solve costs, not
    what its tolerance means; results differ from those of a cold solve within it.

    The object belongs to the user: nothing is remembered elsewhere, and a solve is a function of its arguments and of
    this state. A solve with another algorithm or tolerance, from another time or in the other direction than the last
    one starts cold. Use one object for each place in a program that solves (two that took turns at one object would
    guess for each other), and none between threads.

    Parameters
    ----------
    dt0 : float, optional
        The coming solve's first step, a magnitude; None lets that solve choose.

    Raises
    ------
    InputError
        For a ``dt0`` that is no positive, finite number.

    Examples
    --------
    >>> model = pynode.nn.NeuralODE(lambda t, y: torch.sin(5 * y), dt0=pynode.WarmStart())
    >>> first, second = (model.solve(torch.ones(2)).stats.forward.nfe for _ in range(2))
    >>> second < first
    True
    """

    dt0: float | None = None
    _of: tuple[object, ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.dt0 is not None and not 0 < self.dt0 < math.inf:
            raise InputError(explain(f"WarmStart(dt0={self.dt0})", "None or a positive magnitude", "drop it"))

    def first_step(self, of: tuple[object, ...]) -> float | None:
        """The first step of a solve that is described by ``of``; see :func:`likeness`."""
        return self.dt0 if self._of is None or self._of == of else None

    def remember(self, of: tuple[object, ...], size: float | None) -> None:
        """Keep the first step that a solve should have taken; None where it took none."""
        if size is not None:
            self.dt0, self._of = size, of


def likeness(algorithm: Algorithm, times: list[float], rtol: object, atol: object) -> tuple[object, ...]:
    """What two solves have in common if one's first step is a guess for the other's."""
    tolerances = [x if isinstance(x, int | float) else "per element" for x in (rtol, atol)]
    return (algorithm.name, times[0], times[-1] > times[0], *tolerances)


def refuse_warm_start(dt0: Any, where: str) -> None:
    """Raise UnsupportedError where ``dt0`` is a :class:`WarmStart`."""
    if isinstance(dt0, WarmStart):
        raise UnsupportedError(
            explain(
                f"dt0=WarmStart() with {where}",
                "the torch backend, step by step, in common steps",
                "give dt0 as a number, or drop it",
            )
        )
