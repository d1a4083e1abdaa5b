"""What the floating point numbers of a solve cannot hold, said before it is paid for."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pynode.errors import AccuracyWarning
from pynode.problem import ODEProblem, farthest
from pynode.solution import Counts
from pynode.strict import warn
from pynode.transforms import smallest, transformed

Tolerance = float | Tensor

#: Of the span, where ``f`` is looked at for a dependence on time.
_PROBES = (0.1, 0.5, 0.9)
#: What fixed steps, which have no tolerance, are measured by.
_VISIBLE = 1e-3


def warn_of_precision(problem: ODEProblem, tolerances: tuple[Tolerance, Tolerance] | None, counts: Counts) -> None:
    """Warn where rounding alone is larger than the tolerances (relative and absolute; None for fixed steps).

    Two causes: components of ``y0`` whose tolerance is below the smallest normal number, and times so far from zero
    that rounding them moves the solution. For the second, ``f`` is evaluated six times, counted in ``counts``, but only
    where the spacing of times is larger than the relative tolerance of the span.
    """
    if transformed():
        return  # values there are those of many samples
    if tolerances is not None:
        size = problem.state_layout.size
        rtol, atol = (x[:size] if isinstance(x, Tensor) and x.numel() > 1 else x for x in tolerances)
        _warn_of_subnormals(problem, rtol, atol)
        tolerances = rtol, atol
    _warn_of_rounded_times(problem, tolerances, counts)


def _warn_of_subnormals(problem: ODEProblem, rtol: Tolerance, atol: Tolerance) -> None:
    dtype = problem.layout.dtype
    tiny = torch.finfo(dtype).tiny
    if smallest(atol) >= tiny:
        return
    size = _state(problem).abs()
    below = (size > 0) & (size * rtol + atol < tiny)
    count = int(below.sum())
    if count:
        warn(
            f"{count} of the {size.numel()} components of y0, such as {float(size[below][0]):.3g}, are so small that "
            f"their tolerance lies below the smallest normal {dtype}, {tiny:.3g}: their error is held to that instead. "
            "Rescale y, or give a larger atol",
            AccuracyWarning,
        )


def _warn_of_rounded_times(problem: ODEProblem, tolerances: tuple[Tolerance, Tolerance] | None, counts: Counts) -> None:
    dtype = problem.layout.dtype
    start, end = problem.times[0], problem.times[-1]
    distance, span = abs(start), abs(end - start)
    # Spans that begin near zero have times as fine as their states.
    far = distance > 2.0 * span
    if far is False or not torch.as_tensor(far).any():
        return
    least = _VISIBLE if tolerances is None else smallest(tolerances[0])
    eps = torch.finfo(dtype).eps
    if not torch.as_tensor(far & (eps * distance > least * span)).any():
        return
    worst = _moved(problem, tolerances, counts)
    if worst > 1.0:
        last = farthest(problem.times)
        apart = 2.0 ** (math.floor(math.log2(last)) + math.log2(eps))
        by = f"{worst:.2g} times the tolerance" if tolerances is not None else f"{_VISIBLE * worst:.2g} of its size"
        double = "" if dtype == torch.float64 else "Solve in float64, or use "
        warn(
            f"f depends on time, and {dtype} times near t = {last:.6g} are {apart:.3g} apart. Rounding them changes "
            f"the solution by up to {by}. {double or 'Use '}times that begin near zero, and write f in these",
            AccuracyWarning,
        )


def _moved(problem: ODEProblem, tolerances: tuple[Tolerance, Tolerance] | None, counts: Counts) -> float:
    """By how many tolerances the solution moves where every time of ``f`` is off by half the spacing of times."""
    start, end = (torch.as_tensor(x, dtype=torch.float64) for x in (problem.times[0], problem.times[-1]))
    state, y0 = _state(problem), problem.y0.detach()
    rtol, atol = (_VISIBLE, 0.0) if tolerances is None else tolerances
    scale = (state.abs() * rtol + atol).clamp_min(torch.finfo(state.dtype).tiny)
    span = (end - start).abs().to(state).unsqueeze(-1)
    worst = 0.0
    with torch.no_grad(), problem.autocast():
        field = problem.field(counts)
        for part in _PROBES:
            t = field.time(start + part * (end - start))
            change = field(torch.nextafter(t, torch.full_like(t, math.inf)), y0) - field(t, y0)
            ratio = (0.5 * span * change[..., : state.shape[-1]] / scale).square().mean(dim=-1).sqrt()
            # A state at another time may be outside of f's domain.
            worst = max(worst, float(ratio.nan_to_num(0.0, 0.0, 0.0).max()))
    return worst


def _state(problem: ODEProblem) -> Tensor:
    return problem.y0.detach()[..., : problem.state_layout.size]
