"""What a solve keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pynode.errors import FieldError, InputError, explain
from pynode.layout import leaves_of, rebuild
from pynode.problem import check_times

Times = Tensor | Sequence[float]


@dataclass(frozen=True)
class SaveAt:
    """What ``Solution`` holds.

    Parameters
    ----------
    ts : 1-D tensor or sequence of float, optional
        Times at which ``ys`` is given, within the span of ``t`` and in its direction; ``t`` itself by default.
        With it, ``t`` says only where the solve starts and ends.
    steps : bool
        Give ``ys`` at the start and at the end of every accepted step instead.
    dense : bool, optional
        Keep the accepted states, one per step, so that ``sol(t)`` works afterwards. By default they are kept except
        under ``BacksolveAdjoint`` and ``ReversibleAdjoint``, whose memory is constant, and under
        ``CheckpointedAdjoint(checkpoints=n)``, which keeps at most ``n`` of them and recomputes the others.
    t0, t1 : bool
        Save the start, and the end, which is that of ``t`` or a terminal event: beside ``ts`` where it is given,
        alone where it is not (``SaveAt(t1=True)`` holds the final state only). ``steps`` has both anyway.
    fn : callable, optional
        ``fn(t, y, *args)``, a tensor or a tree of tensors, is given in place of the state at each save time, and
        differentiated by plain autograd. ``sol(t)`` gives states all the same.

    Examples
    --------
    >>> f, y0 = lambda t, y: -y, torch.ones(3)
    >>> pynode.solve(f, y0, [0.0, 1.0], saveat=pynode.SaveAt(ts=[0.25, 0.5])).ys.shape
    torch.Size([2, 3])
    >>> pynode.solve(f, y0, [0.0, 1.0], saveat=pynode.SaveAt(t1=True, fn=lambda t, y: y.sum())).ys.shape
    torch.Size([1])
    >>> pynode.solve(f, y0, [0.0, 1.0], saveat=pynode.SaveAt(steps=True), algorithm=pynode.RK4(dt=0.5)).ts
    tensor([0.0000, 0.5000, 1.0000], dtype=torch.float64)
    """

    ts: Times | None = None
    steps: bool = False
    dense: bool | None = None
    t0: bool = False
    t1: bool = False
    fn: Callable[..., Any] | None = None


@dataclass(frozen=True)
class SavePoints:
    """The save times of a span, as a tensor and as floats.

    ``own`` tells that they were given apart from ``t``; ``last`` that the last of them stands for the end of the
    solve, wherever that is.
    """

    tensor: Tensor
    times: list[float]
    own: bool
    last: bool


def as_saveat(saveat: SaveAt | Times | None) -> SaveAt:
    """A SaveAt from what ``saveat=`` takes, after checking what needs no span."""
    save = saveat if isinstance(saveat, SaveAt) else SaveAt(ts=saveat)
    if save.ts is not None and save.steps:
        raise InputError(
            explain("SaveAt got ts and steps=True", "one of them", "drop ts to save the ends of the steps, or steps")
        )
    if save.fn is not None and not callable(save.fn):
        raise InputError(
            explain(f"SaveAt(fn=) is a {type(save.fn).__name__}", "a callable fn(t, y, *args)", "pass a function")
        )
    return save


def save_points(save: SaveAt, t: Tensor, span: list[float]) -> SavePoints:
    """The save times that ``save`` means over ``t``, whose entries are ``span``.

    Raises
    ------
    InputError
        If they lie outside the span or run against it.
    """
    start, end = span[0], span[-1]
    if save.ts is None:
        if save.steps or not (save.t0 or save.t1):
            return SavePoints(t, span, own=False, last=True)
        which = [*([0] if save.t0 else []), *([-1] if save.t1 else [])]
        return SavePoints(t[which], [span[i] for i in which], own=True, last=save.t1)
    tensor, times = check_times("saveat", save.ts)
    low, high = min(start, end), max(start, end)
    # The ends of the span may have been rounded to the dtype of the save times.
    slack = torch.finfo(tensor.dtype).eps * max(abs(low), abs(high))
    times = [low if low - slack <= x < low else high if high < x <= high + slack else x for x in times]
    if len(times) > 1 and (times[1] - times[0]) * (end - start) < 0:
        raise InputError(
            explain("saveat runs against t", "save times in the direction of t", "reverse saveat with .flip(0)")
        )
    if min(times) < low or max(times) > high:
        raise InputError(
            explain(
                f"saveat goes from {times[0]:.9g} to {times[-1]:.9g}",
                f"times within the span of t, {start:.9g} to {end:.9g}",
                "extend t, or drop the save times outside it",
            )
        )
    tensor = tensor.to(t.device)
    if save.t0 and times[0] != start:
        tensor, times = torch.cat([t[:1].to(tensor), tensor]), [start, *times]
    if save.t1 and times[-1] != end:
        tensor, times = torch.cat([tensor, t[-1:].to(tensor)]), [*times, end]
    return SavePoints(tensor, times, own=True, last=save.t1)


def saved(fn: Callable[..., Any] | None, ts: Tensor, ys: Any, args: tuple[Any, ...]) -> Any:
    """What ``fn`` makes of the states ``ys`` at ``ts``, stacked; ``ys`` without it.

    Raises
    ------
    FieldError
        If ``fn`` does not return the same tree of tensors at every time.
    """
    if fn is None or not len(ts):
        return ys
    leaves = [leaf for _, leaf in leaves_of(ys, "ys")]
    dtype, device = leaves[0].dtype.to_real(), leaves[0].device
    found = []
    for index, t in enumerate(ts.to(device=device, dtype=dtype)):
        found.append(fn(t, rebuild(ys, iter([leaf[index] for leaf in leaves])), *args))
    rows = [[leaf for _, leaf in leaves_of(value, "fn(t, y)")] for value in found]
    for path, leaf in leaves_of(found[0], "fn(t, y)"):
        if not isinstance(leaf, Tensor):
            came = "nothing (None)" if leaf is None else f"a {type(leaf).__name__}"
            raise FieldError(
                explain(f"SaveAt's {path} returned {came}", "a tensor or a tree of tensors", "return what to save")
            )
    if any([x.shape for x in row] != [x.shape for x in rows[0]] for row in rows):
        raise FieldError(
            explain("SaveAt's fn returned other shapes at other times", "one form at all times", "pad what it returns")
        )
    return rebuild(found[0], iter([torch.stack(column) for column in zip(*rows, strict=True)]))
