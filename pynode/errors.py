"""The exceptions of pynode. Every message names the offending value, what was expected, and the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pynode.solution import ReturnCode, Solution


class PynodeError(Exception):
    """Base class of every error pynode raises on purpose.

    Examples
    --------
    >>> try:
    ...     pynode.solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], algorithm="tsit6")
    ... except pynode.PynodeError as error:
    ...     print(error)
    unknown algorithm 'tsit6'. Expected: one of AB3, AB4, AB5, ABM32, ABM43, ABM54, AdaptiveHeun, ...
    """


class InputError(PynodeError, ValueError):
    """An argument is not what the function accepts.

    Examples
    --------
    >>> try:
    ...     pynode.solve(lambda t, y: -y, torch.ones(1), [0.0, 0.0])
    ... except pynode.InputError as error:
    ...     print(error)
    t[0] = 0.0 is followed by t[1] = 0.0. Expected: strictly increasing or strictly decreasing finite ...
    """


class FieldError(PynodeError, ValueError):
    """The vector field returned something that cannot be the derivative of the state, or changed what it was given.

    Attributes
    ----------
    t : float or None
        The time that the field was called with, the first one of those of rows; None where that is not known.

    Examples
    --------
    >>> try:
    ...     pynode.solve(lambda t, y: y.sum(), torch.ones(3), [0.0, 1.0])
    ... except pynode.FieldError as error:
    ...     print(error)
    f returned shape (). Expected: the shape of y, (3,). Remedy: return one derivative per element of ...
    """

    t: float | None = None

    def at(self, times: Sequence[float]) -> None:
        """Say when it happened, unless that has been said (by a solve inside of this one)."""
        if self.t is None and times:
            first, last = min(times), max(times)
            self.t = times[0]
            when = f"t = {first:.6g}" if first == last else f"times from {first:.6g} to {last:.6g}"
            self.args = (f"{self} This was at {when}.",)


class GradientError(PynodeError, RuntimeError):
    """A gradient was asked for that cannot be computed, or cannot be trusted.

    Examples
    --------
    >>> y0, unused = torch.ones(1), torch.ones(1, requires_grad=True)
    >>> try:
    ...     pynode.solve(lambda t, y: -y, y0, [0.0, 1.0], params=[unused]).ys.sum().backward()
    ... except pynode.GradientError as error:
    ...     print(error)
    a parameter of shape (1,) requires a gradient but f's result does not depend on it in autograd's ...
    """


class UnsupportedError(PynodeError, NotImplementedError):
    """A valid request that this version, backend or algorithm does not offer.

    Examples
    --------
    >>> try:
    ...     pynode.solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], algorithm=pynode.JuliaAlgorithm("Rodas5P"))
    ... except pynode.UnsupportedError as error:
    ...     print(error)
    backend 'torch' does not offer the algorithm Rodas5P. Expected: a combination it offers. Remedy: ...
    """


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
        What ``throw=False`` would have returned. It is left behind where the error goes to another process.

    Examples
    --------
    >>> try:
    ...     pynode.solve(lambda t, y: y**2, torch.ones(1), [0.0, 2.0])  # blows up at t = 1
    ... except pynode.SolveError as error:
    ...     print(error.retcode.successful, abs(error.t - 1) < 0.01, error.solution.ts.shape)
    False True torch.Size([1])
    """

    def __init__(self, message: str, retcode: ReturnCode, t: float, solution: Solution | None = None) -> None:
        super().__init__(message)
        self.retcode = retcode
        self.t = t
        self.solution = solution

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the solution, which has f with it: an exception that another process cannot read would hang it.
        return type(self), (str(self), self.retcode, self.t)


def not_finite(what: str) -> GradientError:
    """The error of a gradient with an infinity or a NaN."""
    return GradientError(
        explain(
            f"{what} not finite",
            "finite gradients",
            "check the loss for a NaN, and f's derivatives for a singularity (sqrt or norm at 0, log, division)",
        )
    )


def stays(what: str, remedy: str) -> UnsupportedError:
    """The error of pickling or copying what cannot leave its process, or its graph."""
    return UnsupportedError(explain(f"{what} was pickled or copied", "what a copy can go on with", remedy))


def foreign_stays() -> UnsupportedError:
    """That of what C++ or Julia holds the memory of."""
    return stays("a Solution by C++ or Julia", "take sol.ys and sol.ts, or solve by torch without compile='solve'")


def explain(value: str, expectation: str, remedy: str) -> str:
    """The one form of every message: what came, what was expected, what to do."""
    return f"{value}. Expected: {expectation}. Remedy: {remedy}."


class PynodeWarning(UserWarning):
    """Base class of every warning of pynode; an error under :class:`pynode.strict`.

    Examples
    --------
    >>> sorted(kind.__name__ for kind in pynode.PynodeWarning.__subclasses__())
    ['AccuracyWarning', 'CallbackWarning', 'CompileWarning']
    """


class StrictError(PynodeError):
    """A warning of pynode under :class:`pynode.strict`.

    Attributes
    ----------
    category : type
        The class of the warning.

    Examples
    --------
    >>> with pynode.strict():
    ...     try:
    ...         pynode.solve(lambda t, y: -y, torch.full((2,), 1e-40), [0.0, 1.0], atol=0.0)
    ...     except pynode.StrictError as error:
    ...         print(error.category.__name__)
    AccuracyWarning
    """

    def __init__(self, message: str, category: type[PynodeWarning]) -> None:
        super().__init__(message)
        self.category = category

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.category)


class AccuracyWarning(PynodeWarning, RuntimeWarning):
    """A result may be less accurate than what was asked for.

    Examples
    --------
    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     sol = pynode.solve(lambda t, y: torch.cos(t - 1e9) * y, torch.ones(1), [1e9, 1e9 + 1])
    >>> print(caught[0].message)
    f depends on time, and torch.float32 times near t = 1e+09 are 64 apart. Rounding them changes the ...
    """


class CallbackWarning(PynodeWarning):
    """A field could not be captured: Julia calls torch back for every evaluation, which is slower.

    Examples
    --------
    >>> issubclass(pynode.CallbackWarning, pynode.PynodeWarning)
    True
    """


class CompileWarning(PynodeWarning):
    """A solve asked for with ``compile="solve"`` was not done in C++.

    Examples
    --------
    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     sol = pynode.solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], algorithm="trapezoid", compile="solve")
    >>> print(caught[0].message)
    compile='solve' is not possible for this solve: Trapezoid is no explicit Runge-Kutta method. It is ...
    """
