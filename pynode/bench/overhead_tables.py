"""What is shown of the overhead's figures, and what was promised of them."""

from __future__ import annotations

from typing import Any

from pynode.bench import Claim, Table
from pynode.bench.fields import Case
from pynode.bench.timing import Timing

#: Names of the rows that the others are held against.
BARE = "bare f"
PEER, OURS = "torchdiffeq dopri5", "pynode DP5"
ADJOINT, BACKPROP, DEFAULT = "torchdiffeq odeint_adjoint", "torchdiffeq odeint, backprop", "pynode DP5 default"
#: The default with every step in one graph of torch.compile, where pynode offers it.
COMPILED = "pynode DP5 default, compile='step'"

Row = dict[str, Any]


def _times(row: Row) -> tuple[str, str]:
    timing: Timing = row["timing"]
    return f"{timing.median * 1e3:.3f}", f"{timing.minimum * 1e3:.3f}"


def forward_table(case: Case, rows: dict[str, Row]) -> Table:
    """Time, work and error of every contestant's solve."""
    columns = ("", "median", "min", "faster than dopri5", "evaluations", "steps", "each / bare f", "error")
    cells: list[tuple[str, ...]] = []
    for name, row in rows.items():
        if name == BARE:
            cells.append((name, *_times(row), "", "1", "", "1.00", ""))
            continue
        cells.append(
            (
                name,
                *_times(row),
                f"{row['faster']:.2f}",
                str(row["evaluations"]),
                _steps(row),
                f"{row['per_evaluation']:.2f}",
                f"{row['error']:.1e}",
            )
        )
    return Table(f"forward, {case.title}", columns, cells)


def gradient_table(case: Case, rows: dict[str, Row]) -> Table:
    """Time and work of every contestant's gradient."""
    columns = ("", "median", "min", "faster than adjoint", "than backprop", "f forward", "f backward", "pullbacks")
    cells: list[tuple[str, ...]] = [
        (
            name,
            *_times(row),
            f"{row['faster']:.2f}",
            f"{row['faster_backprop']:.2f}",
            str(row["forward"]),
            str(row["backward"]),
            str(row["pullbacks"]),
            _steps(row),
            f"{row['error']:.1e}",
        )
        for name, row in rows.items()
    ]
    return Table(f"gradient, {case.title}", (*columns, "steps", "error"), cells)


def _steps(row: Row) -> str:
    accepted, rejected = row["steps"]
    return f"{accepted} + {rejected}"


def claims(name: str, forward: dict[str, Row], backward: dict[str, Row]) -> list[Claim]:
    """What was promised for the spiral; the same figures for any other case."""
    ours, default = forward[OURS], backward[DEFAULT]
    peers = {peer: backward[peer]["error"] for peer in (ADJOINT, BACKPROP)}
    # "No larger" up to what another draw would change: 5 %.
    figures = [
        (f"forward {ours['faster']:.2f}x as fast as {PEER} (>= 3)", ours["faster"], ours["faster"] >= 3.0),
        (
            f"solution error {ours['error']:.1e}, {PEER} {forward[PEER]['error']:.1e} (no larger)",
            ours["error"],
            ours["error"] <= 1.05 * forward[PEER]["error"],
        ),
        (
            f"one evaluation costs {ours['per_evaluation']:.2f} of the bare field (<= 1.3)",
            ours["per_evaluation"],
            ours["per_evaluation"] <= 1.3,
        ),
        (
            f"gradient {default['faster']:.2f}x as fast as {ADJOINT} (>= 10)",
            default["faster"],
            default["faster"] >= 10.0,
        ),
        (
            f"gradient {default['faster_backprop']:.2f}x as fast as {BACKPROP} (>= 1)",
            default["faster_backprop"],
            default["faster_backprop"] >= 1.0,
        ),
        (
            f"gradient error {default['error']:.1e}, "
            + ", ".join(f"{peer} {value:.1e}" for peer, value in peers.items())
            + " (no larger)",
            default["error"],
            default["error"] <= 1.05 * min(peers.values()),
        ),
    ]
    if COMPILED in backward:
        compiled = backward[COMPILED]["faster"]
        text = f"gradient with compile='step' {compiled:.2f}x as fast as {ADJOINT} (>= 10)"
        figures.append((text, compiled, compiled >= 10.0))
    promised = name == "spiral"
    return [Claim(f"{name}: {text}", value, met if promised else None) for text, value, met in figures]
