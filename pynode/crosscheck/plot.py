"""The work-precision diagram. Needs matplotlib (``pip install 'pynode[plot]'``), imported when it is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pynode.errors import InputError, explain

if TYPE_CHECKING:
    from pynode.crosscheck.report import CrosscheckReport, Row

_STYLES = ("-", "--", ":", "-.")


def curves(report: CrosscheckReport) -> dict[tuple[str, str, str], list[Row]]:
    """The measured rows of each (backend, algorithm, sensealg), from the loosest tolerance to the tightest."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in report.rows:
        if row.measured and row.gradient_error > 0:
            found.setdefault((row.backend, row.algorithm, row.sensealg), []).append(row)
    return {key: sorted(rows, key=lambda row: -row.rtol) for key, rows in found.items()}


def draw(report: CrosscheckReport, path: Path) -> None:
    """Gradient error against seconds: a color for each sensealg, a line style for each algorithm.

    Raises
    ------
    InputError
        If nothing was measured, or the file cannot be written.
    """
    from matplotlib.figure import Figure

    lines = curves(report)
    if not lines:
        raise InputError(
            explain("no combination has a gradient to draw", "at least one that ran", "see report.print()")
        )
    figure = Figure(figsize=(7.5, 5.0), layout="constrained")
    axes = figure.add_subplot()
    colors: dict[str, str] = {}
    styles: dict[str, str] = {}
    for (backend, algorithm, sensealg), rows in lines.items():
        color = colors.setdefault(sensealg, f"C{len(colors) % 10}")
        style = styles.setdefault(algorithm, _STYLES[len(styles) % len(_STYLES)])
        axes.loglog(
            *([row.seconds for row in rows], [row.gradient_error for row in rows]),
            **{"color": color, "linestyle": style, "marker": "o", "markersize": 4},
            label=" ".join(part for part in (backend if backend != "torch" else "", algorithm, sensealg) if part),
        )
    axes.set_xlabel("seconds for one gradient, forward solve included")
    axes.set_ylabel("relative error of the gradient")
    axes.set_title(report.title)
    axes.grid(which="major", alpha=0.3)
    axes.legend(fontsize="x-small")
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise InputError(
            explain(f"cannot write {path} ({error})", "a file in an existing folder", "end it in .png")
        ) from error
