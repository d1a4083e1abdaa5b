"""Plot of times against sizes, with the fitted exponents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def draw(found: Mapping[str, Mapping[str, Any]], folder: Path) -> Path:
    """Write ``scaling.png``: a panel per axis; a grey line grows with the size.

    Raises
    ------
    ImportError
        Without matplotlib.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(found), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(1, len(found), squeeze=False)[0]
    for panel, (axis, rows) in zip(axes, found.items(), strict=True):
        for direction in ("forward", "gradient"):
            exponent = rows["exponents"][direction]
            label = direction if exponent is None else f"{direction}: exponent {exponent:.2f}"
            panel.loglog(rows["sizes"], [1e3 * s for s in rows[direction]], "-o", markersize=4, label=label)
        size, last = rows["sizes"], 1e3 * rows["gradient"][-1]
        panel.loglog([size[0], size[-1]], [last * size[0] / size[-1], last], ":", color="0.6", label="linear")
        panel.set_ylim(bottom=0.3e3 * min(rows["forward"]))
        panel.set_xlabel(axis)
        panel.set_ylabel("ms")
        panel.legend(fontsize=8)
        panel.grid(True, which="major", linewidth=0.3)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "scaling.png"
    figure.savefig(path, dpi=110)
    return path
