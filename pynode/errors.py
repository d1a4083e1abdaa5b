"""The exceptions of pynode. Every message names the offending value, what was expected, and the remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pynode.solution import ReturnCode, Solution


class PynodeError(Exception):
    """Base class of every error pynode raises on purpose."""


class InputError(PynodeError, ValueError):
    """An argument is not what the function accepts."""


class FieldError(PynodeError, ValueError):
    """The vector field returned something that cannot be the derivative of the state."""


class GradientError(PynodeError, RuntimeError):
    """A gradient was asked for that cannot be computed, or cannot be trusted."""


class UnsupportedError(PynodeError, NotImplementedError):
    """A valid request that this version, backend or algorithm does not offer."""


class MissingPackageError(PynodeError, ImportError):
    """An optional package that is needed here is not installed."""


class SolveError(PynodeError, RuntimeError):
    """The integration ended before its final time.

    Attributes
    ----------
    retcode : ReturnCode
        How the solve ended.
    t : float
        The time it had reached.
    solution : Solution or None
        What ``throw=False`` would have returned.
    """

    def __init__(self, message: str, retcode: ReturnCode, t: float, solution: Solution | None = None) -> None:
        super().__init__(message)
        self.retcode = retcode
        self.t = t
        self.solution = solution


def not_finite(what: str) -> GradientError:
    """The error of a gradient with an infinity or a NaN."""
    return GradientError(
        explain(
            f"{what} not finite",
            "finite gradients",
            "check the loss for a NaN, and f's derivatives for a singularity (sqrt or norm at 0, log, division)",
        )
    )


def explain(value: str, expectation: str, remedy: str) -> str:
    """The one form of every message: what came, what was expected, what to do."""
    return f"{value}. Expected: {expectation}. Remedy: {remedy}."


class CompileWarning(UserWarning):
    """A solve asked for with ``compile="solve"`` was not done in C++."""
