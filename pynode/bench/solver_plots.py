"""Work-precision plots: evaluations against error, a panel per problem."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pynode.bench.solver_runs import Run
    from pynode.bench.solvers import Key


def draw(
    kind: str, runs: dict[Key, Run], names: Sequence[str], contestants: Sequence[tuple[str, str]], folder: Path
) -> Path:
    """Write ``work_precision_KIND.png`` into ``folder``: SciPy's methods dashed and grey, pynode's in colour.

    Raises
    ------
    ImportError
        Without matplotlib.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(5 if kind == "detest" else 3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(3.4 * columns + 1.6, 2.9 * rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(rows, columns, squeeze=False)
    colours = [colormaps["tab10"](i) for i in range(10)]
    markers = "os^Dv<>pX*"
    ours = [method for method, library in contestants if library == "pynode"]
    theirs = [method for method, library in contestants if library == "scipy"]
    for panel, name in zip(axes.flat, names, strict=False):
        for method, library in contestants:
            found = [one for key, one in runs.items() if key[:3] == (name, method, library) and one.error]
            place = (ours if library == "pynode" else theirs).index(method)
            style: dict[str, Any] = {"marker": markers[place % len(markers)], "markersize": 3.5, "linewidth": 1.2}
            if library == "scipy":
                grey = str(0.15 + 0.5 * place / max(1, len(theirs) - 1))
                style |= {"color": grey, "linestyle": "--", "markerfacecolor": "white"}
            else:
                style["color"] = colours[place % len(colours)]
            panel.loglog(
                [x.largest or x.error for x in found], [x.work for x in found], label=f"{library} {method}", **style
            )
        panel.set_title(name, fontsize=10)
        panel.invert_xaxis()
        panel.grid(True, which="major", linewidth=0.3)
        panel.tick_params(which="both", labelsize=6)
    for panel in axes.flat[len(names) :]:
        panel.set_axis_off()
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8)
    figure.supxlabel("error (relative, mixed), " + ("largest of all steps" if kind == "detest" else "at the end"))
    figure.supylabel("evaluations of f (+ columns of Jacobians)")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"work_precision_{kind}.png"
    figure.savefig(path, dpi=110)
    return path
