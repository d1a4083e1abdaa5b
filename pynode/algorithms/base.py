"""What all algorithms have: names and options only, no arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pynode.errors import InputError, explain


@dataclass(frozen=True)
class Algorithm:
    """Base class of all algorithms. ``name`` is the SciML name.

    Examples
    --------
    >>> pynode.Tsit5().name, pynode.Tsit5().adaptive, pynode.RK4(dt=0.1).adaptive
    ('Tsit5', True, False)
    >>> isinstance(pynode.KenCarp4(), pynode.Algorithm)
    True
    """

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def adaptive(self) -> bool:
        """Whether the step size follows an error estimate."""
        return True


@dataclass(frozen=True)
class FixedStep(Algorithm):
    """An algorithm that carries its own steps.

    Parameters
    ----------
    dt : float, optional
        Step size (> 0; the direction follows ``t``). The last step is shortened to end at the final time.
    steps : int, optional
        Number of equal steps over the whole time span.

    mesh : callable, optional
        ``mesh(t) -> tensor`` of step boundaries, from ``t[0]`` to ``t[-1]`` in the direction of ``t``.
    interpolation : "hermite" or "linear"
        How save points inside a step are filled: cubic Hermite (one more evaluation where the method has no
        derivative at the end of the step), or a straight line (torchdiffeq's default).
    perturb : bool
        Evaluate the field just inside every step, for fields that jump at the step boundaries.

    With none of ``dt``, ``steps``, ``mesh``, one step is taken per interval of ``t``, as torchdiffeq's fixed solvers
    do.
    """

    dt: float | None = None
    steps: int | None = None
    mesh: Callable[[Any], Any] | None = None
    interpolation: str = "hermite"
    perturb: bool = False

    def __post_init__(self) -> None:
        given = [key for key in ("dt", "steps", "mesh") if getattr(self, key) is not None]
        if len(given) > 1:
            raise InputError(explain(f"{self.name} got {' and '.join(given)}", "at most one of them", "keep one"))
        if self.interpolation not in ("hermite", "linear"):
            raise InputError(
                explain(
                    f"{self.name}(interpolation={self.interpolation!r})", "'hermite' or 'linear'", "use one of them"
                )
            )
        if self.dt is not None and not 0 < self.dt < float("inf"):
            raise InputError(
                explain(
                    f"{self.name}(dt={self.dt})",
                    "a positive finite step size",
                    "give dt > 0; the direction is taken from t",
                )
            )
        if self.steps is not None and (
            isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1
        ):
            raise InputError(explain(f"{self.name}(steps={self.steps})", "an integer >= 1", "give the number of steps"))

    @property
    def adaptive(self) -> bool:
        return False

    @property
    def remembers(self) -> bool:
        """Whether a method that looks back does so with ``perturb=True``, too; others begin anew with every step."""
        return False
