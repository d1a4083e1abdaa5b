"""What a solve returns: the solution, how it ended, what it cost.

Every message about a solve that failed is written here, once.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pynode.errors import InputError, UnsupportedError, explain, stays
from pynode.layout import leaves_of
from pynode.transforms import any_true, number

if TYPE_CHECKING:
    from pynode.algorithms import Algorithm
    from pynode.events import Crossing, Firing
    from pynode.sensealg import SensitivityAlgorithm


class ReturnCode(enum.Enum):
    """How a solve ended. Names are SciML's.

    Examples
    --------
    >>> sol = pynode.solve(lambda t, y: y**2, torch.ones(1), [0.0, 2.0], throw=False)  # 1 / (1 - t)
    >>> sol.retcode.successful, 0.9 < sol.span[1] < 1.1
    (False, True)
    >>> pynode.ReturnCode.Terminated.value
    'a terminal event ended it'
    """

    Success = "the final time was reached"
    Terminated = "a terminal event ended it"
    MaxIters = "the limit of steps was reached"
    DtLessThanMin = "the step size fell below its minimum"
    Unstable = "the field or the state became non-finite"
    ConvergenceFailure = "Newton's iteration for the stages of an implicit step did not converge"
    InitialFailure = "the field is non-finite at the initial time"
    TooManyEvents = "events follow one another without end"

    @property
    def successful(self) -> bool:
        return self in (ReturnCode.Success, ReturnCode.Terminated)


#: What was expected and what to do, of every way to fail.
ADVICE: dict[ReturnCode, tuple[str, str]] = {
    ReturnCode.MaxIters: (
        "to reach the final time within the limit",
        "raise max_steps; if the steps are much smaller than the solution's features the problem is stiff for an "
        "explicit method (take an implicit one, such as KenCarp4()), f jumps to and fro, or the tolerances are too "
        "tight: raise rtol and atol, smooth f, or rescale the model",
    ),
    ReturnCode.DtLessThanMin: (
        "a step that meets the tolerance and still advances time",
        "check f for a singularity or a jump (name jump times in d_discontinuities=), integrate less far if the "
        "solution blows up, raise rtol and atol, and use float64 where float32 cannot hold the tolerance",
    ),
    ReturnCode.Unstable: (
        "finite values throughout",
        "the solution may blow up in finite time or f may leave its domain (log, sqrt, division): integrate less far, "
        "bound the field, or lower dt0 or the fixed step",
    ),
    ReturnCode.ConvergenceFailure: (
        "an iteration that converges, as it does for steps that are small enough where f is smooth",
        "take smaller fixed steps, or drop dt, steps and mesh so that the steps adapt; check f for jumps (name their "
        "times in d_discontinuities=) and a jac= of your own against torch's (drop it)",
    ),
    ReturnCode.InitialFailure: (
        "finite f(t0, y0)",
        "check y0, the parameters and f itself with torch.isfinite",
    ),
    ReturnCode.TooManyEvents: (
        "finitely many events in a finite time",
        "raise max_events= if there are that many; where events accumulate (a ball that comes to rest), end t before "
        "that, or carry one more channel that the effect sets to 0 when little is left, and multiply f by it",
    ),
}


def failure_message(retcode: ReturnCode, t: float, detail: str) -> str:
    """The message of a SolveError: what happened at which time, the expectation, the remedy."""
    expectation, remedy = ADVICE[retcode]
    return explain(f"the solve stopped at t = {t:.9g} because {retcode.value} ({detail})", expectation, remedy)


@dataclass
class Counts:
    """Work of one direction of a solve, counted where it happens.

    ``nfe`` evaluations of the field, ``nvjp`` products with its Jacobian (pullbacks through it; forward ones under
    ``ForwardSensitivity`` and in matrix-free linear solves), ``accepted`` and ``rejected`` steps.

    Of implicit methods besides: ``njac`` Jacobians (or points at which products with one were prepared), whose own
    evaluations and pullbacks are in none of the others, and ``nlu`` factored matrices.

    Examples
    --------
    >>> sol = pynode.solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], algorithm=pynode.RK4(steps=10))
    >>> sol.stats.forward.nfe, sol.stats.forward.accepted, sol.stats.forward.rejected
    (40, 10, 0)
    """

    nfe: int = 0
    nvjp: int = 0
    accepted: int = 0
    rejected: int = 0
    njac: int = 0
    nlu: int = 0


@dataclass
class Stats:
    """``forward``: the solve (dense queries ``sol(t)`` add to it). ``backward``: the gradient, zero until it has run
    and the sum over all its runs.

    Examples
    --------
    >>> y0 = torch.ones(1, requires_grad=True)
    >>> sol = pynode.solve(lambda t, y: -y, y0, [0.0, 1.0])
    >>> sol.stats.backward.nfe
    0
    >>> sol.ys[-1].sum().backward()
    >>> sol.stats.backward.nfe > 0
    True
    """

    forward: Counts = field(default_factory=Counts)
    backward: Counts = field(default_factory=Counts)


@dataclass(frozen=True)
class End:
    """The end of a solve: time (0-dim), state, the size of the step that would have been next, where known, and what
    had just fired."""

    t: Tensor
    y: Any
    size: float | None = None
    fired: tuple[Crossing, ...] = ()


class Solution:
    """The solution of an initial value problem.

    Attributes
    ----------
    ts : Tensor
        The save times, shape (T,).
    ys : tensor or tree of tensors
        The state at ``ts``: each leaf has shape (T, *leaf shape). After a failed solve under ``throw=False``, only
        the T' <= T times that were reached are present, in both.
    retcode : ReturnCode
        How the solve ended.
    stats : Stats
        What it cost.
    message : str
        Empty, or what failed and what to do.
    running_cost : tensor or tree of tensors, or None
        The integral of ``running_cost=`` over the span, in the form of its value; after a failed solve under
        ``throw=False``, up to the time that was reached.
    span : tuple of float
        The initial time and the time that was reached.
    algorithm, sensealg
        What was used; ``sensealg`` is None where nothing requires a gradient.
    at_steps : bool
        Whether ``ts`` are the ends of the accepted steps (``SaveAt(steps=True)``).
    events : tuple of Firing
        The events that fired, in order of time; see :class:`pynode.events.Firing`.

    Examples
    --------
    >>> sol = pynode.solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0])
    >>> round(sol(0.5).item(), 4), round(sol.derivative(0.5).item(), 3)  # dense output
    (0.6065, -0.607)
    >>> more = sol.resume(2.0)
    >>> more.ts, round(more.ys[-1].item(), 4)
    (tensor([1., 2.], dtype=torch.float64), 0.1353)
    """

    def __init__(
        self,
        ts: Tensor,
        ys: Any,
        retcode: ReturnCode,
        stats: Stats,
        algorithm: Algorithm,
        sensealg: SensitivityAlgorithm | None,
        evaluate: Callable[[Tensor, bool], Any],
        span: tuple[float, float],
        message: str = "",
        running_cost: Any = None,
        at_steps: bool = False,
        events: tuple[Firing, ...] = (),
        end: Callable[[], End] | None = None,
    ) -> None:
        self.ts = ts
        self.ys = ys
        self.retcode = retcode
        self.stats = stats
        self.algorithm = algorithm
        self.sensealg = sensealg
        self.message = message
        self.running_cost = running_cost
        self.at_steps = at_steps
        self.events = events
        self._evaluate = evaluate
        self.span = span
        #: Where :meth:`resume` starts, and what it calls; the latter is set by :func:`pynode.solve.solve`.
        self._end = end
        self._continue: Callable[[Solution, Any], Solution] | None = None

    def __call__(self, t: Tensor | float) -> Any:
        """The state at time(s) ``t``, by the algorithm's own dense output.

        Parameters
        ----------
        t : float, or tensor of shape (), or of shape (M,) in any order
            Times within the span that was integrated.

        Returns
        -------
        tensor or tree
            Leaves of shape (*t.shape, *leaf shape), differentiable like ``ys`` (each call adds one more backward
            pass if it is differentiated).

        Raises
        ------
        InputError
            Outside the span.
        UnsupportedError
            When the solve kept no dense output (``SaveAt(dense=True)`` keeps it).
        """
        return self._evaluate(self._times(t), False)

    def derivative(self, t: Tensor | float) -> Any:
        """Time derivative of the dense output at ``t``; shapes and errors as in calling the solution."""
        return self._evaluate(self._times(t), True)

    def resume(self, t_more: Tensor | Sequence[float] | float) -> Solution:
        """Go on from the end of this solve, with its options.

        Parameters
        ----------
        t_more : float, 1-D tensor or sequence of float
            The new end time, or save times behind the end of this solve the last of which is the new end.

        Returns
        -------
        Solution
            From the end of this one, which is its first save point, to the new end. It starts with the step size that
            this one would have tried next, saves at ``t_more`` (``SaveAt(steps=True)`` is kept, ``ts`` is not),
            has a running cost of its own, and is differentiable through both solves. After a terminal event it goes on
            behind it: the event's condition is zero there and does not fire again at once.

        Raises
        ------
        InputError
            If ``t_more`` does not lead on, or if this solve failed by anything but its limit of steps.
        UnsupportedError
            If this solution did not come from :func:`pynode.solve`.
        """
        if self._continue is None:
            raise UnsupportedError(
                explain("resume() on a solution that pynode.solve did not return", "one that it did", "solve again")
            )
        return self._continue(self, t_more)

    def __copy__(self) -> Solution:
        own = type(self).__new__(type(self))
        own.__dict__.update(self.__dict__)
        return own

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy: a solution without a gradient; its dense output needs an ``f`` that can be pickled.

        Raises
        ------
        UnsupportedError
            Where the states have a history, which would be lost.
        """
        if any(isinstance(x, Tensor) and x.grad_fn is not None for _, x in leaves_of((self.ts, self.ys))):
            raise stays(
                "a Solution whose states have a gradient",
                "solve under torch.no_grad(), or take sol.ys.detach() and sol.ts",
            )
        return self.__dict__

    def end(self) -> End:
        """Where the solve ended, connected to autograd like ``ys``."""
        if self._end is not None:
            return self._end()
        time = self.ts[-1] if self.ts[-1].item() == self.span[1] else self.ts.new_tensor(self.span[1])
        return End(time, self(self.span[1]))

    def _times(self, t: Tensor | float) -> Tensor:
        times = t if isinstance(t, Tensor) else torch.as_tensor(t, dtype=torch.float64)
        if times.ndim > 1 or not times.is_floating_point() or times.numel() == 0:
            raise InputError(
                explain(
                    f"sol(t) got a tensor of shape {tuple(times.shape)} and dtype {times.dtype}",
                    "a float, or a floating point tensor with at most one dimension and at least one element",
                    "flatten the times and convert them with .double()",
                )
            )
        low, high = min(self.span), max(self.span)
        # The end of the span may have been rounded to the dtype of ``times``.
        inside = times.detach().double().clamp(low, high)
        slack = torch.finfo(times.dtype).eps * max(abs(low), abs(high))
        if any_true(((times.detach() - inside).abs() <= slack).logical_not()):
            raise InputError(
                explain(
                    f"sol(t) got times from {-number(-times.min()):.9g} to {number(times.max()):.9g}",
                    f"times within the integrated span [{low:.9g}, {high:.9g}]",
                    "solve over a longer span; a Solution does not extrapolate",
                )
            )
        return times + (inside - times.detach())

    def __repr__(self) -> str:
        forward, backward = self.stats.forward, self.stats.backward
        if isinstance(self.ys, Tensor):
            shape = f"ys: {tuple(self.ys.shape)} {str(self.ys.dtype).removeprefix('torch.')} on {self.ys.device}"
        else:
            shape = f"ys: a {type(self.ys).__name__}"
        lines = [
            f"Solution({self.retcode.name}, {self.algorithm.name}, "
            f"t = {self.span[0]:.6g} .. {self.span[1]:.6g}, {len(self.ts)} saved)",
            f"  {shape}",
            f"  forward:  {forward.nfe} evaluations, {forward.accepted} steps, {forward.rejected} rejected"
            + (f", {forward.nvjp} products with the Jacobian" if forward.nvjp else ""),
        ]
        if self.events:
            lines.append(f"  events:   {len(self.events)}, the last at t = {self.events[-1].t.item():.6g}")
        if self.sensealg is not None:
            lines.append(
                f"  backward: {backward.nfe} evaluations, {backward.nvjp} pullbacks ({self.sensealg.name})"
                if backward.nvjp
                else f"  backward: not run ({self.sensealg.name})"
            )
        if self.message:
            lines.append(f"  {self.message}")
        return "\n".join(lines)
