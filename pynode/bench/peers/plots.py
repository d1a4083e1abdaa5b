"""Work-precision plots: time against error, a panel per field, a row for solves and one for gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pynode.bench.peers.lines import Line


def draw(found: Mapping[str, Mapping[str, Sequence[Line]]], folder: Path) -> Path:
    """Write ``peers.png``: ``found[field][direction]``, pynode's lines solid, the others' dashed.

    Raises
    ------
    ImportError
        Without matplotlib.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    directions = list(dict.fromkeys(direction for panels in found.values() for direction in panels))
    figure = Figure(figsize=(3.6 * len(found) + 2.4, 3.2 * len(directions) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(len(directions), len(found), squeeze=False)
    names = list(dict.fromkeys(line.name for panels in found.values() for lines in panels.values() for line in lines))
    colours = {name: colormaps["tab20"](place % 20) for place, name in enumerate(names)}
    handles: dict[str, Any] = {}
    for column, (field, panels) in enumerate(found.items()):
        for row, direction in enumerate(directions):
            panel = axes[row][column]
            for line in panels.get(direction, ()):
                points = sorted(line.points(), key=lambda point: point.error)
                if not points:
                    continue
                [handles[line.name]] = panel.loglog(
                    [p.error for p in points],
                    [1e3 * p.seconds for p in points],
                    "-o" if line.name.startswith("pynode") else "--s",
                    color=colours[line.name],
                    markersize=3.5,
                    linewidth=1.2,
                )
            panel.set_title(f"{field}, {direction}", fontsize=10)
            panel.invert_xaxis()
            panel.grid(True, which="major", linewidth=0.3)
            panel.tick_params(which="both", labelsize=7)
    figure.legend(list(handles.values()), list(handles), loc="outside right center", fontsize=8)
    figure.supxlabel("measured relative error")
    figure.supylabel("ms")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "peers.png"
    figure.savefig(path, dpi=110)
    return path
