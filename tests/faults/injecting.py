"""One fault in one call of a field, and what may come of it."""

from __future__ import annotations

import functools
import traceback
from dataclasses import dataclass
from typing import Any

import torch
from faulty_field import RAISES, VALUES, Base, Faulty
from library_state import differences, library_state
from torch import Tensor
from ways import RTOL, WAYS, Way

import pynode

#: The states are of size 1 to 3 and take tens of steps, each of which may be off by a tolerance and is damped or grown
#: by a factor of e**1.4 at most; a gradient is off by that times its own size.
CLOSE = 100.0 * RTOL * 4.0
#: Of classes that torch.vmap's refusals are of, too: f is then called once more, for one state after the other.
REFUSALS = ("type error", "attribute error", "not implemented")
#: Torch's own tape hands gradients to leaves as it goes.
TAPED = ("direct", "rows, direct")


@dataclass(frozen=True)
class Clean:
    """What a way gives without a fault: calls of f in the solve and what follows it, and in all."""

    forward: int
    total: int
    values: list[Tensor]
    gradients: list[Tensor | None]


def states(way: Way, sol: pynode.Solution) -> list[Tensor]:
    return [x.detach().nan_to_num(7.0) for x in (sol.ys.values() if way.tree else [sol.ys])]


def clean(name: str) -> Clean:
    """A solve and its gradient, anew."""
    way, f = WAYS[name], Faulty(Base())
    y0 = way.state()
    sol = way.solve(f, y0)
    loss = way.loss(sol)
    forward = f.calls
    loss.backward()
    return Clean(forward, f.calls, states(way, sol), [x.grad for x in way.tensors(f, y0)])


#: The one before any fault.
first = functools.cache(clean)


def same(a: Clean, b: Clean) -> bool:
    """Bit by bit."""
    pairs = zip([*a.values, *a.gradients], [*b.values, *b.gradients], strict=True)
    return all((x is None) == (y is None) and (x is None or torch.equal(x, y)) for x, y in pairs)


def inject(name: str, kind: str, at: int) -> str:
    """Solve and differentiate with a fault in call ``at``; assert that nothing wrong comes of it.

    Returns
    -------
    str
        What did: "right", "raised" (the user's own exception), or the name of pynode's.
    """
    way, expected = WAYS[name], first(name)
    f = Faulty(Base(), {**RAISES, **VALUES}[kind], at)
    y0 = way.state()
    tensors = way.tensors(f, y0)
    for x in tensors:
        x.grad = torch.ones_like(x)  # of an earlier backward pass
    before = library_state([f], tensors[:1])
    where = f"{name}: {kind} in call {at} of {expected.forward} + {expected.total - expected.forward}"
    try:
        sol = way.solve(f, y0)
        found = states(way, sol)
        way.loss(sol).backward()
    except BaseException as error:
        outcome = _judge(f, error, kind, where)
        if name not in TAPED:
            assert all(torch.equal(x.grad, torch.ones_like(x)) for x in tensors), f"{where}: a half-written gradient"
    else:
        outcome = "right"
        assert kind not in RAISES or f.raised is None or kind in REFUSALS, f"{where}: swallowed"
        # Steps that a NaN has rejected are others.
        if not (name == "saved steps" and kind in ("nan", "inf")):
            _compare(found, tensors, expected, where)
    left = differences(before, library_state([f], tensors[:1]))
    assert not left, f"{where}: left behind {left}"
    return outcome


def _judge(f: Faulty, error: BaseException, kind: str, where: str) -> str:
    in_f = any(frame.name == "fault" for frame in traceback.extract_tb(error.__traceback__))
    if kind in RAISES:
        assert error is f.raised, f"{where}: {error!r} instead"
        assert in_f, f"{where}: the traceback does not lead into f"
        return "raised"
    assert isinstance(error, pynode.PynodeError) or in_f, f"{where}: {error!r}"
    # A tracer has no time to tell, nor have many times at once.
    if (
        type(error) is pynode.FieldError
        and "during the solve" not in str(error)
        and "compiled" not in where
        and not _has_frame(error, "capturing.py")
        and not _has_frame(error, "_evaluated_together")
    ):
        assert error.t is not None, f"{where}: {error}"
        assert "This was at t" in str(error), f"{where}: {error}"
    if isinstance(error, pynode.SolveError):
        assert error.retcode is not pynode.ReturnCode.Success
    return type(error).__name__


def _has_frame(error: BaseException, name: str) -> bool:
    """Whether a function or a file of that name stands in the traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(name in (frame.name, frame.filename.rpartition("/")[2]) for frame in frames)


def _compare(found: list[Tensor], tensors: list[Tensor], expected: Clean, where: str) -> None:
    for x, y in zip(found, expected.values, strict=True):
        assert x.shape == y.shape, f"{where}: shape {tuple(x.shape)}"
        assert float((x - y).abs().max()) <= CLOSE, f"{where}: states are off by {float((x - y).abs().max())}"
    for x, g in zip(tensors, expected.gradients, strict=True):
        exact: Any = torch.zeros_like(x) if g is None else g
        off = float((x.grad - 1.0 - exact).abs().max())
        assert off <= CLOSE * max(1.0, float(exact.abs().max())), f"{where}: a gradient is off by {off}"
