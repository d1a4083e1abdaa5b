"""Which sensitivity algorithm and integrator to use for a model: measured on it, not guessed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pynode.algorithms import Algorithm
from pynode.crosscheck import CrosscheckReport, Row, crosscheck
from pynode.crosscheck.report import AGREES, NOT_REACHED
from pynode.errors import GradientError, InputError, explain
from pynode.problems import Instance, Problem
from pynode.sensealg import SensitivityAlgorithm


@dataclass(frozen=True)
class Recommendation:
    """What to pass to :func:`pynode.solve`; ``str()`` is the reason, with the numbers.

    Attributes
    ----------
    algorithm : Algorithm
    sensealg : SensitivityAlgorithm
    backend : str
    within : bool
        Whether its gradient error is below ``gradient_rtol``; if none is, the most accurate was taken.
    reason : str
    report : CrosscheckReport
        Every combination that was measured.

    Examples
    --------
    >>> f, y0 = lambda t, y: torch.sin(y), torch.ones(2, dtype=torch.float64)
    >>> only = {"algorithms": ["dopri5"], "sensealgs": ["Direct"], "backends": ["torch"]}
    >>> choice = pynode.recommend(f, y0, [0.0, 1.0], **only)
    >>> sol = pynode.solve(f, y0, [0.0, 1.0], algorithm=choice.algorithm, sensealg=choice.sensealg)
    >>> sol.retcode.name
    'Success'
    """

    algorithm: Algorithm
    sensealg: SensitivityAlgorithm
    backend: str
    within: bool
    reason: str
    report: CrosscheckReport

    def __str__(self) -> str:
        return self.reason


def recommend(
    f: Callable[..., Any] | Problem | Instance,
    y0: Any = None,
    t: Any = None,
    loss: Callable[[Any], Tensor] | None = None,
    *,
    args: tuple[Any, ...] = (),
    rtol: float = 1e-5,
    atol: float = 1e-7,
    gradient_rtol: float | None = None,
    max_memory: int | None = None,
    algorithms: Sequence[Algorithm | str] | None = None,
    sensealgs: Sequence[SensitivityAlgorithm | str] | None = None,
    backends: Sequence[str] | None = None,
    params: Iterable[Tensor] | None = None,
    budget: float = 10.0,
    **options: Any,
) -> Recommendation:
    """Measure the combinations on a model and choose the quickest whose gradient is accurate and whose memory fits.

    Parameters
    ----------
    f, y0, t, loss, args, params, algorithms, sensealgs, backends, **options
        As for :func:`pynode.crosscheck`.
    rtol, atol : float
        The tolerances you mean to use.
    gradient_rtol : float, optional
        Largest relative error of the gradient (of ``y0``, of each argument, of the parameters together); ten times
        ``rtol`` by default.
    max_memory : int, optional
        Bytes that one gradient may take at its peak.
    budget : float
        Seconds after which no further combination is begun. Half of them are for combinations: a reference that takes
        longer than the other half comes on top.

    Raises
    ------
    GradientError
        If the model's own derivative is wrong (see ``crosscheck``), or no combination gives a gradient that agrees with
        the reference and fits.
    InputError
        For arguments that cannot be used, and where the budget was spent before anything was measured.

    Examples
    --------
    >>> f, y0 = lambda t, y: torch.sin(y), torch.ones(2, dtype=torch.float64)
    >>> only = {"algorithms": ["tsit5"], "sensealgs": ["Checkpointed"], "backends": ["torch"]}
    >>> choice = pynode.recommend(f, y0, [0.0, 1.0], **only)
    >>> choice.algorithm.name, choice.sensealg.name, choice.within
    ('Tsit5', 'CheckpointedAdjoint', True)
    """
    limit = 10.0 * rtol if gradient_rtol is None else gradient_rtol
    report = crosscheck(
        *(f, y0, t, loss),
        args=args,
        rtol=rtol,
        atol=atol,
        algorithms=algorithms,
        sensealgs=sensealgs,
        backends=backends,
        params=params,
        oracles=(),
        budget=budget,
        directions=1,
        **options,
    )
    if not report.differences[0].agrees:
        raise GradientError(
            explain(
                str(report.disagreements[0]),
                "a model whose derivative by autograd is that of its values",
                "look for .detach(), torch.no_grad() or a custom autograd.Function inside f or loss",
            )
        )
    measured = [row for row in report.rows if row.measured]
    if not measured and any(row.verdict == NOT_REACHED for row in report.rows):
        raise InputError(
            explain(
                f"budget = {budget:g} s was spent before a combination was begun", "time to measure", "raise budget="
            )
        )
    sound = [row for row in measured if row.verdict == AGREES]
    fitting = [row for row in sound if max_memory is None or row.memory <= max_memory]
    if not fitting:
        least = min(sound, key=lambda row: row.memory, default=None)
        remedy = "see the report of pynode.crosscheck for each combination's error"
        if least is not None:
            remedy = f"the smallest took {_bytes(least.memory)} ({least.sensealg}): raise max_memory"
        raise GradientError(
            explain(
                f"none of {len(measured)} measured combinations agrees with the reference and fits",
                "at least one",
                remedy,
            )
        )
    accurate = [row for row in fitting if row.gradient_error <= limit]
    best = min(accurate or fitting, key=lambda row: row.seconds if accurate else row.gradient_error)
    algorithm, sensealg = best.objects
    reason = _reason(best, report, len(measured), len(accurate), limit, max_memory)
    return Recommendation(algorithm, sensealg, best.backend, bool(accurate), reason, report)


def _reason(
    best: Row, report: CrosscheckReport, measured: int, accurate: int, limit: float, max_memory: int | None
) -> str:
    cost = (
        f"{best.seconds * 1e3:.3g} ms and {_bytes(best.memory)} for one gradient, whose relative error is "
        f"{best.gradient_error:.1e}"
    )
    fits = "" if max_memory is None else f" and memory below {_bytes(max_memory)}"
    if accurate:
        why = f"the quickest of {accurate} of {measured} measured combinations with an error below {limit:.1e}{fits}"
    else:
        why = f"the most accurate{fits} of {measured} measured combinations: none is below {limit:.1e}, so lower rtol"
    unmeasured = sum(row.verdict == NOT_REACHED for row in report.rows)
    late = f" ({unmeasured} more were not measured within the budget)" if unmeasured else ""
    backend = "" if best.backend == "torch" else f" on backend {best.backend!r}"
    return f"Use {best.algorithm} with {best.sensealg}{backend}: {cost}; {why}{late}."


def _bytes(count: float) -> str:
    power = min(3, int(math.log(count, 1024))) if count >= 1 else 0
    return f"{count / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB')[power]}"
