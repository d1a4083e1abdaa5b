"""Ensembles: one field from many initial states or with many arguments, shared among the ranks of a process group."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pynode.batch_solution import BatchSolution, RowCounts
from pynode.dependencies import Dependencies
from pynode.ensemble_members import Members, stacked
from pynode.ensemble_sharing import Ranks, Share, fingerprints, raise_failures, told
from pynode.errors import InputError, SolveError, UnsupportedError, explain
from pynode.layout import leaves_of, rebuild
from pynode.native.independent.problem import RowProblem
from pynode.per_sample import whole
from pynode.problem import ODEProblem, check_times
from pynode.saveat import Times, as_saveat, save_points
from pynode.solution import ADVICE, Counts, ReturnCode, Solution
from pynode.solve import solve
from pynode.transforms import transformed

#: Members are solved in so many batches where ``batch_size`` does not say.
_BATCHES = 16
_REFUSED = ("observer", "progress", "running_cost", "d_discontinuities", "backend")


@dataclass(frozen=True)
class EnsembleSolution:
    """What :func:`pynode.ensemble` gives, the same on every rank but under ``gather=False``.

    Attributes
    ----------
    ts : Tensor
        The save times, (T,), or (N, T) where every member has its own.
    ys : tensor or tree of tensors
        The states of the members, leaves (N, T, ...), or what ``output_func`` made of them, (N, ...). NaN where a
        member failed (``throw=False``).
    retcodes : list of ReturnCode
        How each of all N members ended.
    row_stats : RowCounts
        What each of them cost, (N,).
    message : str
        Empty, or which members failed.
    members : range
        Those in ``ys``: all, or with ``gather=False`` this rank's.

    Examples
    --------
    >>> sol = pynode.ensemble(lambda t, y: -y, torch.ones(3, 1), [0.0, 1.0])
    >>> sol.ys.shape, sol.retcode.name, sol.members
    (torch.Size([3, 2, 1]), 'Success', range(0, 3))
    """

    ts: Tensor
    ys: Any
    retcodes: list[ReturnCode]
    row_stats: RowCounts
    message: str
    members: range

    @property
    def retcode(self) -> ReturnCode:
        """That of the first member that failed; otherwise Terminated where events ended all, or Success."""
        failed = next((code for code in self.retcodes if not code.successful), None)
        if failed is not None:
            return failed
        ended = all(code is ReturnCode.Terminated for code in self.retcodes)
        return ReturnCode.Terminated if ended else ReturnCode.Success


def ensemble(
    f: Callable[..., Any],
    y0s: Any,
    t: Times,
    *,
    args: tuple[Any, ...] = (),
    trajectories: int | None = None,
    output_func: Callable[[Any, int], Any] | None = None,
    batch_size: int | None = None,
    group: Any = None,
    gather: bool = True,
    seed: int = 0,
    throw: bool = True,
    batching: str = "independent",
    params: Any = None,
    allow_unused: bool = False,
    **options: Any,
) -> EnsembleSolution:
    """Solve N members, shared among the ranks of a ``torch.distributed`` group; every rank calls with the same
    arguments and gets the whole result.

    Members are solved in batches that do not depend on the number of ranks, each by one rank: results do not depend on
    it either, to the bit (on equal processors with an equal number of threads).

    Parameters
    ----------
    f : callable
        As in :func:`pynode.solve` under ``batching``: by default it is called with rows, ``y`` (b, ...) and ``t``
        (b, 1, ..., 1).
    y0s : tensor or tree of tensors with leading dimension N, or callable
        The initial states. A callable (SciML's ``prob_func``) gives member ``i`` as ``y0s(i, generator) -> (y0, own)``:
        its state, and a tuple of its own arguments, tensors or numbers, which ``f(t, y, *args, *own)`` gets row by row.
        It is called on the rank that solves the member. ``generator`` is a ``torch.Generator`` seeded by ``seed`` and
        ``i`` alone: draw from it, and random members do not depend on the number of ranks. What it returns must not
        require a gradient.
    t : 1-D tensor or sequence of float, or tensor (N, T)
        Times, of all members or of each.
    args : tuple
        What all members share; :class:`pynode.PerSample` holds what has a part for each, (N, ...).
    trajectories : int, optional
        N where ``y0s`` is callable.
    output_func : callable, optional
        ``output_func(ys, i)``: what is kept of member ``i`` with states ``ys`` (T, ...): a tensor or a tree of tensors
        of the same form for all. Only that is sent between ranks.
    batch_size : int, optional
        Members solved together; ``ceil(N / 16)`` by default. It decides on rounding, as the number of rows decides how
        torch multiplies matrices; the number of ranks does not. More than ``N / batch_size`` ranks are of no use.
    group : torch.distributed.ProcessGroup, optional
        The default group where None and ``torch.distributed`` is initialised, otherwise this process alone.
    gather : bool
        Whether every rank gets all results. Otherwise it gets its own members', see ``members``.
    seed : int
        For the generators.
    throw : bool
        Raise SolveError on all ranks where a member fails; otherwise it is NaN, and ``retcodes`` tell.
    batching : "independent" or "joint"
        Whether the members of a batch have their own steps; common ones serve every algorithm and ``compile=``.
    params, allow_unused, options
        As in :func:`pynode.solve`: ``algorithm=``, ``rtol=``, ``saveat=``, ``sensealg=``, ...

    Returns
    -------
    EnsembleSolution
        Differentiable once, with respect to ``y0s``, ``t``, ``args`` and the parameters of ``f``. Every rank must make
        the backward pass. With the same loss of the gathered results on every rank, each gets the gradient that a
        single process gets (not a multiple of it): a member's cotangent is taken from the rank that solved it, and
        parts are summed over the ranks. DDP, which averages equal gradients, leaves it so. With ``gather=False`` it
        is the gradient of the sum of the ranks' losses; a rank without members has ``ys`` of length 0 and takes part
        with its sum.

    Raises
    ------
    InputError
        Also where arguments or parameters are not the same on all ranks.
    SolveError
        If a member fails, on every rank, with the members' numbers.
    PynodeError
        If another rank raised; that rank raises what it was.

    Examples
    --------
    >>> rates = torch.tensor([[0.5], [1.0], [2.0]], requires_grad=True)
    >>> sol = pynode.ensemble(lambda t, y, k: -k * y, torch.ones(3, 1), [0.0, 1.0], args=(pynode.PerSample(rates),))
    >>> sol.ys.shape
    torch.Size([3, 2, 1])
    >>> sol.ys[:, -1].sum().backward()
    >>> rates.grad.flatten()  # -exp(-k)
    tensor([-0.6065, -0.3679, -0.1353])
    >>> draw = lambda i, generator: (torch.randn(2, generator=generator), (0.1 * i,))
    >>> sol = pynode.ensemble(lambda t, y, k: -k * y, draw, [0.0, 1.0], trajectories=4)
    >>> sol.ys.shape
    torch.Size([4, 2, 2])
    """
    ranks = Ranks(group)
    job: _Job | None = None
    error: Exception | None = None
    try:
        _refuse(batching, options)
        params = None if params is None else list(params)
        shared = {"params": params, "allow_unused": allow_unused, "batching": batching, **options}
        job = _Job(f, Members(y0s, t, args, trajectories, seed), ranks, batch_size, shared)
        job.alike |= {"gather": gather, "throw": throw}
        job.solve(output_func, throw)
    except Exception as raised:
        error = raised
    heard = ranks.exchange((told(error), None if job is None or error is not None else job.report()))
    raise_failures(error, [words for words, _ in heard], "an ensemble")
    assert job is not None
    reports = [report for _, report in heard]
    ranks.check_alike([report["alike"] for report in reports])
    codes = [code for report in reports for code in report["codes"]]
    ends = [end for report in reports for end in report["reached"]]
    failed = [i for i, code in enumerate(codes) if not code.successful]
    message = _message(codes, ends, failed, [r for r, report in enumerate(reports) for _ in report["codes"]])
    if throw and failed:
        raise SolveError(message, codes[failed[0]], ends[failed[0]])
    counts = torch.tensor([row for report in reports for row in report["counts"]], dtype=torch.int64)
    times = [report["ts"] for report in reports if report["ts"] is not None]
    forms = [report["form"] for report in reports if report["form"] is not None]
    members = range(job.members.count) if gather else job.rows
    return EnsembleSolution(
        ts=job.times(members, times[0]),
        ys=job.results(forms[0], gather),
        retcodes=codes,
        row_stats=RowCounts(*counts.t().contiguous()),
        message=message,
        members=members,
    )


def _refuse(batching: str, options: dict[str, Any]) -> None:
    unknown = [name for name in _REFUSED if options.get(name) is not None and options.get(name) is not False]
    if batching == "joint" and options.get("events") is not None:
        unknown.append("events (with batching='joint')")
    if getattr(options.get("saveat"), "steps", False):
        unknown.append("saveat=SaveAt(steps=True)")
    if unknown:
        raise UnsupportedError(explain(f"an ensemble with {unknown[0]}", "one without", "loop over pynode.solve"))
    if transformed():
        raise UnsupportedError(
            explain("an ensemble inside a torch.func transform", "tensors outside torch.func", "use pynode.solve")
        )


class _Job:
    """What one rank does for an ensemble."""

    def __init__(self, f: Any, members: Members, ranks: Ranks, batch_size: int | None, options: dict[str, Any]) -> None:
        if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
            raise InputError(explain(f"batch_size={batch_size!r}", "a positive integer", "change batch_size"))
        self.f, self.members, self.ranks, self.options = f, members, ranks, options
        self._size = math.ceil(members.count / _BATCHES) if batch_size is None else batch_size
        self._batches = math.ceil(members.count / self._size)
        self.rows = self._members_of(ranks.rank)
        self.parameters = self._parameters() if torch.is_grad_enabled() else []
        self.outputs: list[Any] = []
        self.codes: list[ReturnCode] = []
        self.reached: list[float] = []
        self.counts: list[tuple[int, int, int]] = []
        self.alike: dict[str, Any] = {"the number of members": members.count, "batch_size": self._size}
        self.ts: Tensor | None = None
        if options["batching"] == "joint":  # a batch that fails saves fewer than there are to be
            t, times = check_times("t", members.t)
            self.ts = save_points(as_saveat(options.get("saveat")), t, times).tensor.detach()

    def _members_of(self, rank: int) -> range:
        share, count = self.ranks.share(self._batches, rank), self.members.count
        return range(min(share.start * self._size, count), min(share.stop * self._size, count))

    def _parameters(self) -> list[Tensor]:
        """What ``f`` depends on beside its arguments: found with the first member, by every rank in the same order."""
        y0, t, args = self.members.some(range(1))
        rows = self.options["batching"] == "independent"
        problem = RowProblem(self.f, y0, t, args) if rows else ODEProblem(self.f, y0, t, whole(args))
        with problem.autocast():
            return Dependencies(problem, Counts(), self.options["params"], self.options["allow_unused"]).parameters

    def solve(self, output_func: Callable[[Any, int], Any] | None, throw: bool) -> None:
        """Solve this rank's members."""
        for start in range(self.rows.start, self.rows.stop, self._size):
            rows = range(start, min(start + self._size, self.rows.stop))
            y0, t, args = self.members.some(rows)
            found = solve(self.f, y0, t, args=args, throw=False, **self.options)
            ok = self._noted(found, rows)
            ys = rebuild(found.ys, (_members_first(x, len(self.ts)) for _, x in leaves_of(found.ys)))  # type: ignore[arg-type]
            if output_func is not None and (ok or not throw):
                kept = [output_func(rebuild(ys, iter([x[k] for _, x in leaves_of(ys)])), i) for k, i in enumerate(rows)]
                ys = stacked(kept, "output_func's value")
            elif output_func is not None:
                continue  # what it would make of a failed member is never shown
            self.outputs.append(ys)

    def _noted(self, found: Solution, rows: range) -> bool:
        if isinstance(found, BatchSolution):
            codes, ends, stats = found.retcodes, found.span[1].tolist(), found.row_stats  # type: ignore[attr-defined]
            counts = [*zip(*(x.tolist() for x in (stats.nfe, stats.accepted, stats.rejected)), strict=True)]
        else:
            forward, many = found.stats.forward, len(rows)
            codes, ends = [found.retcode] * many, [found.span[1]] * many
            counts = [(forward.nfe, forward.accepted, forward.rejected)] * many
        self.codes += codes
        self.reached += ends
        self.counts += counts
        if self.ts is None:
            self.ts = found.ts.detach()
        return all(code.successful for code in codes)

    def report(self) -> dict[str, Any]:
        """What the other ranks have to know of this one."""
        named = [(f"parameter {i} of f", x) for i, x in enumerate(self.parameters)]
        alike = {**self.alike, **fingerprints([*self.members.tensors, *named])}
        if not isinstance(self.members.t, Tensor):
            alike["t"] = [float(x) for x in self.members.t]
        form = None
        if self.outputs:
            leaves = [x for _, x in leaves_of(self.outputs[0])]
            form = rebuild(self.outputs[0], iter([(_Form(tuple(x.shape[1:]), x.dtype)) for x in leaves]))
        return {
            "alike": alike,
            "codes": self.codes,
            "reached": self.reached,
            "counts": self.counts,
            "ts": self.ts,
            "form": form,
        }

    def times(self, members: range, shared: Tensor) -> Tensor:
        """The save times of some members."""
        if not self.members.own_times:
            return shared
        t: Tensor = self.members.t.detach()
        return t[members.start : members.stop]

    def results(self, form: Any, gather: bool) -> Any:
        """What is kept of all members, or of this rank's, connected to what they depend on."""
        forms = [x for _, x in leaves_of(form)]
        device = self.members.device
        own = [torch.empty(0, *x.shape, dtype=x.dtype, device=device) for x in forms]
        if self.outputs:
            columns = zip(*([x for _, x in leaves_of(ys)] for ys in self.outputs), strict=True)
            own = [torch.cat(column) for column in columns]
        counts = [len(self._members_of(rank)) for rank in range(self.ranks.size)]
        share = Share(self.ranks, own, [*self.members.own, *self.parameters], counts if gather else None)
        differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in share.inputs)
        given = [*self.members.given, *self.parameters]
        return rebuild(form, iter(share.connected(given) if differentiable else share.results()))


@dataclass(frozen=True)
class _Form:
    """Shape and dtype of what is kept of a member."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def _members_first(x: Tensor, count: int) -> Tensor:
    """States (T', B, ...) as (B, T, ...), NaN behind T'."""
    if len(x) < count:
        x = torch.cat([x, x.new_full((count - len(x), *x.shape[1:]), math.nan)])
    return x.transpose(0, 1)


def _message(codes: list[ReturnCode], ends: list[float], failed: list[int], ranks: list[int], shown: int = 3) -> str:
    if not failed:
        return ""
    listed = [f"member {i} (rank {ranks[i]}) at t = {ends[i]:.9g}: {codes[i].value}" for i in failed[:shown]]
    kinds = ", ".join(f"{n} {code.name}" for code, n in Counter(codes[i] for i in failed).items())
    more = ", ..." if failed[shown:] else ""
    expectation, remedy = ADVICE[codes[failed[0]]]
    return explain(
        f"{len(failed)} of {len(codes)} members failed ({kinds}): {'; '.join(listed)}{more}",
        f"every member {expectation}",
        f"{remedy}; throw=False returns the other members, and NaN in these",
    )
