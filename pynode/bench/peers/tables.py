"""What is shown of the peers, what was promised beside them, and the ratios that ``--check`` watches."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pynode.bench import Claim, Table
from pynode.bench.baseline import TOLERANCE
from pynode.bench.fields import Case
from pynode.bench.peers.line_up import ours
from pynode.bench.peers.lines import Comparison, Line, compare
from pynode.bench.timing import Spread

_MARKS = {"interpolated": "", "at most": "<= "}


def floor(case: Case) -> float:
    """Error below which the precision of the state, and no solver, decides: four roundings."""
    return 4.0 * torch.finfo(case.y0.dtype).eps


def table(case: Case, direction: str, lines: Sequence[Line], tiers: Sequence[str]) -> Table:
    """Time and error of every contestant at the case's tolerance, and how many times as fast each tier is."""
    by_name = {line.name: line for line in lines}
    present = [tier for tier in tiers if case.rtol in by_name[ours(tier)].timings]
    columns = ["", "median ms", "quartiles", "error", "cores"]
    for tier in present:
        columns += [f"{tier}: same tol.", f"{tier}: equal error"]
    rows = [(line.name, *_cells(line, case.rtol), *_compared(line, by_name, present, case)) for line in lines]
    return Table(f"{direction}, {case.title}", tuple(columns), rows)


def _cells(line: Line, rtol: float) -> tuple[str, ...]:
    if rtol not in line.timings:
        return ("failed", "", "", "")
    found = line.timings[rtol].spread
    quartiles = f"{1e3 * found.lower:.3g} - {1e3 * found.upper:.3g}"
    return (f"{1e3 * found.median:.3g}", quartiles, f"{line.errors[rtol]:.1e}", f"{line.cores:.2f}")


def _compared(line: Line, by_name: dict[str, Line], tiers: Sequence[str], case: Case) -> list[str]:
    cells = []
    for tier in tiers:
        if line.name == ours(tier):
            cells += ["", ""]
            continue
        found = compare(by_name[ours(tier)], line, case.rtol, floor(case))
        cells.append("" if found.same is None else str(found.same))
        cells.append(f"{_MARKS[found.how]}{found.equal}" if found.equal is not None else "never")
    return cells


def failures(case: Case, direction: str, lines: Sequence[Line]) -> list[str]:
    """A note for every contestant and tolerance without a figure."""
    return [
        f"{case.name}, {direction}: {line.name} at rtol {rtol:g}: {why}"
        for line in lines
        for rtol, why in line.failures.items()
    ]


def comparisons(case: Case, lines: Sequence[Line], tiers: Sequence[str]) -> dict[tuple[str, str], Comparison]:
    """Each tier beside each other library, by (tier, peer)."""
    by_name = {line.name: line for line in lines}
    own = {ours(tier) for tier in tiers}
    return {
        (tier, line.name): compare(by_name[ours(tier)], line, case.rtol, floor(case))
        for tier in tiers
        if case.rtol in by_name[ours(tier)].timings
        for line in lines
        if line.name not in own
    }


def ratios(case: Case, direction: str, found: dict[tuple[str, str], Comparison]) -> dict[str, float]:
    """Our time over the peer's: at the same tolerance, and at equal error where that could be read off.

    Only steady ones: a ratio whose own quartiles lie further apart than what counts as a regression tells none.
    """
    values = {}
    for (tier, peer), one in found.items():
        name = f"{case.name} {direction}: {tier} over {peer}"
        if one.same is not None and steady(one.same):
            values[f"{name}, same tolerance"] = 1.0 / one.same.median
        if one.equal is not None and one.how == "interpolated" and steady(one.equal):
            values[f"{name}, equal error"] = 1.0 / one.equal.median
    return values


def steady(ratio: Spread) -> bool:
    """Whether the quartiles are within the tolerance of ``--check`` of each other."""
    return ratio.upper <= (1.0 + TOLERANCE) * ratio.lower


def owed(case: Case, direction: str, compute_bound: bool) -> list[tuple[str, tuple[str, ...], float]]:
    """What was promised: (peer, tiers of which the best counts, times as fast)."""
    forward = direction == "forward"
    torchdiffeq = "torchdiffeq" if forward else "torchdiffeq odeint_adjoint"
    diffrax = "diffrax" if forward else "diffrax RecursiveCheckpointAdjoint"
    promised: list[tuple[str, tuple[str, ...], float]] = []
    if case.name != "lotka-volterra":
        promised.append((diffrax, ("step", "solve"), 1.0))
    if case.name == "spiral":
        promised.append((torchdiffeq, ("step", "solve"), 10.0 if forward else 15.0))
    if compute_bound:
        promised.append((torchdiffeq, ("step", "solve"), 1.8))
    if forward:
        promised.append((torchdiffeq, ("eager",), 3.0 if case.name == "spiral" else 1.0))
    return promised


def claims(
    case: Case, direction: str, found: dict[tuple[str, str], Comparison], compute_bound: bool, judged: bool
) -> list[Claim]:
    """The promises that these contestants can keep or break; merely measured unless ``judged`` (small sizes)."""
    said = []
    for peer, tiers, least in owed(case, direction, compute_bound):
        best = max(((found[tier, peer].judged, tier) for tier in tiers if (tier, peer) in found), default=None)
        if best is None:
            continue
        value, tier = best
        how = found[tier, peer].how
        where = {"interpolated": "at equal error", "at most": "at equal error or less", "never": "at no larger error"}
        text = f"{case.name}, {direction}: {tier} {value:.2f}x as fast as {peer} {where[how]} (>= {least:g})"
        said.append(Claim(text, value, value >= least if judged else None))
    return said
