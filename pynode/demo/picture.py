"""The demo's picture: the flow of the digits, the training, the comparison."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pynode.demo.data import Dataset
from pynode.demo.models import Classifier, ODEBody
from pynode.demo.report import Result
from pynode.errors import InputError, explain
from pynode.plotting import plot_flow
from pynode.plotting.canvas import CLASS_COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ODE, _RES, _INK, _PALE = "#1f6fb4", "#d9822b", "#333333", "#e6e6e6"
_TRAJECTORIES, _TIMES = 150, 41


def draw(path: Path, model: Classifier, data: Dataset, results: list[Result], title: str) -> None:
    """Write the picture to ``path``; its suffix names the format.

    Parameters
    ----------
    path : Path
    model : Classifier
        The trained ODE-net.
    data : Dataset
        Its first test images are the ones whose flow is drawn.
    results : list of Result
        Of the ODE-net and of the ResNet, in this order.
    title : str
    """
    from matplotlib.figure import Figure

    # A Figure of its own, without pyplot: no window system is needed and no global state is touched.
    figure = Figure(figsize=(13, 7), dpi=130, layout="constrained", facecolor="white")
    figure.suptitle(title, fontsize=13, color=_INK)
    grid = figure.add_gridspec(4, 3, width_ratios=(1.55, 1, 1))
    _flow(figure.add_subplot(grid[:, 0]), model, data)
    _error(figure.add_subplot(grid[:2, 1]), results, len(data.test_images))
    _evaluations(figure.add_subplot(grid[2:, 1]), results[0])
    bars: tuple[tuple[str, list[float], str], ...] = (
        ("parameters", [r.parameters for r in results], "{:,.0f}"),
        ("forward evaluations of the block", [r.history.last.forward_nfe for r in results], "{:.1f}"),
        ("seconds per epoch", [r.history.seconds_per_epoch for r in results], "{:.2f}"),
        ("peak memory of a gradient [MiB]", [r.memory / 2**20 for r in results], "{:.2f}"),
    )
    names = [result.network for result in results]
    for row, (label, values, form) in enumerate(bars):
        _bars(figure.add_subplot(grid[row, 2]), label, names, values, form)
    figure.savefig(path)


def check_format(path: Path) -> None:
    """Raise InputError unless the suffix of ``path`` names a format that matplotlib can write."""
    from matplotlib.figure import Figure

    formats = sorted(Figure().canvas.get_supported_filetypes())
    if path.suffix.removeprefix(".").lower() not in formats:
        raise InputError(
            explain(f"cannot write a picture to {path}", f"a suffix among {', '.join(formats)}", "end it in .png")
        )


def _flow(axes: Axes, model: Classifier, data: Dataset) -> None:
    assert isinstance(model.body, ODEBody)
    images, labels = data.test_images[:_TRAJECTORIES], data.test_labels[:_TRAJECTORIES]
    with torch.no_grad():
        ys = model.body.ode.trajectory(model.stem(images), torch.linspace(0, 1, _TIMES, dtype=torch.float64))
    colors = [CLASS_COLORS[label % len(CLASS_COLORS)] for label in range(data.classes)]
    plot_flow(ys, labels=labels, colors=colors, ax=axes)
    for label, color in enumerate(colors):
        axes.scatter([], [], s=28, color=color, label=str(label))
    axes.legend(title="class", frameon=False, fontsize=9, ncols=1, loc="best", handletextpad=0.1)
    axes.set_title(f"{len(images)} test images flowing through the ODE block\nfrom t = 0 (rings) to t = 1 (discs)")
    axes.set_xlabel("first principal direction of the states at t = 1")
    axes.set_ylabel("second principal direction")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["top", "right"]].set_visible(False)


def _error(axes: Axes, results: list[Result], tested: int) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    for result, color in zip(results, (_ODE, _RES), strict=True):
        # A logarithm needs a positive value: no error in N images is drawn as half of one.
        values = [100 * max(1 - epoch.accuracy, 0.5 / tested) for epoch in result.history.epochs]
        axes.plot(range(1, len(values) + 1), values, "o-", color=color, label=result.network, markersize=4)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_title("test error [%] after each epoch")
    axes.legend(frameon=False)
    _curves(axes)


def _evaluations(axes: Axes, result: Result) -> None:
    from matplotlib.ticker import MaxNLocator

    epochs = result.history.epochs
    numbers = range(1, len(epochs) + 1)
    axes.plot(numbers, [e.forward_nfe for e in epochs], "o-", color=_ODE, label="forward: f", markersize=4)
    axes.plot(numbers, [e.backward_nvjp for e in epochs], "s--", color=_INK, label="backward: vjp", markersize=4)
    axes.set_ylim(0, 1.1 * max(e.forward_nfe for e in epochs))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(f"evaluations per solve, {result.network}")
    axes.set_xlabel("epoch")
    axes.legend(frameon=False, loc="lower right")
    _curves(axes)


def _curves(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color=_PALE)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _bars(axes: Axes, title: str, names: list[str], values: list[float], form: str) -> None:
    bars = axes.barh(names, values, color=(_ODE, _RES), height=0.65)
    axes.bar_label(bars, [form.format(value).replace(",", " ") for value in values], padding=4, fontsize=9)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlim(0, 1.25 * max(*values, 1e-9))
    axes.set_xticks([])
    axes.invert_yaxis()
    axes.spines[["top", "right", "bottom"]].set_visible(False)
